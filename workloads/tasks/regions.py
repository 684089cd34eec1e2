"""Regions of an image as rows have them: [{"label", "box": [left, top, right, bottom]}], in pixels of it as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmsched.data.messages import Unusable
from workloads.tasks.task import Read


def regions_of(given: Any) -> list[dict[str, Any]]:
    """Raises Unusable."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise Unusable('has regions that are no list of {"label", "box": [left, top, right, bottom]}')
    for each in given:
        label, box = each.get("label"), each.get("box", each.get("bbox"))
        is_box = isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
        if not isinstance(label, str) or not is_box or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise Unusable(f"has the region {each!r}; expected a label and a box [left, top, right, bottom]")
    return [{"label": each["label"].strip(), "box": each.get("box", each.get("bbox"))} for each in given]


def counted(read: Sequence[Read]) -> Counter[str]:
    """How many regions of each label there are."""
    return Counter(region["label"] for _, rows, _ in read for row in rows for region in row["label"])


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """What both boxes cover of what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / max(sum(areas) - shared, 1e-9)
