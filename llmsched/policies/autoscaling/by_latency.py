"""The fewest replicas at which the target for latency holds, by what was measured (core/latency.py).

Requests in flight depend on how many replicas there are: with more of them each answers faster, and fewer are in
flight. By Little's law what is in flight is rate x time, so the load is taken to be what it would be at the latency of
the target's load. A load that comes and goes by chance is not to fill every place: two standard deviations of it are
kept free (the square-root staffing rule). Who waits is to be answered within DRAIN_S beside all that comes; of those
who were turned away the gateway counts that many seconds, so that they are the rate that comes in vain.
"""

from __future__ import annotations

from math import ceil, sqrt

from llmsched.core.policy import WorkloadView
from llmsched.core.scaling import FREE
from llmsched.core.workload import Autoscaling

DRAIN_S = 10.0
TIMES_MOST = 2.0  # how far the measured times may move the load at once


def load_of_one(serve: WorkloadView) -> float:
    """What one replica is to have in flight: by the target where it is known and can be held, else as the spec says."""
    reach = serve.reach
    if reach is not None and reach.load:
        return reach.load
    return max((serve.workload.autoscaling or Autoscaling()).target_ongoing_requests, 1e-9)


def replicas(serve: WorkloadView) -> int | None:
    """None: no target, nothing measured, or no load is low enough, so that replicas are not what is missing."""
    reach = serve.reach
    if reach is None or not reach.load:
        return None
    ongoing, queued, _ = serve.load or (0.0, 0.0, 0.0)
    here = ongoing / max(serve.answering, 1)
    now_s, then_s = serve.mean_s(here), serve.mean_s(reach.load)
    times = then_s / now_s if now_s and then_s and serve.answering else 1.0
    ongoing *= min(max(times, 1 / TIMES_MOST), TIMES_MOST)
    queued *= min(1.0, (then_s or DRAIN_S) / DRAIN_S)
    places = (serve.workload.autoscaling or Autoscaling()).most_ongoing
    by_places = (ongoing + FREE * sqrt(ongoing)) / places if places else 0.0
    return ceil(max(ongoing / reach.load, by_places) + queued / reach.load - 1e-6)
