"""ASHA: at each rung the better part goes on (Li et al. 2020), by Ray Tune's own scheduler.

A trial waits at a rung (`llmsched/runtime/rungs.py`), so nobody is late with a verdict and trials that come to one
together are judged together, the best first: alone, the first to come would always go on. Nobody waits for one that
does not run: with a single GPU each is judged as it comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmsched.runtime.rungs import Rungs
from workloads.search.schedulers import Adviser, Verdict, given, max_t
from workloads.search.trials import Trial

_RUNS = ("starting", "running", "resizing")
_GRACE, _REDUCTION = 1, 4.0  # Ray Tune's own, where the spec says nothing


class _Waiting(NamedTuple):
    trial: Trial
    rung: int
    step: float
    value: float


class Halving:
    def __init__(self, tune: Mapping[str, Any]) -> None:
        from ray.tune.schedulers import ASHAScheduler

        end, args = max_t(tune), given(tune, "grace_period", "reduction_factor")
        assert end is not None, "the spec says where a trial ends"
        # Of a trial that is at its end nothing is saved by stopping it: its result would be lost.
        self._adviser = Adviser(ASHAScheduler(**args, max_t=end, stop_last_trials=False), tune)
        self._least = args.get("reduction_factor", _REDUCTION)
        self._sign = 1 if tune["mode"] == "min" else -1
        steps, rung = [], float(args.get("grace_period", _GRACE))
        while rung < end:
            steps.append(int(rung))
            rung *= self._least
        self.rungs = Rungs(sorted({*steps}), args["time_attr"], args["metric"])
        self._waiting: dict[int, _Waiting] = {}
        self._seen: Counter[int] = Counter()  # trials that were judged at a rung
        self._passed: dict[int, int] = {}
        self._stopped: set[int] = set()

    def add(self, trial: Trial) -> None:
        self._adviser.add(trial)

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        rung, before = self.rungs.reached(step), self._waiting.get(trial.number)
        if before is not None and rung > before.rung:  # it did not wait: it goes on past that one
            self.recall(trial, before.rung)
        if rung > self._passed.get(trial.number, 0) and trial.number not in self._waiting:
            self._waiting[trial.number] = _Waiting(trial, rung, step, value)
        return None

    def recall(self, trial: Trial, passed: float) -> None:
        """It was told to go on, by this search before it began again."""
        if (one := self._waiting.get(trial.number)) is not None and one.rung <= passed:
            self._judge(one)
            self._stopped.discard(trial.number)

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        found: list[tuple[Trial, Verdict]] = []
        for rung in self.rungs.steps:
            here = [one for one in self._waiting.values() if one.rung == rung]
            if self._seen[rung] + len(here) < self._least and self._may_come(rung, trials):
                continue
            for one in sorted(here, key=lambda one: (self._sign * one.value, one.trial.number)):
                found.append((one.trial, Verdict() if self._judge(one) else Verdict(passes=rung)))
        return found

    def over(self, trial: Trial) -> None:
        self._waiting.pop(trial.number, None)
        self._adviser.over(trial)

    def _may_come(self, rung: int, trials: Sequence[Trial]) -> bool:
        others = (one for one in trials if one.number not in self._waiting and one.number not in self._stopped)
        return any(one.phase in _RUNS and one.furthest < rung for one in others)

    def _judge(self, one: _Waiting) -> bool:
        """Whether it is to end."""
        del self._waiting[one.trial.number]
        self._seen[one.rung] += 1
        self._passed[one.trial.number] = one.rung
        if is_to_end := self._adviser.stops(one.trial, one.step, one.value):
            self._stopped.add(one.trial.number)
        return is_to_end
