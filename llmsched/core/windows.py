"""Advance reservations: which nodes, or which part of them, are promised for a window of time, and to whom.

A reservation closes its nodes to outsiders that cannot end before it opens. Ends are estimates (run_times.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
from typing import NamedTuple

from llmsched.core import cron
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Reservation
from llmsched.core.records import GangState, amount_of, expected_end, size_of
from llmsched.core.resources import MILLI, Resources
from llmsched.core.run_times import runtime_s
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload


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


class Row(NamedTuple):
    """A reservation that matters in this pass, and what it takes: whole nodes, and of others so many GPUs each."""

    opens: float
    closes: float
    nodes: int  # mask of the nodes that are wholly reserved
    parts: tuple[tuple[str, int], ...]  # (node, whole GPUs of it)
    reservation: Reservation


def _ends_at(trial: Trial, gang: GangState) -> float:
    placement = trial.begun.get(gang.id)
    if placement is None:
        return expected_end(gang)
    return trial.now + runtime_s(trial.state, gang, size_of(gang.spec, placement), placement)


def _promised(trial: Trial) -> list[tuple[GangState, Placement]]:
    """Where those go who were promised places, and those who are moved and have not begun there."""
    state = trial.state
    found = [(state.gangs[name], state.gangs[name].goes_to) for name in state.moved]
    for name in state.nominated:
        gang = state.gangs[name]
        if gang.nomination is not None:
            found.append((gang, gang.nomination.placement))
    found += [(state.gangs[name], placement) for name, placement in trial.promised.items()]
    return [(gang, placement) for gang, placement in found if gang.id not in trial.begun]


class _Others(NamedTuple):
    """Who is there beside the holder of a reservation: by node, in thousandths."""

    fixed: dict[str, int]  # what stays,
    promised: dict[str, int]  # what somebody goes to,
    guests: dict[str, int]  # and what would have to leave
    theirs: dict[str, None]  # the nodes of the holder

    def stays(self, node: str) -> int:
        return self.fixed.get(node, 0) + self.promised.get(node, 0)


def _others(
    trial: Trial, reservation: Reservation, opens: float, goes: Sequence[tuple[GangState, Placement]]
) -> _Others:
    found = _Others({}, {}, {}, {})

    def add(of: dict[str, int], gang: GangState, placement: Placement) -> None:
        for placed in placement:
            of[placed.node] = of.get(placed.node, 0) + amount_of(gang.spec, placed).gpus_milli

    for gang, placement in (*_promised(trial), *goes):
        if not is_holder(reservation, gang.spec):
            add(found.promised, gang, placement)
    for name in dict.fromkeys((*trial.state.holding, *trial.begun)):
        gang = trial.state.gangs[name]
        if is_holder(reservation, gang.spec):
            found.theirs.update((placed.node, None) for placed in trial.held(gang))
        elif _ends_at(trial, gang) > opens:
            stays = is_immovable(reservation, gang, opens)
            add(found.fixed if stays else found.guests, gang, trial.held(gang))
    return found


class Windows:
    """The reservations that matter in this pass. `goes`: who would be promised places beside those that are."""

    def __init__(
        self,
        trial: Trial,
        reservations: tuple[Reservation, ...] | None = None,
        goes: Sequence[tuple[GangState, Placement]] = (),
    ) -> None:
        self.rows: list[Row] = []
        self._goes = goes
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
        to leave by nobody is no part of it, nor is what is promised to others, as those who leave for them would do so
        in vain: unless there is not enough otherwise."""
        capacity = trial.state.capacity
        others = _others(trial, reservation, opens, self._goes)
        taken = dict.fromkeys((node for row in self.rows for node, _ in row.parts if row.closes > opens))
        wholly = self._mask(opens, opens + reservation.duration_s)
        of_flavor = capacity.all if reservation.flavor is None else capacity.by_flavor.get(reservation.flavor, 0)
        offers: list[tuple[int, NodeState]] = []
        busy = 0  # nodes of which it could have more
        for node in capacity.nodes(of_flavor & capacity.open & ~wholly):
            stays = others.stays(node.node.id)
            offer = node.total_gpus - node.foreign_gpus - ceil(stays / MILLI)
            if node.node.id in taken:
                continue
            if offer > 0:
                offers.append((offer, node))
            busy |= bool(stays) << node.slot

        def trouble(row: tuple[int, NodeState], wanted: int) -> tuple[int, bool, int, int]:
            offer, node = row
            leave = wanted - offer + ceil(others.guests.get(node.node.id, 0) / MILLI)
            return max(leave, 0), node.node.id not in others.theirs, offer, -node.slot

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
        return mask | busy if left > 0 else mask, tuple(parts)

    def _mask(self, start: float, end: float) -> int:
        mask = 0
        for row in self.rows:
            if start < row.closes and end > row.opens:
                mask |= row.nodes
        return mask

    def against(self, spec: Workload, start: float, end: float) -> list[Row]:
        """The reservations of others that concern work of `spec` between `start` and `end`."""
        return [row for row in self.rows if end > _opens_for(row, start) and not is_holder(row.reservation, spec)]


