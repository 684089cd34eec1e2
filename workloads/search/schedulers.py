"""Who is stopped early, as others are better: Ray Tune's own schedulers, told what trials report and asked what to do.

Nothing of Ray Tune's executor runs: a trial is a name and its values to them, and what they would have a controller do
is an answer here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from workloads.search.trials import Trial


class Verdict(NamedTuple):
    """A trial is to end. With a `donor`: another one goes on from there in its place, with these values. With `passes`
    it goes on instead, past that rung at which it waits."""

    donor: Trial | None = None
    values: dict[str, Any] | None = None
    passes: int | None = None


class Scheduler(Protocol):
    def add(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        """None: it goes on, or waits."""

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        """Verdicts on those that waited for one; `trials` are all that have not ended."""

    def over(self, trial: Trial) -> None: ...


def scheduler(tune: Mapping[str, Any]) -> Scheduler:
    """Of a `tune` section."""
    if tune["scheduler"] == "pbt":
        from workloads.search.population import PopulationBased

        return PopulationBased(tune)
    if tune["scheduler"] == "asha":
        from workloads.search.halving import Halving

        return Halving(tune)
    return Nobody() if tune["scheduler"] == "fifo" else MedianRule(tune)


class Nobody:
    """Each comes to its end."""

    def add(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        return None

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        return []

    def over(self, trial: Trial) -> None: ...


class MedianRule:
    """Who is worse than the median of the others at the same step is stopped."""

    def __init__(self, tune: Mapping[str, Any]) -> None:
        from ray.tune.schedulers import MedianStoppingRule

        args = given(tune, "grace_period", "min_samples_required")
        self._adviser = Adviser(MedianStoppingRule(**{"grace_period": 1, **args}), tune)
        self._max_t = max_t(tune)

    def add(self, trial: Trial) -> None:
        self._adviser.add(trial)

    def reported(self, trial: Trial, step: float, value: float) -> Verdict | None:
        is_at_its_end = self._max_t is not None and step >= self._max_t
        return Verdict() if not is_at_its_end and self._adviser.stops(trial, step, value) else None

    def decided(self, trials: Sequence[Trial]) -> list[tuple[Trial, Verdict]]:
        return []

    def over(self, trial: Trial) -> None:
        self._adviser.over(trial)


def given(tune: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Arguments of a scheduler of Ray Tune's."""
    args = tune["scheduler_args"]
    found = {name: args[name] for name in names if args[name]}
    return {"time_attr": args["time_attr"], "metric": tune["metric"], "mode": tune["mode"], **found}


def max_t(tune: Mapping[str, Any]) -> int | None:
    """Where a trial ends."""
    steps = ((tune.get("train") or {}).get("training_args") or {}).get("max_steps") or -1
    return tune["scheduler_args"]["max_t"] or (int(steps) if steps > 0 else None)


class Adviser:
    """A scheduler of Ray Tune's, which hears of trials and is asked about them."""

    def __init__(self, asked: Any, tune: Mapping[str, Any]) -> None:
        self._asked, self._metric, self._time = asked, tune["metric"], tune["scheduler_args"]["time_attr"]
        self._trials: dict[int, _Stub] = {}

    def add(self, trial: Trial) -> None:
        stub = self._trials[trial.number] = _Stub(trial)
        self._asked.on_trial_add(_CONTROLLER, stub)

    def stops(self, trial: Trial, step: float, value: float) -> bool:
        from ray.tune.schedulers import TrialScheduler

        if (stub := self._trials.get(trial.number)) is None:
            return False
        stub.last_result = self._result(step, value)
        answer = self._asked.on_trial_result(_CONTROLLER, stub, stub.last_result)
        return bool(answer == TrialScheduler.STOP)

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
