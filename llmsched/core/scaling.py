"""What an endpoint's latencies and its past say of the replicas that it needs, as policies and people are told.

The latencies are latency.py's, the past is season.py's; here they meet the workload: its target, its flavor, how long a
replica takes to come. Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil, sqrt

from llmsched.core import amounts, cron, latency, season, trade
from llmsched.core.message import FLAVOR, Message, Ref, say
from llmsched.core.records import WorkloadState
from llmsched.core.status import Status
from llmsched.core.workload import Autoscaling, Workload

ONE_FEWER = 1.15  # how much more than its share of the load of one that is not there a replica may be tried with
SETTLED_AFTER = 8  # steps from the load of now to the one that comes of another number of replicas
FREE = 2.0  # standard deviations of the load that are kept free
COMES_IN_S = 120.0  # a replica of which none was seen yet
NOT_REACHABLE = ("slo.unreachable", "slo.short")  # what `about_target` says of a target that is missed


def answering(record: WorkloadState) -> int:
    """How many replicas answer."""
    return sum(gang.status in (Status.RUNNING, Status.RESIZING) for gang in map(record.known.__getitem__, record.gangs))


def flavor_of(record: WorkloadState) -> str:
    """That of most replicas; while there are none, the first that it may have. "": any."""
    gangs = (record.known[name] for name in record.gangs)
    flavors = Counter(gang.flavor or "" for gang in gangs if gang.is_holding())
    if flavors:
        return flavors.most_common(1)[0][0]
    return amounts.flavor_of(record.workload, 0) or ""


def curve_of(record: WorkloadState) -> latency.Curve | None:
    return latency.newest(record.curves, flavor_of(record))


def reach_of(record: WorkloadState) -> latency.Reach | None:
    """The most load of a replica at which its target holds. None: it has no target."""
    spec = record.workload
    if spec.slo is None:
        return None
    knobs, count = spec.autoscaling or Autoscaling(), answering(record)
    presumed = knobs.target_ongoing_requests
    if count > 1 and record.load is not None:  # or two that do well would never learn that one is enough
        presumed = max(presumed, ONE_FEWER * record.load[0] / (count - 1))
    found = latency.most_load(curve_of(record), spec.slo, presumed)
    if found.load is None or not knobs.most_ongoing:
        return found
    return found._replace(load=min(found.load, float(knobs.most_ongoing)))


def within(record: WorkloadState, load: float) -> Callable[[int], float] | None:
    """Share of the requests that hold its target, by the number of replicas, at a load in all (requests in flight and
    waiting). Requests come at the rate which that load is by Little's law; with fewer replicas each takes longer, and
    more are in flight. Where they would fill every place, with two standard deviations to spare, the line only grows,
    and none holds it. None: it has no target, or nothing was measured."""
    spec, curve = record.workload, curve_of(record)
    shares = latency.within(curve, spec.slo) if spec.slo is not None else None
    reach = reach_of(record)
    # at the load that it is to have: at that of now the rate would change with each replica that comes or goes
    seconds = latency.mean_s(curve, reach.load) if reach is not None and reach.load else None
    if shares is None or not seconds:
        return None
    rate, places = load / seconds, (spec.autoscaling or Autoscaling()).most_ongoing

    def share(replicas: int) -> float:
        each = 0.0
        for _ in range(SETTLED_AFTER if replicas else 0):
            each = rate / replicas * (latency.mean_s(curve, each) or seconds)
        is_full = bool(places) and replicas * places < each * replicas + FREE * sqrt(each * replicas)
        return 0.0 if is_full or not replicas else shares(each)

    return share


def load_ahead(record: WorkloadState, now: float) -> float:
    """Requests in flight and waiting: those of now, or those expected until a replica would answer, if that is more."""
    ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
    ahead = expected(record, now)
    return max(ongoing + queued, ahead.load if ahead is not None and ahead.counts else 0.0)


def bounds(spec: Workload, now: float) -> tuple[int, int]:
    """Least and most replicas now: the bound whose cron fired last, else the spec's."""
    low, high, fired = spec.min_replicas, spec.max_replicas, -1.0
    for schedule, bound_low, bound_high in spec.autoscaling.bounds if spec.autoscaling else ():
        last = cron.last_due(schedule, now)
        if last is not None and last > fired:
            low, high, fired = bound_low, bound_high, last
    return low, high


