"""Nobody far behind, no long tail, otherwise the least work first: three tiers among gangs of equal priority.

1. Gangs about to be treated unfairly, worst first. A gang's projected finish-time fairness is the time it will have
   taken if it runs from now on, over its fair time: its run time alone x the jobs per GPU seen so far (Shockwave,
   NSDI 2023). Above GUARD it must not wait any longer.
2. Long poles, longest first (of those about as long, who runs stays): what may need at least POLE of the time in which
   all known work could end. Started late, it would run alone at the end, on a cluster that is otherwise idle.
3. The rest by seconds left x the root of its GPUs, least first: between the shortest time and the smallest area.

Run times are beliefs (core/estimate.py): the best source's guess x the ratios real / guessed of the runs that ended, of
those only that lasted longer than this one has so far. Each tier asks for the quantile at which being wrong would hurt
it: the first how short the run may be (LEAST), since a short run's fair time is short, the second how long (MOST), the
third for the mean. Exact estimates make the three equal.

The jobs per GPU are those ever submitted, as Shockwave divides by all jobs of its trace. On a cluster that lives for
years fair times grow with them and the first tier comes to be empty; that nobody waits for ever is then the lane's.
Counting those that are there now was measured: the makespan of shockwave_120 is 28,800 s in place of 20,998 s.

Without a run time nobody knows what would be unfair, and there are no tiers 1 and 2: tier 3 orders by levels of
GPU-seconds attained; inside a level who runs stays, and among those who wait the oldest is next, so that equals do not
take turns. What somebody who runs has not saved does not count as attained: if it were evicted now it would have to be
done again. So of equals nobody with a day of unsaved work leaves where others would do. That nobody waits for ever is
for the lane (core/lane.py). Priority goes before all of it. The constants were chosen on the development traces;
`tests/benchmarks/quality.py` has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, fsum, log
from typing import Any

from llmsched.core.estimate import Outlook
from llmsched.core.policy import GangView, Knobs, View
from llmsched.policies.ordering.finish_time_index import FinishTimeIndex, Limits, gpus_of, limits_of

GUARD = 0.9  # projected unfairness from which a gang goes first
LEAST = 0.1
MOST = 0.8
POLE = 0.8
SIMILAR = log(1.05)  # long poles that differ by less stay as they are: two gangs exchange a place only once
LEVEL_GPU_S = 3600.0  # GPU-seconds attained at which the first level of tier 3 ends
LEVEL_GROWTH = 4.0  # each level is that many times longer than the one before


class FinishTimeFair:
    static = False
    by_priority = True

    @dataclass(frozen=True)
    class Options:
        guard: float = GUARD
        pole: float = POLE

        def __post_init__(self) -> None:
            if min(self.guard, self.pole) <= 0:
                raise ValueError("every option must be more than 0")

    def __init__(self, options: Knobs[Options] | None = None) -> None:
        self._options = options or Knobs(self.Options())
        self._bound = 0.0
        self._contention = 1.0
        self._declared = Outlook(1.0, 1.0, 1.0)  # of a declared second
        self._limits: dict[str, Limits] = {}  # by queue, in this pass

    def index(self) -> FinishTimeIndex:
        return FinishTimeIndex(self._limits_of)

    def _limits_of(self, queue: str) -> Limits:
        limits = self._limits.get(queue)
        if limits is None:
            knobs = self._options.of(queue)
            limits = limits_of(knobs.guard, self._contention, knobs.pole * self._bound, self._declared)
            self._limits[queue] = limits
        return limits

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        spec = gang.spec
        knobs = self._options.of(spec.queue)
        urgency = -spec.priority
        done = view.service_s(gang)
        waited = view.now - gang.submitted_at - done
        outlook = view.outlook(gang, LEAST, MOST)
        if outlook is None:
            level = _level((done - view.unsaved_s(gang)) * gpus_of(gang))
            return (urgency, 2, level, not gang.is_holding())
        unfairness = (waited + outlook.least_s) / (outlook.least_s * self._contention)
        if unfairness >= knobs.guard:
            return (urgency, 0, -round(unfairness, 6))
        if outlook.most_left_s >= knobs.pole * self._bound:
            return (urgency, 1, -_floor(outlook.most_left_s), not gang.is_holding())
        return (urgency, 2, round(outlook.left_s * gpus_of(gang) ** 0.5, 3))

    def prepare(self, view: View) -> None:
        """The earliest time at which all known work can end, and how crowded the cluster has been."""
        longest, total = view.work_ahead()
        areas = [total]
        for gang, count in view.of_models():
            outlook = view.outlook(gang, LEAST, MOST)
            if outlook is not None:
                longest = max(longest, outlook.left_s)
                area = outlook.left_s * (gang.size or gang.spec.min_size) * view.gpus_per_bundle(gang)
                areas.append(area * count)
        gpus = max(view.gpus(), 1)
        self._bound = max(longest, fsum(areas) / gpus)  # exact: in any order
        self._contention = max(1.0, view.jobs() / gpus)
        self._declared = view.of_declared(LEAST, 1.0)
        self._limits.clear()


def _floor(seconds: float) -> float:
    """The shortest of those that are taken for as long: whoever has only a little more to do evicts nobody for it."""
    return exp(floor(log(max(seconds, 1.0)) / SIMILAR) * SIMILAR) * (1 - 1e-9)


def _level(gpu_s: float) -> int:
    """0 below LEVEL_GPU_S, then one more for every LEVEL_GROWTH-fold."""
    level, end = 0, LEVEL_GPU_S
    while gpu_s >= end:
        level, end = level + 1, end * LEVEL_GROWTH
    return level
