"""What one pass decided: the decisions in order, why whoever waits still waits, and when to ask again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from llmsched.core import render
from llmsched.core.answers import Trouble
from llmsched.core.decisions import Decision, Nominate
from llmsched.core.explain import Reason
from llmsched.core.message import Message
from llmsched.core.workload import Placement

PORTION = 100  # decisions of one stage in one pass: whatever comes at once, a pass takes a bounded time


@dataclass(slots=True)
class Plan:
    """`reasons` has every gang that waits after this pass; it is gathered when first read."""

    at: float
    decisions: list[Decision] = field(default_factory=list)
    wake_at: float | None = None
    wake_basis: Message | None = None  # what that moment is to somebody who waits
    moment: tuple[float, Message] | None = None  # when time alone may end the wait of anybody, the soonest
    by_clock: bool = False  # it might decide otherwise a moment before, as it goes by what moves all the time
    sizes: dict[str, int] = field(default_factory=dict)  # what elasticity wants each elastic gang to hold
    would_start: dict[str, Placement] = field(default_factory=dict)  # waiting work of fixed size, beside elastic work
    kept_free: dict[str | None, int] = field(default_factory=dict)  # by flavor, for waiting work of fixed size
    beside_least: dict[str, None] = field(default_factory=dict)  # who has room once elastic ones hold their least
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

    def wake(self, at: float | None, basis: Message | None = None) -> None:
        """Ask again at `at`, or earlier. `basis`: what has changed by then for who is looked at now."""
        if at is not None and self.at < at < inf and (self.wake_at is None or at < self.wake_at):
            self.wake_at, self.wake_basis = at, basis

    def has_come(self, at: float, basis: Message | None = None) -> bool:
        """Whether it is `at` by now; if not, the plan asks again then. Stages compare the clock through this alone, so
        that none waits for a moment that the plan does not name."""
        if at <= self.at:
            return True
        self.wake(at, basis)
        return False

    def look_again(self, at: float, basis: Message) -> None:
        """Ask again at `at`, or earlier, and tell so whoever waits and has nothing sooner to hope for."""
        self.wake(at)
        if self.moment is None or at < self.moment[0]:
            self.moment = at, basis

    def cut(self, since: int = 0) -> bool:
        """Whether a stage that began after `since` decisions has made its portion. Asked before it looks at the next
        gang, so that a pass is cut only when somebody is left."""
        self.is_cut |= len(self.decisions) - since >= PORTION
        return self.is_cut

    def why(self, gang: str) -> str:
        """A waiting gang's reason in words, with all names; a workload's name stands for its first gang."""
        found = self.reasons.get(gang) or self.reasons.get(f"{gang}/0")
        return render.text(found.message) if found else ""
