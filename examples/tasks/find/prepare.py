"""Writes pictures of digits in noise with a box around each, and a small SegFormer without weights. `python prepare.py`

The digits are scikit-learn's (UCI's optdigits, CC BY 4.0), one to three in a picture of 40 x 40 pixels, anywhere and of
two sizes. Those of the test are digits that no other picture shows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TRAIN, TEST, HELD_OUT = 3000, 150, 360
SIZE, SIDES = 40, (12, 16)  # pixels of a picture's side, and of a digit's
NOISE = 90  # of 255
_SEED = 7


def prepare(folder: Path) -> None:
    import transformers
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    known = [*zip(digits.images, digits.target, strict=True)]
    for name, count, part in (("train", TRAIN, known[:-HELD_OUT]), ("test", TEST, known[-HELD_OUT:])):
        chance, rows = random.Random(f"{_SEED}{name}"), []
        for number in range(count):
            pixels, objects = picture(part, chance)
            file = f"images/{name}-{number}.png"
            Image.fromarray(pixels).save(folder / file)
            rows.append({"image": file, "objects": objects})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = {"height": SIZE, "width": SIZE}
    transformers.SegformerImageProcessor(size=size).save_pretrained(folder / "model")
    transformers.SegformerConfig(
        num_encoder_blocks=3, depths=[1, 1, 1], hidden_sizes=[24, 48, 96], sr_ratios=[4, 2, 1], strides=[2, 2, 2],
        patch_sizes=[5, 3, 3], num_attention_heads=[1, 2, 4], mlp_ratios=[2, 2, 2], decoder_hidden_size=64,
        hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    ).save_pretrained(folder / "model")  # fmt: skip


def picture(known: list[Any], chance: random.Random) -> tuple[Any, list[dict[str, Any]]]:
    """Pixels [SIZE, SIZE, 3], and what is where."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(chance.randrange(1 << 32)).integers(0, NOISE, (SIZE, SIZE), dtype=np.uint8)
    objects: list[dict[str, Any]] = []
    for _ in range(chance.randrange(1, 4)):
        pixels, label = chance.choice(known)
        side = chance.choice(SIDES)
        for _ in range(50):
            left, top = chance.randrange(SIZE - side), chance.randrange(SIZE - side)
            box = [left, top, left + side, top + side]
            if all(apart(box, each["box"]) for each in objects):
                digit = Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((side, side), Image.BILINEAR)
                there = noise[top : top + side, left : left + side]
                np.maximum(there, np.asarray(digit), out=there)
                objects.append({"label": str(label), "box": box})
                break
    return np.stack([noise] * 3, -1), objects


def apart(one: list[int], other: list[int]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
