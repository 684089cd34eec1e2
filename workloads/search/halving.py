"""ASHA: at each rung the best part of all that came there so far goes on (Li et al. 2020).

A trial waits at a rung (`llmsched/runtime/rungs.py`), so nobody is late with a verdict and trials that come to one at
about the same time are judged together, and beside as many as may still come: alone, whoever comes first always goes
on. Nobody waits for one that does not run, nor for long: with a single GPU each is judged as it comes.

The rule is ours. Ray Tune's ASHAScheduler hears of one trial after the other, and compares each with those before it
alone: told of the best first, it lets one of four go on where two are worth it, told of the worst first, all.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmsched.runtime.rungs import Rungs
from workloads.search.schedulers import Verdict, given, max_t
from workloads.search.trials import Trial

_RUNS = ("starting", "running", "resizing")
PATIENCE_S = 60.0  # for those on the way to the same rung: GPUs stand still meanwhile
_GRACE, _REDUCTION = 1, 4.0  # Ray Tune's, where the spec says nothing


class _Waiting(NamedTuple):
    trial: Trial
    rung: int
    value: float
    since: float


class Halving:
    def __init__(self, tune: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        end, args = max_t(tune), given(tune, "grace_period", "reduction_factor")
        assert end is not None, "the spec says where a trial ends"
        self._least = args.get("reduction_factor", _REDUCTION)
        self._sign = 1 if tune["mode"] == "min" else -1
        steps, rung = [], float(args.get("grace_period", _GRACE))
        while rung < end:  # of a trial that is at its end nothing is saved by stopping it: its result would be lost
            steps.append(int(rung))
            rung *= self._least
        self.rungs = Rungs(sorted({*steps}), args["time_attr"], args["metric"])
        self._waiting: dict[int, _Waiting] = {}
        self._judged: defaultdict[int, dict[int, float]] = defaultdict(dict)  # rung -> trial -> value, less is better
        self._passed: dict[int, int] = {}
        self._stopped: set[int] = set()

    def add(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        rung, before = self.rungs.reached(step), self._waiting.get(trial.number)
        if before is not None and rung > before.rung:  # it did not wait: it goes on past that one
            self.recall(trial, before.rung)
        if rung > self._passed.get(trial.number, 0) and trial.number not in self._waiting:
            self._waiting[trial.number] = _Waiting(trial, rung, value, self._clock())
        return None

    def recall(self, trial: Trial, passed: float) -> None:
        """It was told to go on, by this search before it began again."""
        if (one := self._waiting.get(trial.number)) is not None and one.rung <= passed:
            self._judge([one])

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        found: list[tuple[Trial, Verdict]] = []
        for rung in self.rungs.steps:
            here = [one for one in self._waiting.values() if one.rung == rung]
            coming = self._coming(rung, trials)
            if not here or self._is_early(rung, here, coming):
                continue
            good = self._judge(here, len(coming))
            self._stopped |= {one.trial.number for one in here} - good
            found += [
                (one.trial, Verdict(passes=rung) if one.trial.number in good else Verdict())
                for one in sorted(here, key=lambda one: one.trial.number)
            ]
        return found

    def over(self, trial: Trial) -> None:
        one = self._waiting.get(trial.number)
        if one is not None and trial.phase != "failed":  # before the search began again it was judged there
            self._judge([one])
        self._waiting.pop(trial.number, None)

    def _coming(self, rung: int, trials: Sequence[Trial]) -> list[Trial]:
        """Those that run and have not come there."""
        others = (one for one in trials if one.number not in self._waiting and one.number not in self._stopped)
        return [one for one in others if one.phase in _RUNS and one.furthest < rung]

    def _is_early(self, rung: int, here: Sequence[_Waiting], coming: Sequence[Trial]) -> bool:
        """Whether more are to come before those who wait are judged: too few came so far, or this is the next rung of
        others, which will be there soon."""
        if len(self._judged[rung]) + len(here) < self._least and coming:
            return True
        before = max((one for one in self.rungs.steps if one < rung), default=0)
        is_next = any(self._passed.get(one.number, 0) >= before for one in coming)
        return is_next and self._clock() - min(one.since for one in here) < PATIENCE_S

    def _judge(self, here: Sequence[_Waiting], coming: int = 0) -> set[int]:
        """Of all that came to this rung so far, the best part; at least one. `coming`: so many may come there yet."""
        judged = self._judged[here[0].rung]
        for one in here:
            del self._waiting[one.trial.number]
            self._passed[one.trial.number] = one.rung
            judged[one.trial.number] = math.inf if math.isnan(one.value) else self._sign * one.value
        order = sorted(judged, key=lambda number: (judged[number], number))
        return {*order[: math.ceil((len(order) + coming) / self._least)]}
