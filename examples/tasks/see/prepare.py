"""Writes scikit-learn's digits as images with a label, and a small ConvNeXt without weights. `python prepare.py`

1,797 digits of 8 x 8 pixels, as people wrote them (UCI's optdigits, CC BY 4.0). The last 360 are held out: a harder
fifth than one of chance, as neighbours in the file are alike.
"""

from __future__ import annotations

import json
from pathlib import Path

HELD_OUT = 360
SIZE = 8  # pixels of a side


def prepare(folder: Path) -> None:
    import transformers
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    rows = []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(folder / "images" / f"{number}.png")
        rows.append({"image": f"images/{number}.png", "label": str(label)})
    for name, part in (("train", rows[:-HELD_OUT]), ("test", rows[-HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = transformers.ConvNextConfig(
        image_size=SIZE, patch_size=1, num_stages=3, hidden_sizes=[24, 48, 96], depths=[1, 1, 1],
        layer_scale_init_value=1.0,  # of a model that learns from nothing; the usual 1e-6 is for very deep ones
    )  # fmt: skip
    config.save_pretrained(folder / "model")
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "model")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
