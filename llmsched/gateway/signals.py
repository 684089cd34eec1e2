"""What the gateway counts as it serves: requests in flight, the work they stand for, who was turned away.

`load()` is the autoscaler's only source: "recent" is what was in flight in the last minute (`Lookback`), and queued are
requests that are held, and those that were refused for want of replicas, for a while, because their clients will come
back. That is what wakes a workload that has none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from llmsched.gateway.latencies import Latencies
from llmsched.policies.autoscaling.lookback import Lookback

REFUSED_COUNTS_S = 10.0  # a client that was told to come back is expected within this
REFUSED_KEPT = 1000  # per workload


class Signals:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.latencies = Latencies(clock)
        self._ongoing: dict[str, int] = {}
        self._recent: dict[str, Lookback] = {}
        self._refused: dict[str, deque[float]] = {}
        self._held: dict[str, int] = {}

    def begin(self, workload: str) -> None:
        self._is_now(workload, self._ongoing.get(workload, 0) + 1)

    def end(self, workload: str) -> None:
        self._is_now(workload, self._ongoing[workload] - 1)

    def _is_now(self, workload: str, count: int) -> None:
        self._ongoing[workload] = count
        now = self._clock()
        recent = self._recent.get(workload) or self._recent.setdefault(workload, Lookback(now))
        recent.set(count, now)

    def refused(self, workload: str) -> None:
        self._refused.setdefault(workload, deque(maxlen=REFUSED_KEPT)).append(self._clock())

    def hold(self, workload: str) -> None:
        self._held[workload] = self._held.get(workload, 0) + 1

    def let_go(self, workload: str) -> None:
        self._held[workload] -= 1

    def ongoing(self, workload: str) -> int:
        return self._ongoing.get(workload, 0)

    def load(self, workloads: list[str]) -> dict[str, dict[str, Any]]:
        """{workload: {"ongoing", "recent", "queued"}} for those given and any that still has requests in flight; with
        "latencies" where they were measured since they were told last."""
        now = self._clock()
        oldest = now - REFUSED_COUNTS_S
        report: dict[str, dict[str, Any]] = {}
        for workload in sorted({*workloads, *(w for w, n in self._ongoing.items() if n)}):
            waiting = self._refused.get(workload, deque())
            while waiting and waiting[0] < oldest:
                waiting.popleft()
            report[workload] = {
                "ongoing": self.ongoing(workload),
                "recent": self._recent[workload].load(now) if workload in self._recent else 0.0,
                "queued": len(waiting) + self._held.get(workload, 0),
            }
        for workload, measured in self.latencies.told().items():
            report[workload]["latencies"] = measured
        return report
