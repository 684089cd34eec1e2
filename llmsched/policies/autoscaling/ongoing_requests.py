"""Replicas = load / load of one replica, after a delay that the load must outlast: Ray Serve's rule.

The load is the requests in flight and waiting, or what is expected until a new replica would answer, where that is
more. What one replica is to have is `target_ongoing_requests`; where the endpoint has a target for its latency (`slo`)
and latencies were measured, it is the most at which that holds: see by_latency.py. Delays and bounds: delays.py.

Where none answers, requests are held, and all that start have taken longer than a start does, one more is asked for:
what holds up the first may hold it up for longer than anybody waits.
"""

from __future__ import annotations

from math import ceil

from llmsched.core.policy import View, WorkloadView
from llmsched.core.workload import Autoscaling
from llmsched.policies.autoscaling import by_latency
from llmsched.policies.autoscaling.delays import bounds, bounds_change_at, ends_at, steer


class OngoingRequests:
    def wanted(self, serve: WorkloadView, memory: str, view: View) -> tuple[int, str]:
        knobs = serve.workload.autoscaling or Autoscaling()
        ideal = by_latency.replicas(serve)
        each = by_latency.load_of_one(serve)
        if ideal is None:
            ongoing, queued, _ = serve.load or (0.0, 0.0, view.now)
            ideal = ceil((ongoing + queued) / each)
        ahead = serve.expected(view.now)
        if ahead is not None and ahead.counts:
            ideal = max(ideal, ceil(ahead.load / each))
        low, high = bounds(serve, view)
        replicas, memory = steer(ideal, low, high, serve.wanted_replicas, memory, knobs, view.now)
        late_at = serve.late_at
        if late_at is not None and late_at <= view.now and replicas < min(serve.starting + 1, high):
            return serve.starting + 1, ""  # no delay: whoever is held has waited long enough
        return replicas, memory

    def ask_again(self, serve: WorkloadView, memory: str, view: View) -> float | None:
        knobs = serve.workload.autoscaling or Autoscaling()
        late_at = serve.late_at
        times = (
            ends_at(memory, knobs, view.now), bounds_change_at(serve, view), serve.forecast_changes_at(view.now),
            late_at if late_at is not None and late_at > view.now else None,
        )  # fmt: skip
        return min((at for at in times if at is not None), default=None)
