"""A load must outlast a delay before replicas follow it, so that they do not come and go with every wave.

Memory is JSON: on which side of the present number the load has been, since when, and the most replicas that it asked
for meanwhile; so a restarted controller goes on where it was. The delay runs from the first observation on one side; a
change of side starts it anew. Down goes only what no moment of the delay asked for: a load that waves within it keeps
the replicas of its peaks (as the stabilization window of Kubernetes' HorizontalPodAutoscaler does).
"""

from __future__ import annotations

import json

from llmsched.core import cron, scaling
from llmsched.core.policy import View, WorkloadView
from llmsched.core.workload import Autoscaling


def bounds(serve: WorkloadView, view: View) -> tuple[int, int]:
    """Least and most replicas now."""
    return scaling.bounds(serve.workload, view.now)


def bounds_change_at(serve: WorkloadView, view: View) -> float | None:
    """When the next bound's cron fires: with nobody asking, nothing else is heard of the endpoint at that moment."""
    knobs = serve.workload.autoscaling or Autoscaling()
    times = [cron.next_due(schedule, view.now) for schedule, _, _ in knobs.bounds]
    return min((at for at in times if at is not None), default=None)


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
    if past.get("side") != side:
        past = {"side": side, "since": now}
    since, most = past["since"], max(ideal, past.get("most", 0))
    delay = knobs.upscale_delay_s if side > 0 else knobs.downscale_delay_s
    if ideal == 0 and knobs.downscale_to_zero_delay_s is not None:
        delay = knobs.downscale_to_zero_delay_s
    if present == 0:
        delay = 0.0  # nobody answers until there is one
    if now - since >= delay:
        return (ideal if side > 0 else most), ""
    if ideal == 0 and present > 1 and now - since >= knobs.downscale_delay_s:
        return (most, "") if most else (1, json.dumps({"side": side, "since": since}))
    return present, json.dumps({"side": side, "since": since, **({"most": most} if side < 0 else {})})


def ends_at(memory: str, knobs: Autoscaling, now: float) -> float | None:
    """When the next delay of those that run is over. None: none runs."""
    if not memory:
        return None
    past = json.loads(memory)
    delays = [knobs.upscale_delay_s] if past["side"] > 0 else [knobs.downscale_delay_s]
    if past["side"] < 0 and knobs.downscale_to_zero_delay_s is not None:
        delays.append(knobs.downscale_to_zero_delay_s)
    return min((past["since"] + delay for delay in delays if past["since"] + delay > now), default=now)
