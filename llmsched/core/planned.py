"""Planned starts: the earliest moment at which a waiting gang fits, and whether later work would delay it.

Everybody who holds something is taken to end when run_times.py says. Reservations (windows.py) and the starts planned
before this one are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from math import ceil, inf
from typing import NamedTuple

from llmsched.core.amounts import flavor_of, need_milli, options_of
from llmsched.core.exact_fit import fits_exactly
from llmsched.core.kept_quota import KeptQuota, need_by_row
from llmsched.core.message import About, Message, say, workload
from llmsched.core.records import GangState, gpus_of, size_of
from llmsched.core.reserved import Row
from llmsched.core.resources import MILLI, Resources
from llmsched.core.run_times import presumed_end, presumed_s, runtime_s
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows, kept
from llmsched.core.workload import Placement, Workload

ONE_GPU = Resources(MILLI)
MOMENTS_TRIED = 64  # moments at which places are looked for, one after the other


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
    trial, state = this.trial, this.state
    lasts = runtime_s(state, gang, size)
    spec = gang.spec
    need = need_milli(spec, size, option)
    mask = place.eligible(trial, spec, option)
    flavor = flavor_of(spec, option)
    counts = flavor is not None or len(state.capacity.by_flavor) <= 1 or not state.quota.enforced
    fluid = counts and is_fluid(spec) and not promises and not windows.rows and not _has_shares(state)
    flavor = flavor or next(iter(state.capacity.by_flavor), None)
    waiting_for: list[GangState] = []  # ends that have been counted and not yet taken out of the ledgers
    looks = _Looks()
    mark = trial.mark()
    try:
        for name in state.elastic:  # they are made smaller when the gang starts
            other = state.gangs[name]
            if trial.held(other) and other is not gang and gives_way(state, other.spec, spec):
                trial.hold(other, least(other.spec, trial.held(other)))
        counted = state.capacity.free_gpus(mask) * MILLI + state.capacity.slack_milli(mask)
        if not _enough_ends(trial, mask, need - counted):
            return None
        for moment in _moments(trial, gang, promises, windows):
            waiting_for += moment.ended
            counted += sum(_gpus_on(trial, other, mask) for other in moment.ended)
            if counted < need:
                continue
            if fluid and not state.quota.enforced:
                return Promise(gang, _rounded(trial, moment.at), inf, (), moment.basis, mask, counted - need)
            for other in waiting_for:  # who has ended by then gives its quota back as well
                trial.hold(other, ())
            waiting_for.clear()
            if fluid:
                if place.quota_refusal(trial, spec, flavor, need) is None:
                    start, spare = _rounded(trial, moment.at), counted - need
                    quota = KeptQuota(
                        spec.queue, {state.quota.row_of(spec.queue, flavor): (flavor, need)}, state.quota.twin()
                    )
                    return Promise(gang, start, inf, (), moment.basis, mask, spare, quota=quota)
                continue
            if looks.is_left_out(moment):
                continue
            there = _those_in_the_way(windows, promises, spec, moment.at, lasts)
            placed = _beside(this, gang, size, option, *there)
            if placed is not None:
                start = _rounded(trial, moment.at)
                then = _quota_then(trial, spec, placed, there[0]) if state.quota.enforced else None
                return Promise(gang, start, start + lasts, placed, moment.basis, quota=then)
        return None
    finally:
        trial.rollback(mark)


def _those_in_the_way(
    windows: Windows, promises: list[Promise], spec: Workload, at: float, lasts: float
) -> tuple[list[Promise], list[Row]]:
    """What is promised and reserved at some time between `at` and the end of work that starts then."""
    promised = [promise for promise in promises if promise.start < at + lasts and promise.end > at]
    return promised, windows.against(spec, at, at + lasts)


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


class _Moment(NamedTuple):
    """A time at which something ends; `basis` says whose end it is, None when that is presumed of somebody so far. Of
    the hundreds that are counted one is told, so it is worded for that one alone."""

    at: float
    ended: list[GangState]
    last: GangState | None
    by_window: bool
    is_presumed: bool
    is_last: bool

    @property
    def basis(self) -> Message | None:
        return None if self.is_presumed else _basis(self.last, self.by_window)


class _Looks:
    """Looking for places costs much more than counting: when the first moments were in vain, ever more are left out."""

    def __init__(self) -> None:
        self._taken = self._left_out = 0

    def is_left_out(self, moment: _Moment) -> bool:
        if self._left_out and not moment.is_last:
            self._left_out -= 1
            return True
        self._taken += 1
        if self._taken > MOMENTS_TRIED:
            self._left_out = 1 << self._taken - MOMENTS_TRIED
        return False


def _moments(trial: Trial, gang: GangState, promises: list[Promise], windows: Windows) -> Iterator[_Moment]:
    """Now, and whenever work, a promise or a window ends, soonest first."""
    now = trial.now
    closes = dict.fromkeys(row.closes for row in windows.rows)
    times = dict.fromkeys((now, *(promise.end for promise in promises if promise.end < inf), *closes))
    moments = sorted(at for at in times if at >= now)
    ending = ends(trial, gang)
    ahead = next(ending, None)
    last: GangState | None = None
    is_presumed = False
    while ahead is not None or moments:
        at = min(ahead[0] if ahead is not None else inf, moments[0] if moments else inf)
        by_window = bool(moments) and moments[0] == at and at > now
        if moments and moments[0] == at:
            moments.pop(0)
        ended = []
        while ahead is not None and ahead[0] <= at:
            last = ahead[1]
            is_presumed = is_presumed or ahead[2]
            ended.append(last)
            ahead = next(ending, None)
        yield _Moment(at, ended, last, by_window, is_presumed, ahead is None and not moments)


def _has_shares(state: State) -> bool:
    """Whether anybody holds a part of a device: then numbers of GPUs do not say which devices are whole."""
    return any(bundle.gpus_milli % MILLI for bundle in state.kinds)


def is_fluid(spec: Workload) -> bool:
    """Whether only the number of free GPUs matters: bundles of one GPU and nothing else, anywhere."""
    if len(spec.groups) != 1 or spec.topology != (None, None) or len(spec.groups[0].options) != 1:
        return False
    return spec.groups[0].options[0].resources == ONE_GPU


def ends(trial: Trial, gang: GangState) -> Iterator[tuple[float, GangState, bool]]:
    """(when it lets go, gang, whether that is presumed) of everybody who ever does, soonest first."""
    state = trial.state
    now = trial.now
    gangs = state.gangs
    for name in (*state.vacating, *trial.leaving):
        if trial.held(gangs[name]):
            yield now, gangs[name], False
    started = []
    for name, placement in trial.placements.items():
        if placement and name not in state.holding and name != gang.id:
            other = gangs[name]
            is_known = runtime_s(state, other, size_of(other.spec, placement), placement) < inf
            started.append((now + presumed_s(state, other, placement), name, not is_known))
    known = ((end if end > now else now + 1.0, name, False) for end, name in state.ends.soonest)
    for end, name, presumed in merge(known, sorted(started), _presumed_ends(trial)):
        other = gangs[name]
        if end < inf and name not in trial.leaving and trial.held(other):
            yield end, other, presumed


def _presumed_ends(trial: Trial) -> list[tuple[float, str, bool]]:
    """Of those who hold something, and of whom no end is known: soonest first. They do not change in a pass."""
    if trial.presumed_ends is None:
        state = trial.state
        stay = [name for name in state.endless() if name not in state.vacating]
        trial.presumed_ends = sorted((presumed_end(state, state.gangs[name]), name, True) for name in stay)
    return trial.presumed_ends


def _enough_ends(trial: Trial, mask: int, lacking: int) -> bool:
    """Whether so many thousandths of GPUs may come free at all: replicas stay. Else no moment need be looked at."""
    state = trial.state
    for name in () if lacking <= 0 else dict.fromkeys((*state.holding, *trial.placements)):
        other = state.gangs[name]
        leaves = name in state.vacating or name in trial.leaving or name not in state.holding
        if leaves or other.spec.kind != "serve" or name in state.ends.of:
            lacking -= _gpus_on(trial, other, mask)
        if lacking <= 0:
            break
    return lacking <= 0


def _gpus_on(trial: Trial, gang: GangState, mask: int) -> int:
    """Thousandths of GPUs that a gang has on the nodes of a mask, what it takes beyond its own among them."""
    held = trial.held(gang)
    nodes = trial.state.nodes
    beyond = 0
    if gang.excess and held:
        beyond = sum(used.gpus_milli for node, used in gang.excess if mask >> nodes[node].slot & 1)
    if mask == trial.state.capacity.all:
        return gpus_of(gang.spec, held) + beyond
    inside = tuple(placed for placed in held if mask >> nodes[placed.node].slot & 1)
    return gpus_of(gang.spec, inside) + beyond


def _rounded(trial: Trial, moment: float) -> float:
    """Up to the next step of the resolution from now."""
    step = trial.state.configuration.scheduling.time_resolution_s
    return trial.now + ceil((moment - trial.now) / step) * step if step > 0 else moment


def _basis(last: GangState | None, by_window: bool) -> Message:
    """Whose end it is, and, for whoever may see that work, how that end is known."""
    if last is None or by_window:
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
    """Thousandths of GPUs of a placement on the nodes that the planned start may use."""
    nodes = trial.state.nodes
    return gpus_of(spec, tuple(placed for placed in placement if promise.pool >> nodes[placed.node].slot & 1))
