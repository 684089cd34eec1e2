"""Which streets are jammed, by what their cameras see, or where that is nothing by what people report; beside it one of
the two alone, and a count of all that is brighter or darker than the road."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import rows_of
from PIL import Image
from roads import JAM, LEARNT, ROAD
from scipy import ndimage

AT_ONCE, NEAREST, SPECK = 40, 3, 8  # pixels of a vehicle
DARK, ROAD_IS, DIFFERS = (
    45,
    110,
    40,
)  # greys: a picture of a blind camera, a road, and how much what stands there differs


def compare(cameras: Any, reports: Any, data: Path) -> Iterator[tuple[str, float, float]]:
    """(part, number, the plain way's)"""
    streets = rows_of(data / "streets.jsonl")
    seen, said = in_sight(cameras, streets, data), [says_jam(reports, row["report"]) for row in streets]
    by_camera = [count >= JAM for count in seen]
    dark = [grey(data / row["image"]).mean() < DARK for row in streets]
    both = [words if is_dark else jam for is_dark, jam, words in zip(dark, by_camera, said, strict=True)]
    true = [row["jam"] for row in streets]
    yield "jams", agree(both, true), agree(by_camera, true)
    yield "jams_words", agree(both, true), agree(said, true)
    there = [(count, row) for count, row in zip(seen, streets, strict=True) if not row["is_blind"]]
    plain = [off(by_grey(data / row["image"]), row) for _, row in there]
    yield "vehicles", sum(off(count, row) for count, row in there) / len(there), sum(plain) / len(plain)


def agree(said: list[bool], true: list[bool]) -> float:
    return sum(one == other for one, other in zip(said, true, strict=True)) / len(true)


def off(count: int, row: dict[str, Any]) -> int:
    return abs(count - int(row["vehicles"]))


def in_sight(cameras: Any, streets: list[dict[str, Any]], data: Path) -> list[int]:
    """Vehicles of each picture: regions whose boxes meet are one."""
    images = [{"image": base64.b64encode((data / row["image"]).read_bytes()).decode()} for row in streets]
    found: list[list[list[float]]] = [[] for _ in streets]
    for begin in range(0, len(images), AT_ONCE):
        for each in cameras.classify(images[begin : begin + AT_ONCE]):
            box, boxes = each["at"]["box"], found[begin + each["index"]]
            if (box[2] - box[0]) * (box[3] - box[1]) >= SPECK and not any(meet(box, other) for other in boxes):
                boxes.append(box)
    return [len(boxes) for boxes in found]


def meet(one: list[float], other: list[float]) -> bool:
    return all(one[side] < other[side + 2] and other[side] < one[side + 2] for side in (0, 1))


def says_jam(reports: Any, text: str) -> bool:
    likest = [one for one in reports.post({"query": text, "k": 100})["passages"] if one["means"] in LEARNT][:NEAREST]
    return sum(one["score"] * (1 if one["means"] == "jam" else -1) for one in likest) > 0


def grey(file: Path) -> Any:
    return np.asarray(Image.open(file).convert("L"), float)


def by_grey(file: Path) -> int:
    road = grey(file)[:, slice(*ROAD)]
    parts, count = ndimage.label(abs(road - ROAD_IS) > DIFFERS)
    return int(sum((parts == one).sum() >= SPECK for one in range(1, count + 1)))
