"""Advance reservations: which nodes, or which part of them, are promised for a window of time, and to whom.

A reservation closes its nodes to outsiders that cannot end before it opens. Ends are estimates (run_times.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, inf

from llmsched.core.configuration import Reservation
from llmsched.core.records import GangState, amount_of
from llmsched.core.reservation import is_holder, window
from llmsched.core.reserved import Row, chosen, row_of, taken_before
from llmsched.core.resources import MILLI, Resources
from llmsched.core.trial import Trial
from llmsched.core.workload import Workload


def nodes_of(trial: Trial, gang: GangState) -> int:
    """The nodes on which it holds something."""
    mask = 0
    for placed in gang.held:
        if placed.node in trial.state.nodes:
            mask |= 1 << trial.state.nodes[placed.node].slot
    return mask


class Windows:
    """The reservations that matter in this pass. What those of so many GPUs take is in the journal (stages/reserve.py);
    of which it is not yet, they would take what is decided now."""

    def __init__(self, trial: Trial, reservations: tuple[Reservation, ...] | None = None) -> None:
        self.rows: list[Row] = []
        for reservation in trial.state.configuration.reservations if reservations is None else reservations:
            span = window(reservation, trial.now)
            if span is None:
                continue
            taken = None
            if not reservation.nodes:
                taken = taken_before(trial, reservation) or chosen(trial, reservation, span, self.rows)
            row = row_of(trial, reservation, span, taken)
            if row.nodes or row.parts:
                self.rows.append(row)

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


def lacking(trial: Trial, reservation: Reservation, node: str, count: int, others: list[GangState]) -> int:
    """Thousandths of so many GPUs of a node that its holder cannot have, with what it has there, if only these others
    are there. What is left of a device counts where the holder has a part of it, and nowhere else."""
    gangs = [trial.state.gangs[name] for name in trial.state.holding]
    mine, my_parts = _on_node([gang for gang in gangs if is_holder(reservation, gang.spec)], node)
    theirs, their_parts = _on_node(others, node)
    held = mine * MILLI + sum(my_parts.values())
    idle = max(0, count - ceil(held / MILLI))
    there = trial.state.nodes[node]
    free = there.total_gpus - there.foreign_gpus - mine - theirs - len({*my_parts, *their_parts})
    rest = sum(MILLI - part - their_parts.get(device, 0) for device, part in my_parts.items())
    return max(0, idle - free) * MILLI + max(0, (count - idle) * MILLI - held - rest)


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
