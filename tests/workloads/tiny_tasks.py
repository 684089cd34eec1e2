"""A tiny model and a few rows for each task of the table (not a test itself). Made in a worker, as it needs torch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from finetune_tiny import _WORDS

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def make(rank: int, size: int, folder: str) -> None:
    """folder/TASK/{model, train.jsonl, test.jsonl} for every task."""
    for task, made in MAKERS.items():
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
    return [{"text": " ".join(_sentence(chance))} for _ in range(20)]


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


MAKERS = {
    "seq2seq-lm": seq2seq,
    "token-classification": tokens,
    "masked-lm": masked,
    "question-answering": answers,
    "sequence-classification": classes,
    "regress": numbers,
}
