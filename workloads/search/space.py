"""What is tried: the points of a space in an order that the seed determines, or what Optuna suggests.

The domains, and Optuna's search, are Ray Tune's; nothing of its executor runs. Each suggester is told what became of
every trial, after a restart too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from workloads.search.trials import Trial

Space = Mapping[str, Mapping[str, Any]]  # path -> the one domain that is given, by Ray Tune's word
Values = dict[str, Any]


class MissingPackage(Exception):
    """Says which, and what to install."""


class Suggester(Protocol):
    def suggest(self, number: int) -> Values | None:
        """What the next trial has; None: nothing is left to try. Called once a number, in their order."""

    def adopt(self, trial: Trial) -> None:
        """Before any suggestion: a trial of before a restart."""

    def over(self, trial: Trial) -> None:
        """It has ended, whatever way."""


def suggester(tune: Mapping[str, Any]) -> Suggester:
    """Of a `tune` section. Raises MissingPackage."""
    space = given(tune["space"])
    if tune["searcher"] == "optuna":
        return Optuna(space, tune["metric"], tune["mode"], tune["seed"])
    return Drawn(space, tune["samples"], tune["seed"])


def given(space: Space) -> dict[str, dict[str, Any]]:
    """With the one word of each domain that is given."""
    return {path: {word: value for word, value in one.items() if value is not None} for path, one in space.items()}


def draw(domain: Mapping[str, Any], seed: int) -> Any:
    """A value of a domain that is drawn by chance."""
    import numpy

    return _plain(_domain(domain).sample(random_state=numpy.random.default_rng(seed)))


class Drawn:
    """Each point of the grids `samples` times, the rest drawn by chance. A restart draws the same again."""

    def __init__(self, space: Space, samples: int, seed: int) -> None:
        self._points = _points(space, samples, seed)

    def suggest(self, number: int) -> Values | None:
        return next(self._points, None)

    def adopt(self, trial: Trial) -> None:
        next(self._points)

    def over(self, trial: Trial) -> None:
        """It changes nothing of what follows."""


def _points(space: Space, samples: int, seed: int) -> Iterator[Values]:
    grids = {path: one["grid"] for path, one in space.items() if "grid" in one}
    drawn = {path: _domain(one) for path, one in space.items() if "grid" not in one}
    chance: Any = None
    if drawn:
        import numpy

        chance = numpy.random.default_rng(seed)
    for _ in range(samples):
        for point in itertools.product(*grids.values()):
            by_chance = {path: _plain(domain.sample(random_state=chance)) for path, domain in drawn.items()}
            found = {**dict(zip(grids, point, strict=True)), **by_chance}
            yield {path: found[path] for path in space}


def _domain(one: Mapping[str, Any]) -> Any:
    from ray import tune

    ((word, given),) = one.items()
    return tune.choice(given) if word == "choice" else getattr(tune, word)(*given)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class Optuna:
    def __init__(self, space: Space, metric: str, mode: str, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise MissingPackage(
                'searcher "optuna" needs the package optuna on the nodes: pip install "llmsched[search]"'
            ) from None
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._metric = metric
        domains = {path: _domain(one) for path, one in space.items()}
        self._search = OptunaSearch(OptunaSearch.convert_search_space(domains), metric=metric, mode=mode, seed=seed)
        self._adopted: set[int] = set()

    def suggest(self, number: int) -> Values | None:
        found = self._search.suggest(str(number))
        return None if found is None else {path: _plain(value) for path, value in found.items()}

    def adopt(self, trial: Trial) -> None:
        self._adopted.add(trial.number)

    def over(self, trial: Trial) -> None:
        has_failed = trial.value is None
        if trial.number in self._adopted:  # it was not suggested by this process
            self._search.add_evaluated_point(trial.values, trial.value, error=has_failed)
            return
        result = None if has_failed else {self._metric: trial.value}
        self._search.on_trial_complete(str(trial.number), result, error=has_failed)
