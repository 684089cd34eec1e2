"""Who is stopped early, as others are better: Ray Tune's own schedulers, told what trials report and asked what to do.

Nothing of Ray Tune's executor runs: a trial is a name and its values to them, and what they would have a controller do
is an answer here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from workloads.search.trials import Trial


class Verdict(NamedTuple):
    """A trial is to end. With a `donor`: another one goes on from there in its place, with these values."""

    donor: Trial | None = None
    values: dict[str, Any] | None = None


class Scheduler(Protocol):
    def add(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        """None: it goes on."""

    def over(self, trial: Trial) -> None: ...


def scheduler(tune: Mapping[str, Any]) -> Scheduler:
    """Of a `tune` section."""
    if tune["scheduler"] == "pbt":
        from workloads.search.population import PopulationBased

        return PopulationBased(tune)
    return Nobody() if tune["scheduler"] == "fifo" else EarlyStopping(tune)


class Nobody:
    """Each comes to its end."""

    def add(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        return None

    def over(self, trial: Trial) -> None: ...


class EarlyStopping:
    """ASHA, or the median rule."""

    def __init__(self, tune: Mapping[str, Any]) -> None:
        from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

        args = tune["scheduler_args"]
        self._metric, self._time = tune["metric"], args["time_attr"]
        self._max_t = args["max_t"] or _max_steps(tune)
        given = {key: args[key] for key in ("grace_period", "reduction_factor", "min_samples_required") if args[key]}
        common = {"time_attr": self._time, "metric": self._metric, "mode": tune["mode"], **given}
        if tune["scheduler"] == "asha":
            # Of a trial that is at its end nothing is saved by stopping it: its result would be lost.
            self._asked = ASHAScheduler(**common, max_t=self._max_t, stop_last_trials=False)
        else:
            self._asked = MedianStoppingRule(**{"grace_period": 1, **common})
        self._trials: dict[int, _Stub] = {}

    def add(self, trial: Trial) -> None:
        stub = self._trials[trial.number] = _Stub(trial)
        self._asked.on_trial_add(_CONTROLLER, stub)

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        from ray.tune.schedulers import TrialScheduler

        stub = self._trials.get(trial.number)
        if stub is None or (self._max_t is not None and step >= self._max_t):
            return None
        stub.last_result = self._result(step, value)
        answer = self._asked.on_trial_result(_CONTROLLER, stub, stub.last_result)
        return Verdict() if answer == TrialScheduler.STOP else None

    def over(self, trial: Trial) -> None:
        stub = self._trials.pop(trial.number, None)
        if stub is None:
            return
        if trial.phase == "succeeded" and trial.history:
            self._asked.on_trial_complete(_CONTROLLER, stub, self._result(*trial.history[-1]))
        elif trial.phase == "failed":
            self._asked.on_trial_error(_CONTROLLER, stub)

    def _result(self, step: float, value: float) -> dict[str, Any]:
        return {self._time: step, self._metric: value, "training_iteration": step}


def _max_steps(tune: Mapping[str, Any]) -> int | None:
    steps = ((tune.get("train") or {}).get("training_args") or {}).get("max_steps") or -1
    return int(steps) if steps > 0 else None


class _Stub:
    """What Ray Tune's schedulers know of a trial."""

    status = "RUNNING"

    def __init__(self, trial: Trial) -> None:
        self.trial_id = str(trial.number)
        self.config = trial.values
        self.last_result: dict[str, Any] = {}


class _Controller:
    """What they ask of a controller: nobody waits for another's place."""

    search_alg = None

    def get_live_trials(self) -> list[Any]:
        return []

    def get_trials(self) -> list[Any]:
        return []


_CONTROLLER = _Controller()
