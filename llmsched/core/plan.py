"""What one pass decided: the decisions in order, why whoever waits still waits, and when to ask again."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmsched.core.decisions import Decision
from llmsched.core.explain import Reason


@dataclass(slots=True)
class Plan:
    """`reasons` are those this pass wrote, by gang; gangs of one shape share theirs through their class."""

    at: float
    decisions: list[Decision] = field(default_factory=list)
    reasons: dict[str, Reason] = field(default_factory=dict)
    wake_at: float | None = None
    sizes: dict[str, int] = field(default_factory=dict)  # what elasticity wants each elastic gang to hold

    def wake(self, at: float | None) -> None:
        """Ask again at `at`, or earlier."""
        if at is not None and at > self.at and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at

    def why(self, gang: str) -> str:
        """The message of a waiting gang's reason; a workload's name stands for its first gang."""
        found = self.reasons.get(gang) or self.reasons.get(f"{gang}/0")
        return found.message if found else ""
