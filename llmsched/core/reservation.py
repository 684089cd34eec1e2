"""Time: when running work ends, which nodes are promised for a window, and the earliest start of a gang that waits.

Ends are estimates: a declared limit, or what is left of the estimated run time, whichever comes first; without either
a gang is taken to run for ever. An advance reservation closes its nodes to outsiders that cannot end before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from llmsched.core import cron
from llmsched.core.configuration import Reservation
from llmsched.core.policy import Placing, View
from llmsched.core.records import GangState, amount_of, speed
from llmsched.core.resources import MILLI
from llmsched.core.stages import place
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload

TIMES_TRIED = 64  # moments at which an earliest start is looked for


@dataclass(frozen=True, slots=True)
class Promise:
    """A planned start: from `start` on these places belong to a gang that waits now."""

    gang: GangState
    start: float
    end: float
    placement: Placement
    basis: str


def runtime_s(gang: GangState, size: int) -> float:
    """How long an attempt started now would run at `size`; infinite when nobody said."""
    spec = gang.spec
    guess = inf
    if gang.work_left is not None:
        guess = gang.work_left / max(speed(spec, size), 1e-9)
    if spec.max_runtime_s is not None:
        guess = min(guess, max(spec.max_runtime_s - gang.served_s, 0.0))
    return guess


def end_of(gang: GangState, now: float, resolution_s: float = 1.0) -> float:
    """When a gang that holds something is expected to let go; at least one step from now."""
    spec = gang.spec
    end = inf
    begun = gang.started_at if gang.started_at is not None else now
    if gang.work_left is not None:
        since = gang.progress_at if gang.started_at is not None else now
        end = since + gang.work_left / max(speed(spec, gang.size or spec.min_size), 1e-9)
    if spec.max_runtime_s is not None:
        end = min(end, begun - gang.served_s + spec.max_runtime_s)
    return max(end, now + min(resolution_s, 1.0))


def window(reservation: Reservation, now: float) -> tuple[float, float] | None:
    """The present or next [start, end) of a reservation; None when it is over."""
    if reservation.repeat is None:
        end = reservation.start + reservation.duration_s
        return (reservation.start, end) if now < end else None
    start = cron.next_due(reservation.repeat, max(now - reservation.duration_s, reservation.start - 60.0))
    return (start, start + reservation.duration_s) if start is not None else None


def is_holder(reservation: Reservation, spec: Workload) -> bool:
    return (reservation.queue is not None and spec.queue == reservation.queue) or spec.user in reservation.users


class Windows:
    """The reservations that matter in this pass: (start, end, mask of nodes, reservation)."""

    def __init__(self, trial: Trial) -> None:
        self.rows: list[tuple[float, float, int, Reservation]] = []
        capacity = trial.state.capacity
        for reservation in trial.state.configuration.reservations:
            span = window(reservation, trial.now)
            if span is None:
                continue
            mask = 0
            if reservation.nodes:
                for node in capacity.by_id.values():
                    if node.node.id in reservation.nodes or node.node.name in reservation.nodes:
                        mask |= 1 << node.slot
            else:
                mask = self._choose(trial, reservation)
            if mask:
                self.rows.append((*span, mask, reservation))

    @staticmethod
    def _choose(trial: Trial, reservation: Reservation) -> int:
        """Whole nodes of the flavor, the last ones first (packing starts at the first), until there are enough GPUs."""
        capacity = trial.state.capacity
        mask, left = 0, reservation.gpus_milli
        of_flavor = capacity.all if reservation.flavor is None else capacity.by_flavor.get(reservation.flavor, 0)
        for node in reversed([*capacity.nodes(of_flavor)]):
            if left <= 0:
                break
            if node.total_gpus:
                mask |= 1 << node.slot
                left -= node.total_gpus * MILLI
        return mask

    def closed(self, spec: Workload, start: float, end: float) -> int:
        """Nodes where work of `spec` may not be between `start` and `end`."""
        mask = 0
        for opens, closes, nodes, reservation in self.rows:
            if start < closes and end > opens and not is_holder(reservation, spec):
                mask |= nodes
        return mask


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
    resolution = state.configuration.scheduling.time_resolution_s
    lasts = runtime_s(gang, size)
    ends: list[tuple[float, GangState]] = []
    for name in [*state.holding, *(n for n in trial.placements if n not in state.holding)]:
        other = state.gangs[name]
        if not trial.held(other) or other is gang:
            continue
        if other.is_holding():
            leaves = trial.now if name in state.vacating or name in trial.leaving else end_of(other, trial.now)
        else:  # started in this pass
            leaves = trial.now + runtime_s(other, len(trial.held(other)))
        if leaves < inf:
            ends.append((leaves, other))
    ends.sort(key=lambda row: (row[0], row[1].submitted_at, row[1].id))
    moments = sorted(
        dict.fromkeys(
            moment
            for moment in (
                *(leaves for leaves, _ in ends),
                *(promise.end for promise in promises if promise.end < inf),
                *(closes for _, closes, _, _ in windows.rows),
            )
            if moment >= trial.now
        )
    )
    mark = trial.mark()
    found: Promise | None = None
    at = 0
    need = place.need_milli(gang.spec, size, 0)
    tried = 0
    for moment in moments:
        while at < len(ends) and ends[at][0] <= moment:
            trial.hold(ends[at][1], ())
            at += 1
        if need and state.capacity.free_gpus(state.capacity.open) * MILLI < need - need % MILLI:
            continue
        if tried >= TIMES_TRIED:
            break
        tried += 1
        inner = trial.mark()
        for promise in promises:
            if promise.start < moment + lasts and promise.end > moment:
                trial.hold(promise.gang, promise.placement)
        closed = windows.closed(gang.spec, moment, moment + lasts)
        placed = place.find(trial, gang, size, policy, view, ~closed)
        trial.rollback(inner)
        if not isinstance(placed, place.Refused):
            start = trial.now + ceil((moment - trial.now) / resolution) * resolution if resolution else moment
            last = next((other for leaves, other in reversed(ends[:at]) if leaves <= moment), None)
            basis = f"when {last.workload_id} ends" if last is not None else "when a reservation ends"
            if last is not None and any(closes == moment for _, closes, _, _ in windows.rows):
                basis = "when a reservation ends"
            found = Promise(gang, start, start + lasts, placed, basis)
            break
    trial.rollback(mark)
    return found


def leaves_room(trial: Trial, promise: Promise, placement: Placement, spec: Workload, ends_at: float) -> bool:
    """Whether work that holds `placement` until `ends_at` still lets the promise be kept."""
    if ends_at <= promise.start:
        return True
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
                gone = trial.now + runtime_s(other, len(held)) <= promise.start
            if gone:
                trial.hold(other, ())
        trial.hold(promise.gang, promise.placement)
        return fits_exactly(trial, spec, placement)
    finally:
        trial.rollback(mark)


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
