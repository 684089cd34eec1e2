"""Metrics as functions of sums: what is counted of each batch can be added up over batches and workers, so that a
metric is exact at any number of them. Each one equals that of the library that people compare with (tests say which).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def tally(said: Any, true: Any, classes: int) -> list[float]:
    """Of numbers below `classes`: how often each was said rightly, said, and true. [3 * classes]"""
    said, true = torch.as_tensor(said, dtype=torch.int64), torch.as_tensor(true, dtype=torch.int64)
    each = [torch.bincount(part.flatten().cpu(), minlength=classes) for part in (true[said == true], said, true)]
    return [float(number) for number in torch.cat(each)]


def of_labels(counts: Sequence[float]) -> dict[str, float]:
    """scikit-learn's accuracy, and macro averages over the classes that occur (zero_division=0)."""
    right, said, true = (list(part) for part in torch.tensor(counts, dtype=torch.float64).view(3, -1).tolist())
    there = [number for number in range(len(right)) if said[number] or true[number]]
    precision = _mean([_share(right[n], said[n]) for n in there])
    recall = _mean([_share(right[n], true[n]) for n in there])
    f1 = _mean([_share(2 * right[n], said[n] + true[n]) for n in there])
    iou = _mean([_share(right[n], said[n] + true[n] - right[n]) for n in there])
    accuracy = _share(sum(right), sum(true))
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "mean_iou": iou}


def of_found(right: float, said: float, true: float) -> dict[str, float]:
    """Of things that are found or not, all together (micro), as seqeval has it."""
    return {"precision": _share(right, said), "recall": _share(right, true), "f1": _share(2 * right, said + true)}


def of_numbers(counts: Sequence[float]) -> dict[str, float]:
    """Of [rows, sum, sum of squares, squared errors, absolute errors]: scikit-learn's mean errors and r2."""
    rows, total, squares, squared, absolute = counts
    spread = squares - total * total / max(rows, 1.0)
    return {
        "mse": _share(squared, rows),
        "mae": _share(absolute, rows),
        "r2": 1.0 - squared / spread if spread > 0 else float(squared == 0),
    }


def chunks(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of the entities in BIO, IOBES or plain tags, as conlleval and seqeval find them."""
    found: set[tuple[str, int, int]] = set()
    before, kind_before, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-") if "-" in tag else (tag if tag == "O" else "I", "", tag)
        kind = "" if mark == "O" else kind
        if before != "O" and (mark in "BSUO" or before in "ESL" or kind != kind_before):
            found.add((kind_before, start, place - 1))
        if mark != "O" and (before == "O" or mark in "BSU" or before in "ESL" or kind != kind_before):
            start = place
        before, kind_before = mark, kind
    return found


def edits(said: Sequence[Any], true: Sequence[Any]) -> int:
    """How many must be put in, taken out or replaced to make one of the other (Levenshtein); jiwer's error rates are
    sums of it over sums of lengths."""
    row = list(range(len(said) + 1))
    for place, wanted in enumerate(true, 1):
        before, row[0] = row[0], place
        for column, each in enumerate(said, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (each != wanted))
    return row[-1]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """What both boxes cover of what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / max(sum(areas) - shared, 1e-9)
