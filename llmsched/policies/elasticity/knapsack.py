"""Steps up concave hulls, each with a price in GPUs and a gain; the best of them within so many GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SAME = 1.0 + 1e-9  # slopes that differ by less are one


class Step(NamedTuple):
    """Up a hull, to a size and its speed. `parts`: sizes on the way at which as much is gained by each GPU."""

    size: int
    speed: float
    parts: tuple[int, ...] = ()


class Offer(NamedTuple):
    """One step up a gang's hull, from size `low` to size `high`: it costs `gpus` and earns `gain` (weighted speed).
    Where all of it does not fit it may go to one of the `parts`."""

    gang: str
    low: int
    high: int
    gpus: float
    gain: float
    parts: tuple[int, ...] = ()

    def least(self) -> float:
        """GPUs that any of it costs."""
        return self.gpus if not self.parts else self.gpus * (self.parts[0] - self.low) / (self.high - self.low)


def take_best(offers: Sequence[Offer], capacity: float) -> tuple[dict[str, int], float]:
    """The size each gang gets, and the GPUs left over: best gain per GPU first. This is the greedy solution of a
    multiple-choice knapsack, at the price per GPU where its relaxation ends; it misses less of the optimum than its
    best refused step earns. Exchanging steps until the optimum was reached made completion times worse by resizing."""
    worth = [-offer.gain / max(offer.gpus, 1e-9) for offer in offers]
    chosen: dict[str, int] = {}
    for offer in offers:
        chosen.setdefault(offer.gang, offer.low)
    free, least = capacity, min((offer.least() for offer in offers), default=0.0)
    for number in sorted(range(len(offers)), key=worth.__getitem__):  # equals in the order given
        if free < least:
            break
        gang, low, high, gpus, _, parts = offers[number]
        if chosen[gang] != low:
            continue
        each = gpus / (high - low)
        to = high if gpus <= free else max((part for part in parts if (part - low) * each <= free), default=low)
        chosen[gang] = to
        free -= gpus if to == high else (to - low) * each
    return chosen, free


def hull(start: tuple[int, float], points: Sequence[tuple[int, float]]) -> tuple[Step, ...]:
    """Those of (size, speed) that no two others are above of."""
    found = [Step(*start)]
    for point in points:
        parts: tuple[int, ...] = ()
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], point) * SAME:
            last = found.pop()
            is_on_it = _slope(found[-1], last) * SAME >= _slope(last, point)
            parts = (*last.parts, last.size, *parts) if is_on_it else ()
        found.append(Step(*point, parts))
    return tuple(found[1:])


def _slope(low: tuple[int, float] | Step, high: tuple[int, float] | Step) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])
