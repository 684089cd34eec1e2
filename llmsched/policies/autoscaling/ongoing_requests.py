"""Ray Serve's rule: replicas = requests in flight and waiting / target, after a delay that the load must outlast.

Memory is JSON: the number wanted since when, so that a restarted controller goes on where it was. The delay runs from
the first observation on one side of the present number; a change of side starts it anew.
"""

from __future__ import annotations

import json
from math import ceil

from llmsched.core import cron
from llmsched.core.policy import View, WorkloadView
from llmsched.core.workload import Autoscaling


class OngoingRequests:
    def wanted(self, serve: WorkloadView, memory: str, view: View) -> tuple[int, str]:
        knobs = serve.workload.autoscaling or Autoscaling()
        ongoing, queued, _ = serve.load or (0.0, 0.0, view.now)
        ideal = ceil((ongoing + queued) / max(knobs.target_ongoing_requests, 1e-9))
        low, high = bounds(serve, view)
        return steer(ideal, low, high, serve.wanted_replicas, memory, knobs, view.now)


def bounds(serve: WorkloadView, view: View) -> tuple[int, int]:
    """Least and most replicas now: the bound whose cron fired last, else the spec's."""
    spec = serve.workload
    low, high, fired = spec.min_replicas, spec.max_replicas, -1.0
    for schedule, bound_low, bound_high in spec.autoscaling.bounds if spec.autoscaling else ():
        last = cron.last_due(schedule, view.now)
        if last is not None and last > fired:
            low, high, fired = bound_low, bound_high, last
    return low, high


def steer(
    ideal: int, low: int, high: int, present: int, memory: str, knobs: Autoscaling, now: float
) -> tuple[int, str]:
    """The number to have now, given the ideal one, and the memory that makes delays work."""
    ideal = min(max(ideal, low), high)
    if not low <= present <= high:
        return min(max(present, low), high), ""
    side = (ideal > present) - (ideal < present)
    if side == 0:
        return present, ""
    past = json.loads(memory) if memory else {}
    since = past.get("since", now) if past.get("side") == side else now
    delay = knobs.upscale_delay_s if side > 0 else knobs.downscale_delay_s
    if ideal == 0 and knobs.downscale_to_zero_delay_s is not None:
        delay = knobs.downscale_to_zero_delay_s
    if present == 0:
        delay = 0.0  # nobody answers until there is one
    if now - since >= delay:
        return ideal, ""
    if ideal == 0 and present > 1 and now - since >= knobs.downscale_delay_s:
        return 1, json.dumps({"side": side, "since": since})
    return present, json.dumps({"side": side, "since": since})
