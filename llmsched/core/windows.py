"""Advance reservations: which nodes, or which part of them, are promised for a window of time, and to whom.

A reservation closes its nodes to outsiders that cannot end before it opens. Ends are estimates (run_times.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, inf

from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Reservation, Taken
from llmsched.core.records import GangState, amount_of
from llmsched.core.reservation import is_holder, window
from llmsched.core.reserved import Row, at_once, row_of, spans_of, takes
from llmsched.core.resources import MILLI, Resources
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload


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
        """`reservations`: instead of those in force."""
        self.rows: list[Row] = []
        self.taken: dict[str, Taken] = {}
        spans = spans_of(trial, reservations)
        if spans:
            self.taken = takes(trial, spans)
        for name, (reservation, span) in spans.items():
            row = row_of(trial, reservation, span, self.taken.get(name))
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


Gangs = list[tuple[GangState, Placement]]  # and what they hold
On = list[tuple[Row, int]]  # reservations that have GPUs of one node, and how many


def on_nodes(rows: list[Row]) -> dict[str, On]:
    """By the nodes of which these have a part."""
    found: dict[str, On] = {}
    for row in rows:
        for node, count in row.parts:
            found.setdefault(node, []).append((row, count))
    return found


def together(on: On) -> list[On]:
    """Those of them that are open at once."""
    if len(on) == 1:
        return [on]
    counts = {id(row): count for row, count in on}
    return [[(row, counts[id(row)]) for row in rows] for rows in at_once([row for row, _ in on])]


@contextmanager
def kept(trial: Trial, rows: list[Row], in_use: bool = False) -> Iterator[int]:
    """While it lasts the GPUs reserved on shared nodes that their holders have not taken yet count as taken, and those
    `in_use` by others too, which are not to be taken when these let go. Yields the mask of the nodes that are wholly
    reserved."""
    capacity = trial.state.capacity
    mask = 0
    for row in rows:
        mask |= row.nodes
    taken: list[tuple[str, Resources, int]] = []
    for name, on in on_nodes(rows).items():
        gangs = _there(trial, name)
        unused = [_unused(capacity.by_id[name], each, gangs, in_use) for each in together(on)]
        most = max(unused, key=lambda rests: sum(amount.gpus_milli for amount, _ in rests))
        taken += [(name, *rest) for rest in most]
    for each in taken:
        capacity.change(*each, 1)
    try:
        yield mask
    finally:
        for each in reversed(taken):
            capacity.change(*each, -1)


def _unused(node: NodeState, on: On, gangs: Gangs, in_use: bool) -> list[tuple[Resources, int]]:
    """Of a node, what is reserved at once and the holders have not taken: (amount, device)."""
    rests: list[tuple[Resources, int]] = []
    free, kept_of = node.free_whole, dict[int, int]()
    for (_, count), (held, devices) in zip(on, _theirs(on, node.node.id, gangs), strict=True):
        idle = max(0, count - ceil(held / MILLI))
        if not in_use:
            idle = max(0, min(idle, free))
        free -= idle
        if idle:
            rests.append((Resources(idle * MILLI), -1))
        left = count * MILLI - held - idle * MILLI
        for device in sorted(devices):  # what is left of devices of which the holder has a part is the holder's as well
            rest = min(MILLI - node.shares[device] - kept_of.get(device, 0), left)
            if rest > 0:
                rests.append((Resources(rest), device))
                kept_of[device] = kept_of.get(device, 0) + rest
            left -= rest
    return rests


def lacking(trial: Trial, on: On, node: str, gangs: Gangs) -> int:
    """Thousandths of so many GPUs of a node that the holders cannot have, with what they have there, if only these
    gangs are there. What is left of a device counts where a holder has a part of it, and nowhere else."""
    whole, parts = _on_node(gangs, node)
    there = trial.state.nodes[node]
    free = there.total_gpus - there.foreign_gpus - whole - len(parts)
    lacks = 0
    for (_, count), (held, devices) in zip(on, _theirs(on, node, gangs), strict=True):
        idle = max(0, count - ceil(held / MILLI))
        free -= idle
        rest = sum(MILLI - parts.pop(device) for device in devices if device in parts)
        lacks += max(0, (count - idle) * MILLI - held - rest)
    return max(0, -free) * MILLI + lacks


def _there(trial: Trial, node: str) -> Gangs:
    """Who has something on a node."""
    state = trial.state
    names = dict.fromkeys((*state.ledgers.present.get(node, ()), *trial.placements))
    found = ((gang, trial.held(gang)) for gang in map(state.gangs.__getitem__, names))
    return [(gang, held) for gang, held in found if any(placed.node == node for placed in held)]


def _on_node(gangs: Gangs, node: str) -> tuple[int, dict[int, int]]:
    """What they hold there: whole GPUs, and by device the thousandths of parts."""
    whole, parts = 0, dict[int, int]()
    for gang, held in gangs:
        for placed in held:
            if placed.node == node:
                each, part = divmod(amount_of(gang.spec, placed).gpus_milli, MILLI)
                whole += each
                if part:
                    parts[placed.gpu_index] = parts.get(placed.gpu_index, 0) + part
    return whole, parts


def _theirs(on: On, node: str, gangs: Gangs) -> list[tuple[int, dict[int, None]]]:
    """Of each of these what its holder has there: thousandths of GPUs, and the devices of which that is a part. What a
    gang has that is the holder of several counts once: for those of them that lack most of their own."""
    found = [(0, dict[int, None]()) for _ in on]
    holders = [
        ([n for n, (row, _) in enumerate(on) if is_holder(row.reservation, g.spec)], g, held) for g, held in gangs
    ]
    for numbers, gang, held in sorted(holders, key=lambda row: (len(row[0]), row[1].id)):
        for placed in held if numbers else ():
            if placed.node == node:
                left = amount = amount_of(gang.spec, placed).gpus_milli
                first = sorted(numbers, key=lambda number: found[number][0] - on[number][1] * MILLI)
                for number in first:
                    has, devices = found[number]
                    most = left if number == first[-1] else max(0, on[number][1] * MILLI - has)
                    found[number] = has + min(left, most), devices
                    if amount % MILLI and min(left, most):
                        devices[placed.gpu_index] = None
                    left -= min(left, most)
    return found


def idle_gpus(trial: Trial, rows: list[Row]) -> dict[str, int]:
    """Whole GPUs on shared nodes that the holders of these have not taken, whoever has."""
    idle: dict[str, int] = {}
    for node, on in on_nodes(rows).items():
        gangs = _there(trial, node)
        for each in together(on):
            theirs = _theirs(each, node, gangs)
            unused = sum(max(0, row[1] - ceil(held / MILLI)) for row, (held, _) in zip(each, theirs, strict=True))
            idle[node] = max(idle.get(node, 0), unused)
    return idle


def held_there(trial: Trial, rows: list[Row], node: str) -> dict[tuple[int, ...], int]:
    """Thousandths of GPUs that holders of these have on a node, by the numbers of those whose holders they are."""
    found: dict[tuple[int, ...], int] = {}
    for gang, held in _there(trial, node):
        numbers = holds(rows, gang.spec)
        if numbers:
            amount = sum(amount_of(gang.spec, placed).gpus_milli for placed in held if placed.node == node)
            found[numbers] = found.get(numbers, 0) + amount
    return found


def holds(rows: list[Row], spec: Workload) -> tuple[int, ...]:
    """The numbers of those of which it is the holder."""
    return tuple(number for number, row in enumerate(rows) if is_holder(row.reservation, spec))
