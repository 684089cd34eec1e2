"""What the gateway counts as it serves: requests in flight, the work they stand for, who was turned away.

`load()` is the autoscaler's only source. A request that is held counts as queued; one that was refused for want of
replicas too, for a while, because its client will come back. That is what wakes a workload that has none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

REFUSED_COUNTS_S = 10.0  # a client that was told to come back is expected within this
REFUSED_KEPT = 1000  # per workload


class Signals:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ongoing: dict[str, int] = {}
        self._refused: dict[str, deque[float]] = {}
        self._held: dict[str, int] = {}

    def begin(self, workload: str) -> None:
        self._ongoing[workload] = self._ongoing.get(workload, 0) + 1

    def end(self, workload: str) -> None:
        self._ongoing[workload] -= 1

    def refused(self, workload: str) -> None:
        self._refused.setdefault(workload, deque(maxlen=REFUSED_KEPT)).append(self._clock())

    def hold(self, workload: str) -> None:
        self._held[workload] = self._held.get(workload, 0) + 1

    def let_go(self, workload: str) -> None:
        self._held[workload] -= 1

    def ongoing(self, workload: str) -> int:
        return self._ongoing.get(workload, 0)

    def load(self, workloads: list[str]) -> dict[str, dict[str, int]]:
        """{workload: {"ongoing", "queued"}} for those given and any other that still has requests in flight."""
        oldest = self._clock() - REFUSED_COUNTS_S
        report = {}
        for workload in sorted({*workloads, *(w for w, n in self._ongoing.items() if n)}):
            waiting = self._refused.get(workload, deque())
            while waiting and waiting[0] < oldest:
                waiting.popleft()
            report[workload] = {"ongoing": self.ongoing(workload), "queued": len(waiting) + self._held.get(workload, 0)}
        return report
