"""Writes scikit-learn's digits as images with a label (UCI's optdigits, CC BY 4.0), those of examples/tasks/see without
its model. `python prepare.py`"""

from __future__ import annotations

import json
from pathlib import Path

HELD_OUT = 360


def prepare(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits, rows = load_digits(), []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(folder / "images" / f"{number}.png")
        rows.append({"image": f"images/{number}.png", "label": str(label)})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-HELD_OUT]))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
