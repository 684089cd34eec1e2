"""A tiny model and a few rows for each task of the table (not a test itself). Made in a worker, as it needs torch."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_tiny import _WORDS

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def make(rank: int, size: int, folder: str, tasks: Sequence[str] = ()) -> None:
    """folder/TASK/{model, train.jsonl, test.jsonl} for every task, or those that are named."""
    for task, made in MAKERS.items():
        if tasks and task not in tasks:
            continue
        place = Path(folder, task)
        place.mkdir()
        rows = made(place)
        for name, part in (("train", rows[:-6]), ("test", rows[-6:])):
            (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))


def _tokenizer(folder: Path, framed: bool = True) -> int:
    """Words, with BERT's special tokens; their number."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + _WORDS)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1") if framed else ("$A [SEP]", "$A $B [SEP]")
    plain.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]"}
    ends = {"eos_token": "[SEP]"} if not framed else {"sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=32, **names, **ends).save_pretrained(folder)
    return len(vocabulary)


def _bert(folder: Path, head: str = "BertModel") -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    words = _tokenizer(folder / "model")
    config = transformers.BertConfig(vocab_size=words, max_position_embeddings=32, **SMALL, **DROPS)
    getattr(transformers, head)(config).save_pretrained(folder / "model")


def _sentence(chance: random.Random, least: int = 3) -> list[str]:
    return chance.choices(_WORDS, k=chance.randrange(least, 9))


def seq2seq(folder: Path) -> list[dict[str, Any]]:
    import torch
    import transformers

    torch.manual_seed(1)
    words = _tokenizer(folder / "model", framed=False)
    config = transformers.T5Config(
        vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    chance = random.Random(1)
    texts = [[("good", "bad")[number % 2]] * 3 + _sentence(chance) for number in range(20)]
    return [{"source": " ".join(text), "target": "nice film" if text[0] == "good" else "grim plot"} for text in texts]


def tokens(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance, rows = random.Random(2), []
    for number in range(20):
        words = _sentence(chance)
        tags = ["B-GOOD" if word in ("good", "nice") else "B-BAD" if word in ("bad", "grim") else "O" for word in words]
        if number in (0, 19):
            words, tags = ["good", "film", "bad", *words], ["B-GOOD", "I-GOOD", "B-BAD", *tags]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def masked(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance = random.Random(3)
    texts = [_sentence(chance) for _ in range(20)]
    return [{"text": " ".join(words * (8 if number == 3 else 1))} for number, words in enumerate(texts)]  # one is long


def answers(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance, rows = random.Random(4), []
    for _ in range(20):
        passage = " ".join(_sentence(chance, 4))
        answer = passage.split()[2]
        start = passage.index(answer)
        rows.append({"question": "how is", "context": passage, "answers": {"text": [answer], "answer_start": [start]}})
    return rows


def classes(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance = random.Random(5)
    return [{"text": " ".join(_sentence(chance)), "label": "abc"[number % 3]} for number in range(20)]


def numbers(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance = random.Random(6)
    texts = [[("good", "bad")[number % 2]] * 4 + _sentence(chance) for number in range(20)]
    return [{"text": " ".join(words), "score": 2.5 if words[0] == "good" else -0.5} for words in texts]


def _picture(folder: Path, number: int, box: list[int] | None) -> str:
    """Noise, with a bright box in it."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 90, (24, 24, 3), dtype=np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 250
    Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"{number}.png"


def images(folder: Path) -> list[dict[str, Any]]:
    import torch
    import transformers

    torch.manual_seed(1)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "model")
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SMALL, **DROPS)
    transformers.ViTModel(config).save_pretrained(folder / "model")
    boxes = {"left": [0, 0, 12, 24], "right": [12, 0, 24, 24]}
    return [
        {"image": _picture(folder, number, boxes[label]), "label": label}
        for number, label in enumerate(["left", "right"] * 10)
    ]


def regions(folder: Path) -> list[dict[str, Any]]:
    import torch
    import transformers

    torch.manual_seed(1)
    size = {"height": 32, "width": 32}
    transformers.SegformerImageProcessor(size=size).save_pretrained(folder / "model")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    transformers.SegformerModel(config).save_pretrained(folder / "model")
    chance, rows = random.Random(7), []
    for number in range(20):
        left, top = chance.randrange(0, 12), chance.randrange(0, 12)
        box = [left, top, left + 12, top + 12]
        objects = [{"label": "lamp", "box": box}] if number % 7 else []
        rows.append({"image": _picture(folder, number, box if objects else None), "objects": objects})
    return rows


def objects(folder: Path) -> list[dict[str, Any]]:
    import shutil

    import torch
    import transformers

    rows = regions(folder)
    shutil.rmtree(folder / "model")
    torch.manual_seed(1)
    transformers.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    config = transformers.YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=4, **SMALL, **DROPS)
    transformers.YolosModel(config).save_pretrained(folder / "model")
    return rows


def questions(folder: Path) -> list[dict[str, Any]]:
    import torch
    import transformers

    rows = images(folder)
    words = _tokenizer(folder / "model")
    torch.manual_seed(1)
    config = transformers.ViltConfig(
        vocab_size=words, max_position_embeddings=32, image_size=16, patch_size=8, **SMALL, **DROPS
    )
    transformers.ViltModel(config).save_pretrained(folder / "model")
    return [{"question": "how is the film", "image": row["image"], "answer": row["label"]} for row in rows]


def captions(folder: Path) -> list[dict[str, Any]]:
    import torch
    import transformers
    from tokenizers import AddedToken

    rows = images(folder)
    words = _tokenizer(folder / "model", framed=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    torch.manual_seed(1)
    size = {"height": 16, "width": 16}
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size=size, crop_size=size), tokenizer, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image> {% else %}"
        "{{ p.text }} {% endif %}{% endfor %}{% endfor %}",
    ).save_pretrained(folder / "model")  # fmt: skip
    eye = transformers.CLIPVisionConfig(image_size=16, patch_size=8, **SMALL)
    text = transformers.LlamaConfig(
        vocab_size=words + 1, max_position_embeddings=64, pad_token_id=0, eos_token_id=3, bos_token_id=2, **SMALL
    )
    config = transformers.LlavaConfig(
        vision_config=eye, text_config=text, image_token_id=words, vision_feature_layer=-1, image_seq_length=4
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder / "model")
    says = {"left": "good film", "right": "bad plot"}
    return [{"question": "how is", "image": row["image"], "answer": says[row["label"]]} for row in rows]


def _sound(folder: Path, number: int, tones: list[int], rate: int = 1600) -> str:
    """A wave file of tones, a sixteenth of a second each."""
    import wave

    import numpy as np

    time = np.arange(rate // 16) / rate
    noise = np.random.default_rng(number).normal(0, 0.02, len(time) * len(tones))
    heard = np.concatenate([np.sin(2 * np.pi * tone * time) * 0.5 if tone else time * 0 for tone in tones]) + noise
    with wave.open(str(folder / f"{number}.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((heard * 32000).astype("<i2").tobytes())
    return f"{number}.wav"


def _ear(folder: Path, norm: str, head: str, **more: Any) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=1600, return_attention_mask=norm == "layer").save_pretrained(
        folder / "model"
    )
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_dim=(16, 16), conv_kernel=(8, 4), conv_stride=(4, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm=norm, classifier_proj_size=16,
        do_stable_layer_norm=norm == "layer", **more,
    )  # fmt: skip
    getattr(transformers, head)(config).save_pretrained(folder / "model")


def sounds(folder: Path) -> list[dict[str, Any]]:
    _ear(folder, "layer", "Wav2Vec2Model")
    chance = random.Random(8)
    kinds = {"low": 100, "high": 500}
    return [
        {"audio": _sound(folder, number, [kinds[label]] * chance.randrange(3, 7)), "label": label}
        for number, label in enumerate(["low", "high"] * 10)
    ]


def speech(folder: Path) -> list[dict[str, Any]]:
    from transformers import Wav2Vec2CTCTokenizer

    (folder / "model").mkdir()
    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6}
    (folder / "model" / "vocab.json").write_text(json.dumps(letters))
    Wav2Vec2CTCTokenizer(str(folder / "model" / "vocab.json")).save_pretrained(folder / "model")
    _ear(folder, "group", "Wav2Vec2ForCTC", vocab_size=len(letters), pad_token_id=0)
    chance, rows = random.Random(9), []
    for number in range(20):
        said = chance.choices("AB", k=chance.randrange(2, 5))
        tones = [tone for letter in said for tone in ({"A": 100, "B": 500}[letter], 0)]
        rows.append({"audio": _sound(folder, number, tones), "text": "".join(said)})
    return rows


def pairs(folder: Path) -> list[dict[str, Any]]:
    _bert(folder)
    chance = random.Random(10)
    texts = [_sentence(chance) for _ in range(26)]
    return [{"query": " ".join(words), "passage": " ".join([*words[::-1], *words[:2]])} for words in texts]


MAKERS = {
    "seq2seq-lm": seq2seq,
    "token-classification": tokens,
    "masked-lm": masked,
    "question-answering": answers,
    "sequence-classification": classes,
    "regress": numbers,
    "feature-extraction": pairs,
    "image-classification": images,
    "image-segmentation": regions,
    "object-detection": objects,
    "visual-question-answering": questions,
    "image-text-to-text": captions,
    "audio-classification": sounds,
    "automatic-speech-recognition": speech,
}
