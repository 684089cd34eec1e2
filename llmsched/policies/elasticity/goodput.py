"""Sizes that finish the most work soonest: every GPU goes where it earns most, and the price of waiting decides.

Each gang's speed at every size is known or taken as linear. Work left that nobody knows goes by levels of what a gang
has had, so that equals, of which each could use everything, do not take turns. Holding up a gang holds up all that end
after it, so its speed is worth its rank among them: with m gangs, the one with the r-th least work left weighs
((m - r) / m) ** RANK, tilted a little by the work left itself. GPUs are then given out along the concave hull of each
speed-up curve, best gain per GPU first (the greedy solution of a knapsack whose relaxation has a price per GPU). A gang
that gets none should hold none: who ends soon comes first.

Changing a size costs a restart. What a running gang has already is worth more by the restart's share of the time it
can be enjoyed (STEADY_S, or until the gang ends), and nobody grows who would not end sooner for it. Who is still
starting keeps its size. GPUs left over go to whoever has least work left and still gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmsched.core.policy import View
from llmsched.core.records import GangState, allowed_sizes, speed
from llmsched.core.workload import Workload

RANK = 0.75
TILT = 0.1  # between neighbours in rank, what is left matters too: seconds never wait for hours
SHORT_S = 60.0  # but nobody is so short that it outweighs everything
KEEP = 0.2  # how much more what one has is worth than what one could get
STEADY_S = 300.0  # how long an allocation is expected to last
LEVEL_S = 1800.0  # service at which the first level of a gang nobody knows anything about ends, and its work left there
LEVEL_GROWTH = 4.0  # each level is that many times longer than the one before


class Curve(NamedTuple):
    """(size, speed relative to min_size) at sizes worth having: each faster than all smaller ones; and their hull."""

    points: tuple[tuple[int, float], ...]
    hull: tuple[tuple[int, float], ...]


class Goodput:
    period_s = 60.0

    def __init__(self) -> None:
        self._curves: dict[tuple[object, ...], Curve] = {}

    def share(self, gangs: Sequence[GangState], capacity: int, view: View) -> Mapping[str, int]:
        rows = sorted(
            ((self._work_left(gang, view), gang.submitted_at, gang.id, gang) for gang in gangs), key=lambda row: row[:3]
        )
        cost = view.scheduling.restart_cost_s
        count = len(rows)
        chosen = {gang.id: 0 for *_, gang in rows}
        gains: list[tuple[float, int, int, int]] = []  # (-gain per GPU, rank, from size, to size)
        curves = [self._curve(gang.spec) for *_, gang in rows]
        for rank, (left, _, _, gang) in enumerate(rows):
            weight = ((count - rank) / count) ** RANK / max(left, SHORT_S) ** TILT
            before = (0, 0.0)
            for point in curves[rank].hull:
                gain = weight * (point[1] - before[1]) / (point[0] - before[0])
                if gang.size >= point[0]:
                    ends_in = left / max(view.speed(gang, gang.size), 1e-9)
                    gain *= 1 + KEEP + cost / max(1.0, min(STEADY_S, ends_in))
                gains.append((-gain, rank, before[0], point[0]))
                before = point
        gains.sort()
        free = float(capacity)
        settling: set[int] = set()
        for rank, (_, _, _, gang) in enumerate(rows):
            if gang.size and view.held_for_s(gang) < max(cost, 1.0):
                settling.add(rank)
                chosen[gang.id] = gang.size
                free -= gang.size * view.gpus_per_bundle(gang)
        for _, rank, low, high in gains:
            gang = rows[rank][3]
            price = (high - low) * view.gpus_per_bundle(gang)
            if chosen[gang.id] == low and price <= free and rank not in settling:
                chosen[gang.id] = high
                free -= price
        for (left, _, _, gang), curve in zip(rows, curves, strict=True):
            size = chosen[gang.id]
            if gang.size and size > gang.size and not _pays(curve, gang.size, size, left, cost):
                free += (size - gang.size) * view.gpus_per_bundle(gang)
                chosen[gang.id] = gang.size
        for rank, ((left, _, _, gang), curve) in enumerate(zip(rows, curves, strict=True)):
            if free < view.gpus_per_bundle(gang) or rank in settling:
                continue
            size = chosen[gang.id]
            for bigger, _ in reversed(curve.points):
                price = (bigger - size) * view.gpus_per_bundle(gang)
                keeps = bigger == gang.size or not gang.size or size < gang.size
                if bigger > size and price <= free and (keeps or _pays(curve, gang.size, bigger, left, cost)):
                    chosen[gang.id] = bigger
                    free -= price
                    break
        return chosen

    def _work_left(self, gang: GangState, view: View) -> float:
        """Seconds at min_size; unknown work is taken to last to the end of the level that it has reached."""
        left = view.work_left(gang)
        if left is None:
            left, served = LEVEL_S, view.service_s(gang)
            while left < served:
                left *= LEVEL_GROWTH
        return left

    def _curve(self, spec: Workload) -> Curve:
        key = (spec.speedup, spec.sizes, spec.min_size, spec.max_size, spec.step)
        found = self._curves.get(key)
        if found is None:
            if len(self._curves) > 10_000:
                self._curves.clear()
            found = self._curves[key] = _curve(spec)
        return found


def _curve(spec: Workload) -> Curve:
    points: list[tuple[int, float]] = []
    for size in allowed_sizes(spec):
        rate = speed(spec, size)
        if not points or rate > points[-1][1] * 1.001:
            points.append((size, rate))
    hull: list[tuple[int, float]] = [(0, 0.0)]
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return Curve(tuple(points), tuple(hull[1:]))


def _slope(low: tuple[int, float], high: tuple[int, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])


def _pays(curve: Curve, now: int, then: int, left: float, cost: float) -> bool:
    """Whether a running gang ends sooner by changing its size, the restart included."""
    speeds = dict(curve.points)
    if now not in speeds:
        return True
    return left / speeds[then] + cost < left / speeds[now]
