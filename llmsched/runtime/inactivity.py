"""When a person has left what was started for work by hand: nothing is asked of it, and it computes next to nothing.
A table and arithmetic, no clock."""

from __future__ import annotations

BUSY = 0.2  # of a core: a server or a kernel that only waits, and a Ray of its own beside it, take less
SHORTEST_TOLD_S = 60.0


class Inactivity:
    """`most_s`: so long nobody may use it. Times are seconds of any clock that only goes forward."""

    def __init__(self, most_s: float, now: float) -> None:
        self.most_s = most_s
        self._used_at = now
        self._heard: dict[int, tuple[float, float]] = {}  # rank: when, and CPU seconds by then

    def used(self, at: float) -> None:
        """Somebody asked something of it."""
        self._used_at = max(self._used_at, at)

    def computed(self, rank: int, cpu_s: float, now: float) -> None:
        """A rank's CPU seconds so far. Less than before: other processes, which have just begun."""
        before = self._heard.get(rank)
        self._heard[rank] = now, cpu_s
        if before is None or cpu_s < before[1] or cpu_s - before[1] > BUSY * (now - before[0]):
            self.used(now)

    def lasts_s(self, now: float) -> float:
        return max(0.0, now - self._used_at)

    def is_over(self, now: float) -> bool:
        return self.lasts_s(now) >= self.most_s