def comes_in_s(record: WorkloadState) -> float:
    """Seconds from asking for a replica until it answers, as most of the last ones took."""
    return trade.seconds_p95(record.handovers) or COMES_IN_S


def starting(record: WorkloadState) -> list[float]:
    """When those that start now were launched. Who waits for a place is none of them: another would wait as well."""
    gangs = map(record.known.__getitem__, record.gangs)
    return [each.launched_at or 0.0 for each in gangs if each.status is Status.LAUNCHING]


def late_at(record: WorkloadState) -> float | None:
    """When all that start will have taken longer than a start does, as most of the last ones took, while requests are
    held for the first of them; of none that is known, than half of the time for which they wait. None: nobody waits, or
    nothing starts."""
    knobs, began = record.workload.autoscaling, starting(record)
    if knobs is None or not knobs.hold_s or not began or record.load is None or not record.load[1] or answering(record):
        return None
    return max(began) + (trade.seconds_p95(record.handovers) or knobs.hold_s / 2)


def expected(record: WorkloadState, now: float) -> season.Expected | None:
    """The load until a replica that is asked for now answers, by yesterday and a week ago. None: not known, or not to
    be looked at."""
    knobs = record.workload.autoscaling
    if knobs is None or not knobs.forecast:
        return None
    return season.expected(record.season, now, comes_in_s(record))


def forecast_changes_at(record: WorkloadState, now: float) -> float | None:
    """When there may be another forecast though nothing is said. None: there is none that counts."""
    ahead = expected(record, now)
    return season.next_change(now, comes_in_s(record)) if ahead is not None and ahead.counts else None


def needed(record: WorkloadState, reach: latency.Reach) -> int:
    """Replicas that hold its target at the load of now."""
    ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
    return ceil((ongoing + queued) / reach.load) if reach.load else 0


def about_target(record: WorkloadState) -> Message | None:
    """Whether its target can be held, by what was measured. None: it has none."""
    reach, spec = reach_of(record), record.workload
    if reach is None or spec.slo is None:
        return None
    if reach.load is None:
        return say("slo.unmeasured", target=tuple(_target(*each) for each in latency.targets(spec.slo)))
    flavor = flavor_of(record)
    on = Ref(FLAVOR, flavor) if flavor else ()
    target, took, at = target_of(reach), reach.seconds, reach.at_load
    if not reach.load:
        return say("slo.unreachable", target=target, on=on, took=took, at=at)
    most, count = spec.max_replicas, needed(record, reach)
    if count > most:
        ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
        each, load = spec.groups[0].options[0], ongoing + queued
        return say(
            "slo.short", target=target, most=most, each=each, load=load, needed=count, one=reach.load, took=took, at=at
        )
    return say("slo.holds", target=target, load=reach.load, on=on, took=took, at=at)


def about_forecast(record: WorkloadState, now: float) -> Message | None:
    """What is expected, and how far off such forecasts were. None: it makes none."""
    knobs = record.workload.autoscaling
    if knobs is None or not knobs.forecast:
        return None
    ahead = expected(record, now)
    if ahead is None:
        return say("ahead.unknown")
    if not ahead.counts:
        return say("ahead.wrong", error=ahead.error)
    within = comes_in_s(record)
    return say("ahead.known", load=ahead.load, low=ahead.low, high=ahead.high, within=within, error=ahead.error)


def target_of(reach: latency.Reach) -> Message:
    return _target(reach.name, reach.target_s)


def _target(name: str, seconds: float) -> Message:
    match name:
        case latency.TTFT:
            return say("slo.ttft_p95", seconds=seconds)
        case latency.TPOT:
            return say("slo.tpot_p95", seconds=seconds)
    return say("slo.latency_p95", seconds=seconds)
