"""Planned starts: the earliest moment at which a waiting gang fits, and whether later work would delay it.

Everybody who holds something is taken to end when run_times.py says. Reservations (windows.py) and the starts planned
before this one are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import ceil, inf

from llmsched.core.amounts import flavor_of, need_milli, options_of
from llmsched.core.exact_fit import fits_exactly
from llmsched.core.kept_quota import KeptQuota, need_by_row
from llmsched.core.message import About, Message, say, workload
from llmsched.core.records import GangState, amount_of, gpus_of
from llmsched.core.reserved import Row
from llmsched.core.resources import MILLI, ZERO, Resources
from llmsched.core.run_times import presumed_end, presumed_s, runtime_s
from llmsched.core.scheduling_pass import Pass, There
from llmsched.core.stages import place
from llmsched.core.state import State
from llmsched.core.timeline import Moment, Timeline, gpus_on, presumed_ends
from llmsched.core.trial import Trial, Without
from llmsched.core.windows import Windows, kept
from llmsched.core.workload import Placement, Workload

ONE_GPU = Resources(MILLI)


@dataclass(slots=True)
class Promise:
    """A planned start: from `start` on these places belong to a gang that waits now."""

    gang: GangState
    start: float
    end: float
    placement: Placement
    basis: Message | None  # whose end it is; None: of somebody whose run time nobody knows, so that it is only a bound
    pool: int = 0  # of a gang for which only the number of GPUs matters: the nodes they may be on,
    spare_milli: int = 0  # and how much more of them is free at `start` than it needs
    hold: bool = False  # made because the gang has waited long
    is_inside: bool = False  # of a hold: its queue owns what it needs, and has that now
    quota: KeptQuota | None = None  # of a hold, where quotas are enforced: what it keeps of them
    overdue: int = 0  # of a hold that should have been redeemed by now: nodes that later work keeps from it
    evicts: bool = False  # it was planned as if those had left that may be evicted for it
    is_owed: bool = False  # one that evicts: as the gang has waited long, not for its priority alone
    beside: list[str] | None = None  # cache of leaves_room: who holds something on its nodes


def gives_way(state: State, spec: Workload, head: Workload) -> bool:
    """Whether elastic work is made smaller when `head` starts: stages/shrink.py does it for a gang of its own queue."""
    if not spec.is_elastic() or not state.configuration.scheduling.elastic:
        return False
    return spec.queue == head.queue or not state.quota.enforced


def least(spec: Workload, placement: Placement) -> Placement:
    """What is left of a placement at the smallest size: the highest ranks go."""
    elastic = spec.groups[0].name
    ranks = [rank for rank, placed in enumerate(placement) if placed.group == elastic]
    goes = dict.fromkeys(ranks[spec.min_size :])
    return tuple(placed for rank, placed in enumerate(placement) if rank not in goes)


def earliest(this: Pass, gang: GangState, size: int, windows: Windows, promises: list[Promise]) -> Promise | None:
    """The first moment the gang would fit, with whichever of its options that is, if everybody ends as expected and
    promises made before it are kept."""
    options = options_of(gang.spec)
    found = [start for option in options if (start := _with_option(this, gang, size, option, windows, promises))]
    return min(found, key=lambda promise: promise.start, default=None)


def _with_option(
    this: Pass, gang: GangState, size: int, option: int, windows: Windows, promises: list[Promise]
) -> Promise | None:
    state = this.state
    lasts = runtime_s(state, gang, size)
    spec = gang.spec
    need = need_milli(spec, size, option)
    mask = place.eligible(this.trial, spec, option)
    flavor = flavor_of(spec, option)
    counts = flavor is not None or len(state.capacity.by_flavor) <= 1 or not state.quota.enforced
    fluid = counts and is_fluid(state, spec) and not promises and not windows.rows and not has_shares(state)
    flavor = flavor or next(iter(state.capacity.by_flavor), None)
    timeline = timeline_for(this.trial, spec)
    if not _enough_ends(this.trial, mask, need - timeline.free_now(mask)):
        return None
    whole, taken = _whole_gpus(spec, option), dict[tuple[int, ...], dict[int, int]]()
    for moment in timeline.moments(mask, need, _others(this.trial.now, promises, windows), not fluid):
        spare = moment.milli - need
        if fluid and not state.quota.enforced:
            start = _rounded(this.trial, moment.at)
            return Promise(gang, start, inf, (), _basis(timeline, moment), mask, spare)
        if fluid:
            world = timeline.go_to(moment.gone)  # who has ended by then has given its quota back as well
            if place.quota_refusal(world, spec, flavor, need) is None:
                start, row = _rounded(this.trial, moment.at), state.quota.row_of(spec.queue, flavor)
                quota = KeptQuota(spec.queue, {row: (flavor, need)}, world.state.quota.twin())
                return Promise(gang, start, inf, (), _basis(timeline, moment), mask, spare, quota=quota)
            continue
        there = _those_in_the_way(windows, promises, spec, moment.at, lasts)
        those = tuple(map(id, there[0]))
        if whole and those not in taken:
            taken[those] = _taken(state, there[0])
        if whole and not timeline.has_room(moment.gone, mask, whole, size, taken[those]):
            continue
        world = timeline.go_to(moment.gone)
        placed = _beside(There(this, world), gang, size, option, *there)
        if placed is not None:
            start = _rounded(this.trial, moment.at)
            then = _quota_then(world, spec, placed, there[0]) if state.quota.enforced else None
            return Promise(gang, start, start + lasts, placed, _basis(timeline, moment), quota=then)
    return None


def timeline_for(trial: Trial, spec: Workload) -> Timeline:
    """Of a trial as it stands, where elastic work is as small as it is when such a gang starts."""
    state = trial.state
    for_queue = spec.queue if state.elastic and state.quota.enforced else ""

    def make() -> Timeline:
        world = Without(trial)
        for name in state.elastic:
            other = state.gangs[name]
            if world.held(other) and gives_way(state, other.spec, spec):
                world.hold(other, least(other.spec, world.held(other)))
        return Timeline(world, presumed_ends(trial))

    return trial.beside((Timeline, for_queue), make)


def _others(now: float, promises: list[Promise], windows: Windows) -> list[float]:
    """Now, and whenever a promise or a window ends, soonest first."""
    times = (now, *(promise.end for promise in promises), *(row.closes for row in windows.rows))
    return sorted(dict.fromkeys(at for at in times if now <= at < inf))


def _whole_gpus(spec: Workload, option: int) -> int:
    """Of each bundle of the first group; 0: they are none, or not whole."""
    whole, part = divmod(spec.groups[0].option(option).resources.gpus_milli, MILLI)
    return 0 if part else whole


def _those_in_the_way(
    windows: Windows, promises: list[Promise], spec: Workload, at: float, lasts: float
) -> tuple[list[Promise], list[Row]]:
    """What is promised and reserved at some time between `at` and the end of work that starts then."""
    promised = [promise for promise in promises if promise.start < at + lasts and promise.end > at]
    return promised, windows.against(spec, at, at + lasts)


def _taken(state: State, promised: list[Promise]) -> dict[int, int]:
    """Whole GPUs that these take, by the bit of their node."""
    taken: dict[int, int] = {}
    for promise in promised:
        for placed in promise.placement:
            if gpus := amount_of(promise.gang.spec, placed).gpus_milli // MILLI:
                bit = 1 << state.nodes[placed.node].slot
                taken[bit] = taken.get(bit, 0) + gpus
    return taken


def _beside(
    this: Pass, gang: GangState, size: int, option: int, promised: list[Promise], rows: list[Row]
) -> Placement | None:
    """Where it would go beside them."""
    trial = this.trial
    mark = trial.mark()
    for promise in promised:
        trial.hold(promise.gang, promise.placement)
    with kept(trial, rows) as reserved:
        placed = place.find(this, gang, size, ~reserved, explain=False, option=option)
    trial.rollback(mark)
    return None if isinstance(placed, place.Refused) else placed


def _quota_then(trial: Trial, spec: Workload, placed: Placement, promised: list[Promise]) -> KeptQuota:
    """As it will be when the gang starts there beside them."""
    then = trial.state.quota.twin()
    for promise in promised:
        of_them = need_by_row(trial, promise.gang.spec, promise.placement)
        if promise.quota is not None and promise.pool:
            of_them = dict(promise.quota.need)
        for flavor, milli in of_them.values():
            then.charge(promise.gang.spec.queue, flavor, milli)
    return KeptQuota(spec.queue, need_by_row(trial, spec, placed), then)


def has_shares(state: State) -> bool:
    """Whether anybody holds a part of a device: then numbers of GPUs do not say which devices are whole."""
    return any(bundle.gpus_milli % MILLI for bundle in state.kinds)


def is_fluid(state: State, spec: Workload) -> bool:
    """Whether only the number of free GPUs matters: bundles of one GPU anywhere, and of whatever else they ask for, as
    all who hold something do, so little that no node runs short of that before all of its GPUs are taken."""
    if len(spec.groups) != 1 or spec.topology != (None, None) or len(spec.groups[0].options) != 1:
        return False
    each = spec.groups[0].options[0].resources
    return each == ONE_GPU or (each.gpus_milli == MILLI and is_plenty(state, [each, *state.kinds]))


def is_plenty(state: State, bundles: Iterable[Resources]) -> bool:
    """Whether beside each GPU that such bundles leave free a node has all that one of them asks for with it."""
    bundles = [*bundles]
    if any(each.custom or not each.gpus_milli for each in bundles):
        return False
    cpus, memory = _most_for_a_gpu(bundles)
    capacity = state.capacity
    left = [total for _, total in capacity.kinds]
    left += [node.node.total.minus(node.foreign) for node in capacity.nodes(capacity.foreign)]
    return all(
        each.gpus_milli * cpus <= each.cpus_milli and each.gpus_milli * memory <= each.memory_bytes for each in left
    )


def _enough_ends(trial: Trial, mask: int, lacking: int) -> bool:
    """Whether so many thousandths of GPUs may come free at all: replicas stay. Else no moment need be looked at."""
    state = trial.state
    started = (name for name in trial.placements if name not in state.holding)
    for name in () if lacking <= 0 else chain(state.holding, started):
        other = state.gangs[name]
        leaves = name in state.vacating or name in trial.leaving or name not in state.holding
        if leaves or other.spec.kind != "serve" or name in state.ends.of:
            lacking -= gpus_on(state.capacity, other, trial.held(other), mask)
        if lacking <= 0:
            break
    return lacking <= 0


def _rounded(trial: Trial, moment: float) -> float:
    """Up to the next step of the resolution from now."""
    step = trial.state.configuration.scheduling.time_resolution_s
    return trial.now + ceil((moment - trial.now) / step) * step if step > 0 else moment


def _basis(timeline: Timeline, moment: Moment) -> Message | None:
    """Whose end it is, and, for whoever may see that work, how that end is known; None when that is presumed of
    somebody so far."""
    if timeline.is_presumed(moment.gone):
        return None
    last = timeline.last(moment.gone)
    if last is None or moment.by_window:
        return say("eta.window")
    declared = last.spec.max_runtime_s is not None and last.work_left is None
    known = say("basis.declared") if declared else last.basis or say("basis.estimate")
    return say("eta.ends", who=workload(last.workload_id), basis=About(last.workload_id, known))


def leaves_room(trial: Trial, promise: Promise, placement: Placement, spec: Workload, ends_at: float) -> bool:
    """Whether work that holds `placement` until `ends_at` still lets the promise be kept."""
    if ends_at <= promise.start:
        return True
    if promise.pool:
        return in_pool(trial, promise, placement, spec) <= promise.spare_milli
    shared = dict.fromkeys(placed.node for placed in promise.placement)
    if not any(placed.node in shared for placed in placement):
        return True
    state = trial.state
    mark = trial.mark()
    try:
        if promise.beside is None:
            on_them = (state.gangs[name] for name in state.holding)
            promise.beside = [g.id for g in on_them if any(placed.node in shared for placed in g.held)]
        for name in dict.fromkeys((*promise.beside, *trial.placements)):
            other = state.gangs[name]
            held = trial.held(other)
            if not held or not any(placed.node in shared for placed in held):
                continue
            if other.is_holding():
                leaves = name in state.vacating or name in trial.leaving
                leaves = leaves or (promise.evicts and other.spec.preemptible)
                gone = leaves or presumed_end(state, other) <= promise.start
            else:
                gone = trial.now + presumed_s(state, other, held) <= promise.start
            if gone:
                trial.hold(other, ())
            elif gives_way(state, other.spec, promise.gang.spec):
                trial.hold(other, least(other.spec, held))
        trial.hold(promise.gang, promise.placement)
        return fits_exactly(trial, spec, placement)
    finally:
        trial.rollback(mark)


def use_spare(trial: Trial, promise: Promise, placement: Placement, spec: Workload, ends_at: float) -> None:
    """Work that was let in beside a promise takes from what it had to spare."""
    if promise.pool and ends_at > promise.start:
        promise.spare_milli -= in_pool(trial, promise, placement, spec)


def in_pool(trial: Trial, promise: Promise, placement: Placement, spec: Workload) -> int:
    """Thousandths of GPUs of a placement on the nodes that the planned start may use, and of those that are of no use
    there as it takes so much CPU or memory beside its own."""
    nodes = trial.state.nodes
    inside = tuple(placed for placed in placement if promise.pool >> nodes[placed.node].slot & 1)
    taken = gpus_of(spec, inside)
    if promise.gang.spec.groups[0].options[0].resources == ONE_GPU:
        return taken
    cpus, memory = _most_for_a_gpu([promise.gang.spec.groups[0].options[0].resources, *trial.state.kinds])
    on_nodes: dict[str, Resources] = {}
    for placed in inside:
        on_nodes[placed.node] = on_nodes.get(placed.node, ZERO).plus(amount_of(spec, placed))
    for name, amount in on_nodes.items():
        left = nodes[name].node.total.minus(nodes[name].foreign).minus(amount)
        usable = min(left.gpus_milli, *_quotients((left.cpus_milli, cpus), (left.memory_bytes, memory)))
        taken += left.gpus_milli - max(0, int(usable))
    return taken


def _most_for_a_gpu(bundles: Iterable[Resources]) -> tuple[float, float]:
    """CPUs and memory that any of these has for each thousandth of a GPU, at most."""
    with_gpus = [each for each in bundles if each.gpus_milli]
    cpus = max((each.cpus_milli / each.gpus_milli for each in with_gpus), default=0.0)
    return cpus, max((each.memory_bytes / each.gpus_milli for each in with_gpus), default=0.0)


def _quotients(*pairs: tuple[float, float]) -> list[float]:
    return [amount / each if each else inf for amount, each in pairs]
