"""Population-based training: who is among the worst is ended, and goes on from a copy of one of the best with other
values (Jaderberg and others, 2017; as Ray Tune has it, whose own class cannot be had without its executor).

Knows nothing of checkpoints: it says who follows whom, and with which values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from workloads.search import space
from workloads.search.schedulers import Verdict
from workloads.search.trials import Trial

QUANTILE = 0.25
RESAMPLED = 0.25  # the chance that a value is drawn anew instead of moved
FACTORS = (0.8, 1.2)


class PopulationBased:
    def __init__(self, tune: Mapping[str, Any]) -> None:
        args = tune["scheduler_args"]
        self._interval, self._part = args["perturbation_interval"], args["quantile_fraction"] or QUANTILE
        self._sign = 1 if tune["mode"] == "min" else -1
        self._domains = space.given(tune["space"])
        self._chance = random.Random(tune["seed"])
        self._alive: dict[int, Trial] = {}
        self._compared: dict[int, float] = {}  # trial -> the step at which it was compared last
        self._scores: dict[int, float] = {}  # and what it had reached there

    def add(self, trial: Trial) -> None:
        self._alive[trial.number] = trial
        self._compared[trial.number] = trial.furthest

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        number = trial.number
        if number not in self._alive or step - self._compared[number] < self._interval:
            return None
        self._compared[number], self._scores[number] = step, self._sign * value
        known = sorted((one for one in self._alive if one in self._scores), key=lambda one: (self._scores[one], one))
        count = min(math.ceil(len(known) * self._part), len(known) // 2)
        if 2 * len(known) < len(self._alive):  # a few that were quick are no population
            return None
        if not count or number not in known[-count:]:
            return None
        donor = self._alive[self._chance.choice(known[:count])]
        return Verdict(donor, {path: self._changed(path, old) for path, old in donor.values.items()})

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        return []

    def over(self, trial: Trial) -> None:
        for known in (self._alive, self._compared, self._scores):
            known.pop(trial.number, None)

    def _changed(self, path: str, old: Any) -> Any:
        ((word, given),) = self._domains[path].items()
        anew = self._chance.random() < RESAMPLED
        if word in ("grid", "choice"):
            place = self._chance.randrange(len(given))
            if not anew and old in given:
                place = min(max(given.index(old) + self._chance.choice((-1, 1)), 0), len(given) - 1)
            return given[place]
        low, high = given
        if anew:
            return space.draw(self._domains[path], self._chance.randrange(2**32))
        moved = min(max(old * self._chance.choice(FACTORS), low), high)
        return min(round(moved), high - 1) if word == "randint" else moved
