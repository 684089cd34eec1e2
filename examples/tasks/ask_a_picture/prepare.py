"""Writes pictures of four digits, questions with what they ask for, and two small models without weights.

`python prepare.py`. The digits are scikit-learn's (UCI's optdigits, CC BY 4.0), one in each quarter of a picture, on
noise. Those of the test are digits that no other picture shows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from scene import PLACES, answer

PICTURES, TEST, QUESTIONS, HELD_OUT = 1500, 40, 4000, 360
SIDE, DIGIT, NOISE = 32, 12, 60  # pixels of a picture and of a digit; of 255
ASKED = ("place", "there", "there", "many")  # of each picture of the test
WORDS = {
    "place": ("Which digit is {}?", "What do you see {}?", "What is the number at the {}?", "Tell me the digit {}."),
    "there": ("Is there a {}?", "Do you see a {}?", "Does the picture show a {}?", "Is any of the digits a {}?"),
    "many": ("How many {}s are there?", "Count the {}s.", "How often does {} come?", "What is the number of {}s?"),
}
_SEED = 7


def prepare(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    known = [*zip(digits.images, digits.target, strict=True)]
    for name, count, part in (("train", PICTURES, known[:-HELD_OUT]), ("test", TEST, known[-HELD_OUT:])):
        chance, rows = random.Random(f"{_SEED}{name}"), []
        for number in range(count):
            pixels, objects = picture([chance.choice(part) for _ in PLACES], chance)
            file = f"images/{name}-{number}.png"
            Image.fromarray(pixels).save(folder / file)
            there = [each["label"] for each in objects]
            questions = [question(kind, there, chance) for kind in ASKED]  # each with its program and its answer
            rows.append({"image": file, "objects": objects, **({"asked": questions} if name == "test" else {})})
        write(folder / f"{name}.jsonl", rows)
    chance, asked = random.Random(_SEED), []
    for _ in range(QUESTIONS):
        words, program, said = question(chance.choice(ASKED), [str(chance.randrange(10)) for _ in PLACES], chance)
        asked.append({"source": words, "target": program, "usual": said})
    write(folder / "questions.jsonl", asked)
    write_what_sees(folder / "sees")
    write_what_says(folder / "says", [f"{row['source']} {row['target']}" for row in asked])


def question(kind: str, there: list[str], chance: random.Random) -> tuple[str, str, str]:
    """In words, as a program, and its answer. Half of those whether a digit is there are of one that is."""
    digit = chance.choice([chance.choice(there), chance.choice([one for one in "0123456789" if one not in there])])
    of = chance.choice(PLACES) if kind == "place" else digit
    program = f"{kind} {of}"
    return chance.choice(WORDS[kind]).format(of), program, answer(program, dict(zip(PLACES, there, strict=True)))


def picture(chosen: list[Any], chance: random.Random) -> tuple[Any, list[dict[str, Any]]]:
    """Pixels [SIDE, SIDE, 3], and what is where: a digit somewhere in each quarter."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(chance.randrange(1 << 32)).integers(0, NOISE, (SIDE, SIDE), dtype=np.uint8)
    objects, half = [], SIDE // 2
    for quarter, (pixels, label) in enumerate(chosen):
        left, top = (half * side + chance.randrange(half - DIGIT) for side in (quarter % 2, quarter // 2))
        digit = Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((DIGIT, DIGIT), Image.BILINEAR)
        there = noise[top : top + DIGIT, left : left + DIGIT]
        np.maximum(there, np.asarray(digit), out=there)
        objects.append({"label": str(label), "box": [left, top, left + DIGIT, top + DIGIT]})
    return np.stack([noise] * 3, -1), objects


def write_what_sees(folder: Path) -> None:
    import transformers

    size = {"height": SIDE, "width": SIDE}
    transformers.SegformerImageProcessor(size=size).save_pretrained(folder)
    transformers.SegformerConfig(
        num_encoder_blocks=3, depths=[1, 1, 1], hidden_sizes=[24, 48, 96], sr_ratios=[4, 2, 1], strides=[2, 2, 2],
        patch_sizes=[5, 3, 3], num_attention_heads=[1, 2, 4], mlp_ratios=[2, 2, 2], decoder_hidden_size=64,
        hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    ).save_pretrained(folder)  # fmt: skip


def write_what_says(folder: Path, texts: list[str]) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    trained = trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    words.train_from_iterator(texts, trained)
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(folder)
    transformers.BartConfig(
        vocab_size=words.get_vocab_size(), d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=128,
        decoder_ffn_dim=128, encoder_attention_heads=4, decoder_attention_heads=4, activation_function="relu",
        dropout=0.0, attention_dropout=0.0, init_std=0.05, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None,
    ).save_pretrained(folder)  # fmt: skip


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