def _opens_for(row: Row, start: float) -> float:
    """When it opens first for work that begins at `start`: one that comes again does so after it has closed, too."""
    if start < row.closes:
        return row.opens
    again = window(row.reservation, start) if row.reservation.repeat is not None else None
    return inf if again is None else again[0]


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
def kept(trial: Trial, rows: list[Row], in_use: bool = False) -> Iterator[int]:
    """While it lasts the GPUs reserved on shared nodes that their holders have not taken yet count as taken, and those
    `in_use` by others too, which are not to be taken when these let go. Yields the mask of the nodes that are wholly
    reserved."""
    capacity = trial.state.capacity
    mask = 0
    taken: list[tuple[str, Resources, int]] = []
    for row in rows:
        mask |= row.nodes
        for name, count in row.parts:
            node = capacity.by_id[name]
            held, devices = _of_holder(trial, row.reservation, name)
            idle = max(0, count - ceil(held / MILLI))
            if not in_use:
                idle = max(0, min(idle, node.free_whole))
            left = count * MILLI - held - idle * MILLI
            rests = [(name, Resources(idle * MILLI), -1)]
            for device in devices:  # what is left of devices of which the holder has a part is the holder's as well
                rest = min(MILLI - node.shares[device], left)
                rests.append((name, Resources(rest), device))
                left -= rest
            for each in rests:
                if each[1].gpus_milli > 0:
                    capacity.change(*each, 1)
                    taken.append(each)
    try:
        yield mask
    finally:
        for each in reversed(taken):
            capacity.change(*each, -1)


def is_left(trial: Trial, reservation: Reservation, node: str, count: int, others: list[GangState]) -> bool:
    """Whether its holder can have so many GPUs of a node, with what it has there, if only these others are there. What
    is left of a device counts where the holder has a part of it, and nowhere else."""
    gangs = [trial.state.gangs[name] for name in trial.state.holding]
    mine, my_parts = _on_node([gang for gang in gangs if is_holder(reservation, gang.spec)], node)
    theirs, their_parts = _on_node(others, node)
    held = mine * MILLI + sum(my_parts.values())
    idle = max(0, count - ceil(held / MILLI))
    there = trial.state.nodes[node]
    free = there.total_gpus - there.foreign_gpus - mine - theirs - len({*my_parts, *their_parts})
    rest = sum(MILLI - part - their_parts.get(device, 0) for device, part in my_parts.items())
    return free >= idle and rest >= (count - idle) * MILLI - held


def _on_node(gangs: list[GangState], node: str) -> tuple[int, dict[int, int]]:
    """What they hold there: whole GPUs, and by device the thousandths of parts."""
    whole, parts = 0, dict[int, int]()
    for gang in gangs:
        for placed in gang.held:
            if placed.node == node:
                each, part = divmod(amount_of(gang.spec, placed).gpus_milli, MILLI)
                whole += each
                if part:
                    parts[placed.gpu_index] = parts.get(placed.gpu_index, 0) + part
    return whole, parts


def idle_gpus(trial: Trial, rows: list[Row]) -> dict[str, int]:
    """Whole GPUs on shared nodes that the holders of these have not taken, whoever has."""
    idle: dict[str, int] = {}
    for row in rows:
        for name, count in row.parts:
            held = holder_milli(trial, row.reservation, name)
            idle[name] = idle.get(name, 0) + max(0, count - ceil(held / MILLI))
    return idle


def holder_milli(trial: Trial, reservation: Reservation, node: str) -> int:
    """Thousandths of GPUs that the holder of a reservation has on a node."""
    return _of_holder(trial, reservation, node)[0]


def _of_holder(trial: Trial, reservation: Reservation, node: str) -> tuple[int, dict[int, None]]:
    """Thousandths of GPUs that the holder of a reservation holds on a node, and the devices of which it has parts."""
    total, devices = 0, dict[int, None]()
    for name in dict.fromkeys((*trial.state.holding, *trial.placements)):
        gang = trial.state.gangs[name]
        if is_holder(reservation, gang.spec):
            for each in trial.held(gang):
                if each.node == node:
                    amount = amount_of(gang.spec, each).gpus_milli
                    total += amount
                    if amount % MILLI:
                        devices[each.gpu_index] = None
    return total, devices
