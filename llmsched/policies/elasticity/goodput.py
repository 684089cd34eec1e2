"""Sizes that finish the most work soonest: every GPU goes where it earns most, and the price of waiting decides.

Each gang's speed at every size is known or taken as linear. Work left that nobody knows goes by levels of what a gang
has had, so that equals, of which each could use everything, do not take turns. Holding up a gang holds up all that end
after it, so its speed is worth its rank among them: with m gangs, the one with the r-th least work left weighs
((m - r) / m) ** RANK; who waits and is done within LONG_S weighs more, the shorter the more. GPUs are then given out
along the concave hull of each speed-up curve, best gain per GPU first (the greedy solution of a knapsack whose
relaxation has a price per GPU). By rank a gang that gets none holds none: who ends soon comes first. Otherwise all hold
their least, and what is beyond that is given out.

Changing a size costs a restart. What a running gang has already is worth more by the restart's share of the time it
can be enjoyed (STEADY_S, or until the gang ends), and nobody grows who would not end sooner for it. GPUs left over stay
with who has them, then go to whoever has least work left and still gains. Who is still starting keeps its size, and
changes nothing of what others should have.

An endpoint of their queue and priority is weighed against them where both cannot be had (worth.py): it has the replicas
that are worth more, by the requests that hold its target for them, than the speed. `replica_weight`: how much more; 0,
as it is where nobody says so, gives it all that it asks for.

So sizes come to rest. On the way to what was chosen, what was taken rises in worth and what was let go falls, so the
same is chosen again, until the order of work left changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from llmsched.core.policy import CLUSTER_WIDE, GangView, Knobs, View, WorkloadView
from llmsched.core.records import allowed_sizes, speed
from llmsched.core.workload import Workload
from llmsched.policies.elasticity import worth
from llmsched.policies.elasticity.knapsack import Offer, Step, hull, take_best

RANK = 0.75
TILT = 0.4  # how much more very short work weighs that waits: seconds never wait for hours, whatever those hold already
SHORT_S, LONG_S = 60.0, 240.0  # from which it weighs most, and no more than others: among long work rank is enough
KEEP = 0.5  # how much more what one has is worth than what one could get
PERIOD_S = 60.0  # between two looks at the sizes
REPLICA_WEIGHT = 0.0  # as long as weighing misses more targets than what fine-tunes gain by it is worth
STEADY_S = 300.0  # how long an allocation is expected to last
LEVEL_S = 1800.0  # service at which the first level of a gang nobody knows anything about ends, and its work left there
LEVEL_GROWTH = 4.0  # each level is that many times longer than the one before


class Curve(NamedTuple):
    """(size, speed relative to min_size) at sizes worth having: each faster than all smaller ones; their hull from
    nothing, and that from the smallest of them."""

    points: tuple[tuple[int, float], ...]
    hull: tuple[Step, ...]
    above: tuple[Step, ...]


class Row(NamedTuple):
    """One that is asked about. `left`: its work; `each`: GPUs of a bundle; `least`: the size it has in any case."""

    left: float
    gang: GangView
    id: str
    size: int
    each: float
    least: int
    curve: Curve


class Goodput:
    @dataclass(frozen=True)
    class Options:
        period_s: float = field(default=PERIOD_S, metadata=CLUSTER_WIDE)
        keep: float = KEEP
        steady_s: float = STEADY_S
        replica_weight: float = REPLICA_WEIGHT

        def __post_init__(self) -> None:
            if self.period_s < 1 or self.keep < 0 or self.steady_s < 1 or self.replica_weight < 0:
                raise ValueError("period_s and steady_s must be at least 1, keep and replica_weight at least 0")

    def __init__(self, options: Knobs[Options] | None = None) -> None:
        self._options = options or Knobs(self.Options())
        self.period_s = self._options.common.period_s
        self._curves: dict[tuple[object, ...], Curve] = {}

    def share(self, gangs: Sequence[GangView], capacity: float, view: View) -> Mapping[str, int]:
        rows, cost = self._ranked(gangs, view), view.scheduling.restart_cost_s
        room = capacity - sum(row.least * row.each for row in rows)
        least, free, smallest = {row.id: row.least for row in rows}, room, min((row.each for row in rows), default=0)
        chosen = {gang.id: least[gang.id] for gang in gangs}
        if room >= smallest:  # of thousands that cannot even have their least nobody gets more
            taken, free = take_best(self._offers(rows, view, room), room)
            chosen |= taken
        for left, _, name, has, each, _, curve in rows:
            size = chosen[name]
            if has and size > has and not _pays(curve, has, size, left, cost):
                free += (size - has) * each
                chosen[name] = has
        for grows in (False, True):  # first what they have, in order, or who comes first would take it from them
            for left, _, name, has, each, _, curve in rows if free >= smallest else ():
                size = chosen[name]
                for bigger, _ in reversed(curve.points) if free >= each else ():
                    if bigger <= size:
                        break
                    pays = bigger <= has or (grows and _pays(curve, has, bigger, left, cost))
                    if (bigger - size) * each <= free and pays:
                        chosen[name] = bigger
                        free -= (bigger - size) * each
                        break
        return self._settled(rows, chosen, capacity, view)

    def _settled(self, rows: Sequence[Row], chosen: dict[str, int], capacity: float, view: View) -> dict[str, int]:
        """Those that are still starting keep their size, and others wait for it. What anybody should have in the end is
        the same meanwhile, or what one takes while another starts would be taken back when that one runs."""
        cost = max(view.scheduling.restart_cost_s, 1.0)
        chosen = chosen | {row.id: row.size for row in rows if row.size and view.held_for_s(row.gang) < cost}
        over = sum(chosen[row.id] * row.each for row in rows if chosen[row.id]) - capacity
        for _, gang, name, has, each, least, _ in reversed(rows) if over > 0 else ():
            if over <= 0:
                break
            size, back = chosen[name], max(has, least)
            if size <= back:
                chosen[name] = min(size, back)
                continue
            fitting = [to for to in view.sizes(gang) if back <= to < size and (size - to) * each >= over]
            chosen[name] = min(size, max(fitting, default=back))
            over -= (size - chosen[name]) * each
        return chosen

    def replicas(
        self, serve: WorkloadView, low: int, asked: int, gangs: Sequence[GangView], capacity: float, view: View
    ) -> tuple[int, str]:
        """As many as are worth more than what the gangs would make of their GPUs, and who makes most of the rest."""
        knobs = self._options.of(serve.workload.queue)
        each = view.gpus_of_replica(serve)
        room = capacity - sum(_least(gang, view) * view.gpus_per_bundle(gang) for gang in gangs)
        theirs = worth.in_gpus(self.offers(gangs, view), gangs, view)
        if not each or not knobs.replica_weight or room >= asked * each + sum(offer.gpus for offer in theirs):
            return asked, ""
        keeps = 1 + knobs.keep + view.scheduling.restart_cost_s / knobs.steady_s
        mine = worth.offers_of(serve, low, asked, each, knobs.replica_weight, keeps, view)
        chosen, free = take_best([*mine, *theirs], room - low * each)
        replicas = min(asked, chosen.get(worth.ENDPOINT, low) + max(0, int(free / each)))
        if replicas == asked:
            return asked, ""
        without, _ = take_best(theirs, room - asked * each)
        gains = [((chosen[g.id] - without[g.id]) * view.gpus_per_bundle(g), g.id) for g in gangs if g.id in chosen]
        most = max((gain for gain, _ in gains), default=0.0)
        return (replicas, next(name for gain, name in gains if gain == most)) if most > 0 else (asked, "")

    def offers(self, gangs: Sequence[GangView], view: View) -> list[Offer]:
        """What GPUs would earn beyond what each holds in any case: along each hull the gain per GPU only falls."""
        return self._offers(self._ranked(gangs, view), view)

    def _offers(self, rows: Sequence[Row], view: View, room: float = inf) -> list[Offer]:
        """Nothing for those that come after so many like them that the first of these would have all the room."""
        cost, asked = view.scheduling.restart_cost_s, dict[tuple[float, float, int], float]()
        count = len(rows)
        found = []
        for rank, (left, gang, name, has, each, least, curve) in enumerate(rows):
            if not has and not least:
                like, first = (left, each, id(curve)), curve.hull[0]
                before = asked.get(like, 0.0)
                if before > room:
                    continue
                asked[like] = before + each * (first.parts[0] if first.parts else first.size)
            weight = ((count - rank) / count) ** RANK
            if not has and left < LONG_S:
                weight *= (LONG_S / max(left, SHORT_S)) ** TILT
            keeps = 1.0  # what it has already is worth more by what a restart would cost
            if has:
                ends_in = left / max(view.speed(gang, has), 1e-9)
                knobs = self._options.of(gang.spec.queue)
                keeps = 1 + knobs.keep + cost / max(1.0, min(knobs.steady_s, ends_in))
            is_sure = least > 0
            (low, slow), steps = (curve.points[0], curve.above) if is_sure else ((0, 0.0), curve.hull)
            for high, fast, parts in steps:
                if is_sure and low < has < high:  # the part of a step that it has is worth as much more
                    part = (fast - slow) * (has - low) / (high - low)
                    below = tuple(size for size in parts if size < has)
                    found.append(Offer(name, low, has, (has - low) * each, weight * part * keeps, below))
                    low, slow, parts = has, slow + part, tuple(size for size in parts if size > has)
                gain = weight * (fast - slow)
                found.append(Offer(name, low, high, (high - low) * each, gain * keeps if has >= high else gain, parts))
                low, slow = high, fast
        return found

    def _ranked(self, gangs: Sequence[GangView], view: View) -> list[Row]:
        """Least work left first."""
        rows = sorted((self._work_left(gang, view), gang.submitted_at, gang.id, gang) for gang in gangs)
        found = []
        for left, _, name, gang in rows:
            each, least, curve = view.gpus_per_bundle(gang), _least(gang, view), self._curve(gang.spec)
            found.append(Row(left, gang, name, gang.size, each, least, curve))
        return found

    def _work_left(self, gang: GangView, view: View) -> float:
        """Seconds at min_size; unknown work is taken to last to the end of the level that it has reached."""
        left = view.work_left(gang)
        if left is None:
            left, served = LEVEL_S, view.service_s(gang)
            while left < served:
                left *= LEVEL_GROWTH
        return left

    def _curve(self, spec: Workload) -> Curve:
        told = spec.groups[0].options[0].speedup or spec.speedup
        key = (told, spec.sizes, spec.min_size, spec.max_size, spec.step)
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
    return Curve(tuple(points), hull((0, 0.0), points), hull(points[0], points[1:]))


def _least(gang: GangView, view: View) -> int:
    """What it holds in any case: by rank one may rest, otherwise nobody goes below the least, for nobody."""
    return 0 if view.scheduling.preemption.within_queue == "by_rank" else view.sizes(gang)[0]


def _pays(curve: Curve, now: int, then: int, left: float, cost: float) -> bool:
    """Whether a running gang ends sooner by changing its size, the restart included."""
    speeds = dict(curve.points)
    if now not in speeds:
        return True
    return left / speeds[then] + cost < left / speeds[now]
