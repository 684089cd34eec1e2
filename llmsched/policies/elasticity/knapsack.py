"""Steps up concave hulls, each with a price in GPUs and a gain; the best of them within so many GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SAME = 1.0 + 1e-9  # slopes that differ by less are one


class Offer(NamedTuple):
    """One step up a gang's hull, from size `low` to size `high`: it costs `gpus` and earns `gain` (weighted speed)."""

    gang: str
    low: int
    high: int
    gpus: float
    gain: float


def take_best(offers: Sequence[Offer], capacity: float) -> tuple[dict[str, int], float]:
    """The size each gang gets, and the GPUs left over: best gain per GPU first. This is the greedy solution of a
    multiple-choice knapsack, at the price per GPU where its relaxation ends; it misses less of the optimum than its
    best refused step earns. Exchanging steps until the optimum was reached made completion times worse by resizing."""
    worth = [-gain / max(gpus, 1e-9) for _, _, _, gpus, gain in offers]
    chosen: dict[str, int] = {}
    for offer in offers:
        chosen.setdefault(offer.gang, offer.low)
    free, least = capacity, min((offer.gpus for offer in offers), default=0.0)
    for number in sorted(range(len(offers)), key=worth.__getitem__):  # equals in the order given
        if free < least:
            break
        gang, low, high, gpus, _ = offers[number]
        if gpus <= free and chosen[gang] == low:
            chosen[gang] = high
            free -= gpus
    return chosen, free


def hull(start: tuple[int, float], points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Those of (size, speed) that no two others are above of. Those on a line are all of it, so that one who gains the
    same by each GPU may have some of them where all do not fit."""
    found = [start]
    for point in points:
        while len(found) > 1 and _slope(found[-2], found[-1]) * SAME < _slope(found[-1], point):
            found.pop()
        found.append(point)
    return tuple(found[1:])


def _slope(low: tuple[int, float], high: tuple[int, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])
