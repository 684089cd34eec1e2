"""Replicas from queueing: enough that a request seldom waits, which is what time to first token is made of.

Requests in flight tell the offered load (Little's law: load = requests in flight / what one replica carries at a time).
The number of replicas is the load plus a margin that grows with its square root, the square-root staffing rule, so that
small endpoints keep relatively more in hand than large ones; waiting requests count in full. Delays are those of
`ongoing_requests`.
"""

from __future__ import annotations

from math import ceil, sqrt

from llmsched.core.policy import View
from llmsched.core.records import WorkloadState
from llmsched.core.workload import Autoscaling
from llmsched.policies.autoscaling.ongoing_requests import bounds, steer

MARGIN = 0.5  # standard deviations of a Poisson load kept free


class TokenLatency:
    def wanted(self, serve: WorkloadState, memory: str, view: View) -> tuple[int, str]:
        knobs = serve.workload.autoscaling or Autoscaling()
        ongoing, queued, _ = serve.load or (0.0, 0.0, view.now)
        load = (ongoing + queued) / max(knobs.target_ongoing_requests, 1e-9)
        ideal = ceil(load + MARGIN * sqrt(load)) if load > 0 else 0
        low, high = bounds(serve, view)
        return steer(ideal, low, high, serve.wanted_replicas, memory, knobs, view.now)
