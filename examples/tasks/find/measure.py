"""Asks the endpoint where the digits are: one is found when its label is right and its box covers half of what the two
cover together.

The answer is regions that hang together, so a digit that looks like two is two pieces: these are joined, and specks do
not count.
Beside it a program without learning where: what is brighter than the noise and hangs together, read by logistic
regression on 8 x 8 pixels.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prepare import HELD_OUT, NOISE, SIDES
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from llmsched import Client

DATA = Path(__file__).parent / "data"
AT_ONCE, SPECK, NEAR = 30, min(SIDES) / 2, 2  # SPECK and NEAR in pixels
Region = tuple[str, list[float]]


def main() -> None:
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text().splitlines()]
    images = [(DATA / row["image"]).read_bytes() for row in rows]
    true = [[(each["label"], each["box"]) for each in row["objects"]] for row in rows]
    said: list[list[dict[str, Any]]] = [[] for _ in rows]
    chat = Client().chat("find-api")
    for start in range(0, len(rows), AT_ONCE):
        some = [{"image": base64.b64encode(image).decode()} for image in images[start : start + AT_ONCE]]
        for each in chat.classify(some):
            said[start + each["index"]].append(each)
    number = f1([digits_of(each) for each in said], true)
    print(json.dumps({"number": number, "baseline": f1(by_brightness(rows), true)}))


def digits_of(said: list[dict[str, Any]]) -> list[Region]:
    """Pieces whose boxes meet are of one digit, while they are no larger than one; its label is that of most of it."""
    parts: list[tuple[list[float], Counter[str]]] = []
    for each in sorted(said, key=lambda one: -area(one["at"]["box"])):
        box, votes = each["at"]["box"], Counter({each["label"]: each["score"] * area(each["at"]["box"])})
        for place, (other, known) in enumerate(parts):
            both = [*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:])]
            if meet(box, other) and max(both[2] - both[0], both[3] - both[1]) <= max(SIDES) + NEAR:
                parts[place] = both, known + votes
                break
        else:
            parts.append((box, votes))
    whole = (part for part in parts if min(part[0][2] - part[0][0], part[0][3] - part[0][1]) >= SPECK)
    return [(votes.most_common(1)[0][0], box) for box, votes in whole]


def by_brightness(rows: list[dict[str, Any]]) -> list[list[Region]]:
    digits = load_digits()
    reads = LogisticRegression(max_iter=2000).fit(digits.data[:-HELD_OUT] / 16, digits.target[:-HELD_OUT])
    found: list[list[Region]] = []
    for row in rows:
        picture = Image.open(DATA / row["image"]).convert("L")
        parts, _ = ndimage.label(np.asarray(picture) > NOISE, np.ones((3, 3)))
        there: list[Region] = []
        for down, across in ndimage.find_objects(parts):
            box = [across.start, down.start, across.stop, down.stop]
            if max(box[2] - box[0], box[3] - box[1]) >= SPECK:
                seen = np.asarray(picture.crop(tuple(box)).resize((8, 8), Image.BILINEAR)) / 255
                there.append((str(reads.predict(seen.reshape(1, -1))[0]), box))
        found.append(there)
    return found


def f1(found: list[list[Region]], true: list[list[Region]]) -> float:
    hits = 0
    for some, there in zip(found, true, strict=True):
        left = [*there]
        for label, box in some:
            match = next((one for one in left if one[0] == label and overlap(box, one[1]) >= 0.5), None)
            if match is not None:
                left.remove(match)
                hits += 1
    return 2 * hits / max(sum(map(len, found)) + sum(map(len, true)), 1)


def meet(one: list[float], other: list[float]) -> bool:
    return all(one[side] < other[side + 2] + NEAR and other[side] < one[side + 2] + NEAR for side in (0, 1))


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: list[float], other: list[float]) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (area(one) + area(other) - shared)


if __name__ == "__main__":
    main()
