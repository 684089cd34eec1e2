"""What a search knows of its trials: what each had, what it reported, and which is best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from llmsched.runtime.ask import Child

HISTORY_AT_MOST = 200  # reports of one trial that are kept for the comparison after a restart


def name_of(number: int) -> str:
    """Trials are t1, t2 ..."""
    return f"t{number}"


@dataclass
class Trial:
    """`history`: (step, value) as it was reported. `is_stopped`: by the scheduler, as others were better."""

    number: int
    values: dict[str, Any]
    phase: str = "waiting"
    message: str = ""
    history: list[tuple[float, float]] = field(default_factory=list)
    value: float | None = None  # the last one
    reports: tuple[str, ...] = ()  # names of the numbers that it reported
    artifact: str | None = None
    furthest: float = 0.0  # step, with or without a value
    is_at_its_end: bool = False  # as it says itself: nothing is saved by stopping it
    is_stopped: bool = False
    donor: int | None = None  # of population-based training: the trial from whose checkpoint it goes on

    @property
    def name(self) -> str:
        return name_of(self.number)

    @property
    def asked(self) -> dict[str, Any]:
        """How the search asks for it."""
        if self.donor is None:
            return {"name": self.name, "values": self.values}
        goes_on = {"goes_on_from": name_of(self.donor), "at_step": int(self.furthest)}
        return {"name": self.name, "values": self.values, **goes_on}

    @property
    def has_ended(self) -> bool:
        return self.phase in ("succeeded", "failed", "cancelled")

    def see(self, child: Child, metric: str | None, time_attr: str) -> tuple[float, float] | None:
        """Take in how it stands; what it reported that is new, if it did."""
        self.phase, self.message, self.artifact = child.phase, child.message, child.artifact
        numbers = {**child.progress, **child.metrics}
        self.reports = tuple(name for name, value in numbers.items() if _is_number(value))
        step = child.progress.get(time_attr)
        self.furthest = max(self.furthest, float(step)) if _is_number(step) else self.furthest
        total = child.progress.get("total_steps")
        self.is_at_its_end = _is_number(total) and self.furthest >= total
        if metric is None or not _is_number(numbers.get(metric)):
            return None
        self.value = float(numbers[metric])
        if not _is_number(step) or (self.history and float(step) <= self.history[-1][0]):
            return None
        self.history.append((float(step), self.value))
        if len(self.history) > HISTORY_AT_MOST:
            del self.history[1::2]  # every other one
        return self.history[-1]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def best(trials: Iterable[Trial], mode: str) -> Trial | None:
    """Of those that came to their end; the earliest of equals."""
    ended = [one for one in trials if one.phase == "succeeded" and one.value is not None]
    sign = 1 if mode == "min" else -1
    return min(ended, key=lambda one: (sign * (one.value or 0.0), one.number), default=None)
