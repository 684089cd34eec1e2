"""Time: when running work ends, which nodes are promised for a window, and the earliest start of a gang that waits.

Ends are estimates: a declared limit, or what is left of the estimated run time, whichever comes first; without either
a gang is taken to run for ever. An advance reservation closes its nodes to outsiders that cannot end before it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from math import ceil, inf
from typing import NamedTuple

from llmsched.core import cron
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Reservation
from llmsched.core.message import About, Message, say, workload
from llmsched.core.policy import Placing, View
from llmsched.core.records import GangState, amount_of, expected_end, gpus_of
from llmsched.core.resources import MILLI, Resources
from llmsched.core.stages import place
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload

ONE_GPU = Resources(MILLI)
TIMES_TRIED = 64  # moments at which an earliest start is looked for


@dataclass(slots=True)
class Promise:
    """A planned start: from `start` on these places belong to a gang that waits now."""

    gang: GangState
    start: float
    end: float
    placement: Placement
    basis: Message
    pool: int = 0  # of a gang for which only the number of GPUs matters: the nodes they may be on,
    spare_milli: int = 0  # and how much more of them is free at `start` than it needs


def runtime_s(state: State, gang: GangState, size: int, placement: Placement = (), fastest: bool = False) -> float:
    """How long an attempt started now would run at `size` where `placement` says; while that is open on the slowest of
    its options, or on the fastest. Infinite when nobody said."""
    spec = gang.spec
    guess = inf
    if gang.work_left is not None:
        options = [placement[0].option] if placement else range(len(spec.groups[0].options))
        speeds = [state.history.speed(spec, size, option) for option in options]
        guess = gang.work_left / max(max(speeds) if fastest else min(speeds), 1e-9)
    if spec.max_runtime_s is not None:
        guess = min(guess, max(spec.max_runtime_s - gang.served_s, 0.0))
    return guess


def end_of(gang: GangState, now: float) -> float:
    """When a gang that holds something is expected to let go; at least a second from now."""
    return max(expected_end(gang), now + 1.0)


def window(reservation: Reservation, now: float) -> tuple[float, float] | None:
    """The present or next [start, end) of a reservation; None when it is over."""
    if reservation.repeat is None:
        end = reservation.start + reservation.duration_s
        return (reservation.start, end) if now < end else None
    start = cron.next_due(reservation.repeat, max(now - reservation.duration_s, reservation.start - 60.0))
    return (start, start + reservation.duration_s) if start is not None else None


def is_holder(reservation: Reservation, spec: Workload) -> bool:
    return (reservation.queue is not None and spec.queue == reservation.queue) or spec.user in reservation.users


def is_immovable(reservation: Reservation, gang: GangState, opens: float) -> bool:
    """Whether it neither ends before the window opens, nor may be asked to leave, nor is of the holder."""
    return not (gang.spec.preemptible or is_holder(reservation, gang.spec) or expected_end(gang) <= opens)


def nodes_of(trial: Trial, gang: GangState) -> int:
    """The nodes on which it holds something."""
    mask = 0
    for placed in gang.held:
        if placed.node in trial.state.nodes:
            mask |= 1 << trial.state.nodes[placed.node].slot
    return mask


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


class Row(NamedTuple):
    """A reservation that matters in this pass, and what it takes: whole nodes, and of others so many GPUs each."""

    opens: float
    closes: float
    nodes: int  # mask of the nodes that are wholly reserved
    parts: tuple[tuple[str, int], ...]  # (node, whole GPUs of it)
    reservation: Reservation


class Windows:
    """The reservations that matter in this pass."""

    def __init__(self, trial: Trial, reservations: tuple[Reservation, ...] | None = None) -> None:
        self.rows: list[Row] = []
        capacity = trial.state.capacity
        for reservation in trial.state.configuration.reservations if reservations is None else reservations:
            span = window(reservation, trial.now)
            if span is None:
                continue
            mask = 0
            parts: tuple[tuple[str, int], ...] = ()
            if reservation.nodes:
                for node in capacity.by_id.values():
                    if node.node.id in reservation.nodes or node.node.name in reservation.nodes:
                        mask |= 1 << node.slot
            else:
                mask, parts = self._choose(trial, reservation, span[0])
            if mask or parts:
                self.rows.append(Row(*span, mask, parts, reservation))

    def _choose(self, trial: Trial, reservation: Reservation, opens: float) -> tuple[int, tuple[tuple[str, int], ...]]:
        """Exactly the GPUs that were asked for, on as few nodes as possible, so that a gang of the holder fits: whole
        nodes, then a part of one. Of equal nodes first those from which the fewest GPUs must be taken back, then those
        on which its holder runs, then the last ones (packing starts at the first). What work holds that can be made
        to leave by nobody is no part of it, unless there is not enough otherwise."""
        capacity = trial.state.capacity
        fixed: dict[str, int] = {}  # thousandths that stay on a node,
        guests: dict[str, int] = {}  # and that would have to leave it
        theirs: dict[str, None] = {}
        for name in trial.state.holding:
            gang = trial.state.gangs[name]
            holds = is_holder(reservation, gang.spec)
            if not holds and expected_end(gang) <= opens:
                continue
            stays = is_immovable(reservation, gang, opens)
            for placed in trial.held(gang):
                if holds:
                    theirs[placed.node] = None
                else:
                    of = fixed if stays else guests
                    of[placed.node] = of.get(placed.node, 0) + amount_of(gang.spec, placed).gpus_milli
        taken = dict.fromkeys((node for row in self.rows for node, _ in row.parts if row.closes > opens))
        wholly = self._mask(opens, opens + reservation.duration_s)
        of_flavor = capacity.all if reservation.flavor is None else capacity.by_flavor.get(reservation.flavor, 0)
        offers: list[tuple[int, NodeState]] = []
        for node in capacity.nodes(of_flavor & capacity.open & ~wholly):
            offer = node.total_gpus - node.foreign_gpus - ceil(fixed.get(node.node.id, 0) / MILLI)
            if offer > 0 and node.node.id not in taken:
                offers.append((offer, node))

        def trouble(row: tuple[int, NodeState], wanted: int) -> tuple[int, bool, int, int]:
            offer, node = row
            leave = wanted - offer + ceil(guests.get(node.node.id, 0) / MILLI)
            return max(leave, 0), node.node.id not in theirs, offer, -node.slot

        offers.sort(key=lambda row: (-row[0], trouble(row, row[0])))
        mask, parts, left = 0, [], ceil(reservation.gpus_milli / MILLI)
        for number, row in enumerate(offers):
            if left <= 0:
                break
            if row[0] >= left:  # the last one: whichever is least trouble
                row = min((each for each in offers[number:] if each[0] >= left), key=lambda each: trouble(each, left))
            offer, node = row
            if min(offer, left) == node.total_gpus:
                mask |= 1 << node.slot
            else:
                parts.append((node.node.id, min(offer, left)))
            left -= offer
        if left > 0:
            for name in fixed:
                mask |= 1 << trial.state.nodes[name].slot & of_flavor
        return mask, tuple(parts)

    def _mask(self, start: float, end: float) -> int:
        mask = 0
        for row in self.rows:
            if start < row.closes and end > row.opens:
                mask |= row.nodes
        return mask

    def against(self, spec: Workload, start: float, end: float) -> list[Row]:
        """The reservations of others that concern work of `spec` between `start` and `end`."""
        return [
            row for row in self.rows if start < row.closes and end > row.opens and not is_holder(row.reservation, spec)
        ]


def nodes_of_row(trial: Trial, row: Row) -> list[str]:
    """The nodes that it touches, those it has wholly first."""
    wholly = [node.node.id for node in trial.state.capacity.nodes(row.nodes)]
    return list(dict.fromkeys([*wholly, *(node for node, _ in row.parts)]))


def closed(trial: Trial, rows: list[Row]) -> int:
    """Every node that these reservations touch."""
    mask = 0
    for row in rows:
        mask |= row.nodes
        for node, _ in row.parts:
            mask |= 1 << trial.state.nodes[node].slot
    return mask


@contextmanager
def kept(trial: Trial, rows: list[Row]) -> Iterator[int]:
    """While it lasts the GPUs reserved on shared nodes that their holders have not taken yet count as taken. Yields
    the mask of the nodes that are wholly reserved."""
    capacity = trial.state.capacity
    mask, taken = 0, []
    for row in rows:
        mask |= row.nodes
        for name, count in row.parts:
            node = capacity.by_id[name]
            idle = min(count - ceil(_of_holder(trial, row.reservation, name) / MILLI), node.free_whole)
            if idle > 0:
                taken.append((name, Resources(idle * MILLI)))
                capacity.change(*taken[-1], -1, 1)
    try:
        yield mask
    finally:
        for name, amount in reversed(taken):
            capacity.change(name, amount, -1, -1)


def _of_holder(trial: Trial, reservation: Reservation, node: str) -> int:
    """Thousandths of GPUs that the holder of a reservation holds on a node."""
    total = 0
    for name in dict.fromkeys((*trial.state.holding, *trial.placements)):
        gang = trial.state.gangs[name]
        if is_holder(reservation, gang.spec):
            total += sum(amount_of(gang.spec, each).gpus_milli for each in trial.held(gang) if each.node == node)
    return total


def earliest(
    trial: Trial,
    gang: GangState,
    size: int,
    policy: Placing,
    view: View,
    windows: Windows,
    promises: list[Promise],
) -> Promise | None:
    """The first moment the gang would fit if everybody ends as expected and promises made before it are kept."""
    state = trial.state
    lasts = runtime_s(trial.state, gang, size)
    spec = gang.spec
    need = place.need_milli(spec, size, 0)
    mask = place.eligible(trial, spec, 0)
    fluid = is_fluid(spec) and not promises and not windows.rows
    flavor = spec.groups[0].options[0].flavor or next(iter(state.capacity.by_flavor), None)
    waiting_for: list[GangState] = []  # ends that have been counted and not yet taken out of the ledgers
    last: GangState | None = None
    moments = sorted(
        dict.fromkeys(
            at
            for at in (
                trial.now,
                *(promise.end for promise in promises if promise.end < inf),
                *(row.closes for row in windows.rows),
            )
            if at >= trial.now
        )
    )
    ends = _ends(trial, gang)
    ahead = next(ends, None)
    tried = 0
    mark = trial.mark()
    try:
        for name in state.elastic:  # they are made smaller when the gang starts
            other = state.gangs[name]
            if trial.held(other) and other is not gang and gives_way(state, other.spec, spec):
                trial.hold(other, least(other.spec, trial.held(other)))
        counted = state.capacity.free_gpus(mask) * MILLI
        while ahead is not None or moments:
            moment = min(ahead[0] if ahead is not None else inf, moments[0] if moments else inf)
            by_window = bool(moments) and moments[0] == moment
            if by_window:
                moments.pop(0)
            while ahead is not None and ahead[0] <= moment:
                last = ahead[1]
                waiting_for.append(last)
                counted += _gpus_on(trial, last, mask)
                ahead = next(ends, None)
            if counted < need:
                continue
            if fluid and state.quota.enforced:  # who has ended by then gives its quota back as well
                for other in waiting_for:
                    trial.hold(other, ())
                waiting_for.clear()
                if place.quota_refusal(trial, spec, flavor, need) is not None:
                    continue
            if fluid:
                return Promise(gang, _rounded(trial, moment), inf, (), _basis(last, False), mask, counted - need)
            for other in waiting_for:
                trial.hold(other, ())
            waiting_for.clear()
            if tried >= TIMES_TRIED:
                return None
            tried += 1
            inner = trial.mark()
            for promise in promises:
                if promise.start < moment + lasts and promise.end > moment:
                    trial.hold(promise.gang, promise.placement)
            with kept(trial, windows.against(spec, moment, moment + lasts)) as reserved:
                placed = place.find(trial, gang, size, policy, view, ~reserved, explain=False)
            trial.rollback(inner)
            if not isinstance(placed, place.Refused):
                start = _rounded(trial, moment)
                basis = _basis(last, by_window and moment > trial.now)
                return Promise(gang, start, start + lasts, placed, basis)
        return None
    finally:
        trial.rollback(mark)


def is_fluid(spec: Workload) -> bool:
    """Whether only the number of free GPUs matters: bundles of one GPU and nothing else, anywhere."""
    if len(spec.groups) != 1 or spec.topology != (None, None) or len(spec.groups[0].options) != 1:
        return False
    return spec.groups[0].options[0].resources == ONE_GPU


def _ends(trial: Trial, gang: GangState) -> Iterator[tuple[float, GangState]]:
    """(when it lets go, gang) of everybody who is expected to, soonest first."""
    state = trial.state
    now = trial.now
    gangs = state.gangs
    for name in (*state.vacating, *trial.leaving):
        if trial.held(gangs[name]):
            yield now, gangs[name]
    started = [
        (now + runtime_s(state, gangs[name], len(placement), placement), name)
        for name, placement in trial.placements.items()
        if placement and name not in state.holding and name != gang.id
    ]
    merged = merge(state.ends, sorted(started)) if started else state.ends
    for end, name in merged:
        other = gangs[name]
        if end < inf and name not in trial.leaving and trial.held(other):
            yield (end if end > now else now + 1.0), other


def _gpus_on(trial: Trial, gang: GangState, mask: int) -> int:
    """Thousandths of GPUs that a gang holds on the nodes of a mask."""
    held = trial.held(gang)
    if mask == trial.state.capacity.all:
        return gpus_of(gang.spec, held)
    nodes = trial.state.nodes
    inside = tuple(placed for placed in held if mask >> nodes[placed.node].slot & 1)
    return gpus_of(gang.spec, inside)


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
        return _in_pool(trial, promise, placement, spec) <= promise.spare_milli
    shared = dict.fromkeys(placed.node for placed in promise.placement)
    if not any(placed.node in shared for placed in placement):
        return True
    state = trial.state
    mark = trial.mark()
    try:
        for name in dict.fromkeys((*state.holding, *trial.placements)):
            other = state.gangs[name]
            held = trial.held(other)
            if not held or not any(placed.node in shared for placed in held):
                continue
            if other.is_holding():
                gone = name in state.vacating or name in trial.leaving or end_of(other, trial.now) <= promise.start
            else:
                gone = trial.now + runtime_s(trial.state, other, len(held), held) <= promise.start
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
        promise.spare_milli -= _in_pool(trial, promise, placement, spec)


def _in_pool(trial: Trial, promise: Promise, placement: Placement, spec: Workload) -> int:
    nodes = trial.state.nodes
    return gpus_of(spec, tuple(placed for placed in placement if promise.pool >> nodes[placed.node].slot & 1))


def fits_exactly(trial: Trial, spec: Workload, placement: Placement) -> bool:
    """Whether exactly these places are free (device indices of shares included)."""
    nodes = trial.state.nodes
    undo = []
    try:
        for placed in placement:
            node = nodes.get(placed.node)
            if node is None or node.draining:
                return False
            amount = amount_of(spec, placed)
            share = amount.gpus_milli % MILLI
            if share:
                if node.shares.get(placed.gpu_index, 0) + share > MILLI:
                    return False
                need_whole = amount.gpus_milli // MILLI + (placed.gpu_index not in node.shares)
                if node.free_whole < need_whole:
                    return False
                plain = amount._replace(gpus_milli=0)
                if not node.room(plain, 1):
                    return False
            elif not node.room(amount, 1):
                return False
            trial.state.capacity.change(placed.node, amount, placed.gpu_index, 1)
            undo.append((placed.node, amount, placed.gpu_index))
        return True
    finally:
        for name, amount, device in reversed(undo):
            trial.state.capacity.change(name, amount, device, -1)
