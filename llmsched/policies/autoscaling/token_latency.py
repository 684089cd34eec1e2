"""Replicas from queueing: enough that a request seldom waits, which is what time to first token is made of.

Requests in flight tell the offered load (Little's law: load = requests in flight / what one replica carries at a time).
The number of replicas is the load plus a margin that grows with its square root, the square-root staffing rule, so that
small endpoints keep relatively more in hand than large ones; waiting requests count in full. Delays are those of
`ongoing_requests`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from llmsched.core.policy import Knobs, View, WorkloadView
from llmsched.core.workload import Autoscaling
from llmsched.policies.autoscaling.ongoing_requests import bounds, steer

MARGIN = 0.5  # standard deviations of a Poisson load kept free


class TokenLatency:
    @dataclass(frozen=True)
    class Options:
        margin: float = MARGIN

        def __post_init__(self) -> None:
            if self.margin < 0:
                raise ValueError("margin must be at least 0")

    def __init__(self, options: Knobs[Options] | None = None) -> None:
        self._options = options or Knobs(self.Options())

    def wanted(self, serve: WorkloadView, memory: str, view: View) -> tuple[int, str]:
        knobs = serve.workload.autoscaling or Autoscaling()
        ongoing, queued, _ = serve.load or (0.0, 0.0, view.now)
        margin = self._options.of(serve.workload.queue).margin
        load = (ongoing + queued) / max(knobs.target_ongoing_requests, 1e-9)
        ideal = ceil(load + margin * sqrt(load)) if load > 0 else 0
        low, high = bounds(serve, view)
        return steer(ideal, low, high, serve.wanted_replicas, memory, knobs, view.now)
