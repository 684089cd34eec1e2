"""Writes pictures with a caption each, and a small ConvNeXt without weights. `python prepare.py`

Scikit-learn's digits (UCI's optdigits, CC BY 4.0). The captions are made: which digit it is, and whether it has more
ink than half of those of its kind ("a bold seven"). The last 180 are the gallery; their captions are not learnt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GALLERY, SIZE = 180, 8  # pictures; pixels of a side
NAMES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def prepare(folder: Path) -> None:
    import numpy
    import transformers
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    ink = digits.images.sum((1, 2))
    usual = [numpy.median(ink[:-GALLERY][digits.target[:-GALLERY] == digit]) for digit in range(10)]
    rows = []
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(folder / "images" / f"{number}.png")
        weight = "bold" if ink[number] > usual[digit] else "thin"
        rows.append({"image": f"images/{number}.png", "picture": number, "label": f"a {weight} {NAMES[digit]}"})
    write(folder / "train.jsonl", rows[:-GALLERY])
    write(folder / "asked.jsonl", rows[-GALLERY:])
    write(folder / "gallery.jsonl", [{"image": row["image"], "picture": row["picture"]} for row in rows[-GALLERY:]])
    config = transformers.ConvNextConfig(
        image_size=SIZE, patch_size=1, num_stages=3, hidden_sizes=[24, 48, 96], depths=[1, 1, 1],
        layer_scale_init_value=1.0,  # of a model that learns from nothing; the usual 1e-6 is for very deep ones
    )  # fmt: skip
    config.save_pretrained(folder / "model")
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "model")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
