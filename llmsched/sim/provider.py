"""A simulated cloud: nodes that were asked for join after a start-up delay, nodes that are given back leave, and all of
it is paid for from joining to leaving. It may be out of capacity of a type for a while. Knows no jobs and no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmsched.core.configuration import Configuration, NodeType
from llmsched.core.node_types import node_of
from llmsched.core.nodes import Node
from llmsched.core.prices import price_per_gpu_hour
from llmsched.core.resources import MILLI
from llmsched.errors import SpecError

STARTUP_S = 120.0  # from asking for a node until it joins, when nothing else is said


class Shortage(NamedTuple):
    """No node of this type starts between the two times."""

    node_type: str
    start: float
    end: float


@dataclass(slots=True)
class Stay:
    """A node in the cluster. `left` is None while it is there."""

    node: Node
    joined: float
    price_per_hour: float
    left: float | None = None

    def hours(self, start: float, end: float) -> float:
        """For how long it was there between the two times."""
        until = end if self.left is None else min(end, self.left)
        return max(0.0, until - max(start, self.joined)) / 3600


@dataclass(slots=True)
class Provider:
    """`starting` are (when it joins, node) of nodes on their way. `stays` has every node that ever joined."""

    configuration: Configuration
    startup_s: float = STARTUP_S
    shortages: Sequence[Shortage] = ()
    starting: list[tuple[float, Node]] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    _there: dict[str, Stay] = field(default_factory=dict)
    _made: dict[str, int] = field(default_factory=dict)

    def request(
        self, counts: Sequence[tuple[str, int]], draining: Sequence[str], now: float
    ) -> list[tuple[float, Node]]:
        """So many nodes of each type there should be. Returns those that are started; what is on its way and no longer
        wanted does not join."""
        wanted = dict(counts)
        begun: list[tuple[float, Node]] = []
        for node_type in self.configuration.node_types:
            mine = [stay.node for name, stay in self._there.items() if name not in draining]
            here = sum(node.node_type == node_type.name for node in mine)
            coming = [row for row in self.starting if row[1].node_type == node_type.name]
            missing = wanted.get(node_type.name, 0) - here - len(coming)
            for row in coming[missing:] if missing < 0 else ():
                self.starting.remove(row)
            for _ in range(missing):
                begun.append(self._start(node_type, now))
        self.starting += begun
        return begun

    def _start(self, node_type: NodeType, now: float) -> tuple[float, Node]:
        number = self._made[node_type.name] = self._made.get(node_type.name, 0) + 1
        ready = now
        for shortage in self.shortages:
            if shortage.node_type == node_type.name and shortage.start <= ready < shortage.end:
                ready = shortage.end
        return ready + self.startup_s, node_of(self.configuration, node_type, f"{node_type.name}-{number}")

    def is_coming(self, node: Node) -> bool:
        """Whether a node that was started is still wanted."""
        return any(one.id == node.id for _, one in self.starting)

    def joined(self, node: Node, now: float) -> None:
        self.starting = [row for row in self.starting if row[1].id != node.id]
        if node.id not in self._there:
            self._there[node.id] = Stay(node, now, self._price(node))
            self.stays.append(self._there[node.id])

    def left(self, node: str, now: float) -> None:
        stay = self._there.pop(node, None)
        if stay is not None:
            stay.left = now

    def _price(self, node: Node) -> float:
        return price_per_gpu_hour(self.configuration, node) * node.total.gpus_milli / MILLI


class Bill(NamedTuple):
    """What was there between two times: GPU hours, node hours, their cost, and the most of each at one moment."""

    gpu_hours: float
    node_hours: float
    cost: float
    peak_nodes: int
    peak_gpus: int
    peak_price_per_hour: float


def bill(stays: Sequence[Stay], start: float, end: float) -> Bill:
    changes: list[tuple[float, int, int, int, float]] = []  # (when, leaves first, nodes, GPUs, price)
    gpu_hours = node_hours = cost = 0.0
    for stay in stays:
        gpus = stay.node.total.gpus_milli // MILLI
        hours = stay.hours(start, end)
        gpu_hours += hours * gpus
        node_hours += hours
        cost += hours * stay.price_per_hour
        changes.append((stay.joined, 1, 1, gpus, stay.price_per_hour))
        if stay.left is not None:
            changes.append((stay.left, 0, -1, -gpus, -stay.price_per_hour))
    nodes = all_gpus = 0
    price = 0.0
    peak = (0, 0, 0.0)
    for _, _, node, gpu, amount in sorted(changes):
        nodes, all_gpus, price = nodes + node, all_gpus + gpu, price + amount
        peak = (max(peak[0], nodes), max(peak[1], all_gpus), max(peak[2], price))
    return Bill(gpu_hours, node_hours, cost, *peak)


def gpus_over_time(stays: Sequence[Stay]) -> list[tuple[float, int]]:
    """(when, GPUs there from then on), for drawing."""
    change: dict[float, int] = {}
    for stay in stays:
        gpus = stay.node.total.gpus_milli // MILLI
        change[stay.joined] = change.get(stay.joined, 0) + gpus
        if stay.left is not None:
            change[stay.left] = change.get(stay.left, 0) - gpus
    there, found = 0, []
    for at in sorted(change):
        there += change[at]
        found.append((at, there))
    return found


def parse_shortages(texts: Sequence[str], configuration: Configuration) -> tuple[Shortage, ...]:
    """`TYPE=FROM..TO`: no node of that type starts between these seconds. Raises SpecError."""
    known = [node_type.name for node_type in configuration.node_types]
    found = []
    for text in texts:
        name, _, span = text.partition("=")
        first, dots, last = span.partition("..")
        try:
            shortage = Shortage(name, float(first), float(last))
        except ValueError:
            shortage = Shortage(name, 0.0, 0.0)
        if not dots or shortage.end <= shortage.start or shortage.start < 0:
            raise SpecError(
                f'"{text}" is not TYPE=FROM..TO in seconds.', where="--shortage", hint="For example p4d=0..3600."
            )
        if name not in known:
            raise SpecError(
                f'no node type is called "{name}".', where="--shortage",
                hint=f"Known: {', '.join(known)}." if known else "Node types stand in the file of --config.",
            )  # fmt: skip
        found.append(shortage)
    return tuple(found)
