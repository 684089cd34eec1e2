"""What one pass decided: the decisions in order, why whoever waits still waits, and when to ask again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from llmsched.core import render
from llmsched.core.answers import Trouble
from llmsched.core.decisions import Decision, Nominate
from llmsched.core.explain import Reason

PORTION = 100  # decisions of one stage in one pass: whatever comes at once, a pass takes a bounded time


@dataclass(slots=True)
class Plan:
    """`reasons` has every gang that waits after this pass; it is gathered when first read."""

    at: float
    decisions: list[Decision] = field(default_factory=list)
    wake_at: float | None = None
    by_clock: bool = False  # it might decide otherwise a moment later, although nothing happens and no time is named
    sizes: dict[str, int] = field(default_factory=dict)  # what elasticity wants each elastic gang to hold
    nominations: dict[str, Nominate] = field(default_factory=dict)  # those that stand after this pass
    gather: Callable[[], dict[str, Reason]] = dict
    troubles: tuple[Trouble, ...] = ()  # wrong answers of policies
    is_cut: bool = False  # a stage has decided a portion, and the next pass goes on from there at once
    asks_again: bool = False  # the next pass, at once, goes on: somebody was promised places that are free, say
    _reasons: dict[str, Reason] | None = None

    @property
    def reasons(self) -> dict[str, Reason]:
        if self._reasons is None:
            self._reasons = self.gather()
        return self._reasons

    def wake(self, at: float | None) -> None:
        """Ask again at `at`, or earlier."""
        if at is not None and self.at < at < inf and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at

    def cut(self, since: int = 0) -> bool:
        """Whether a stage that began after `since` decisions has made its portion. Asked before it looks at the next
        gang, so that a pass is cut only when somebody is left."""
        self.is_cut |= len(self.decisions) - since >= PORTION
        return self.is_cut

    def why(self, gang: str) -> str:
        """A waiting gang's reason in words, with all names; a workload's name stands for its first gang."""
        found = self.reasons.get(gang) or self.reasons.get(f"{gang}/0")
        return render.text(found.message) if found else ""
