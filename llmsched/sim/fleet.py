"""The nodes of a simulated cluster, from words such as `128x8:V100,64x4:T4`. Knows no scheduler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from math import inf

from llmsched.core.facts import DrainBegun, DrainEnded
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources
from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job

GPUS_A_NODE = 8
_PART = re.compile(r"(\d+)x(\d+)(?::([\w.+-]+))?$")
MOST_NODES = 100_000


def parse(text: str) -> tuple[Node, ...]:
    """`count x GPUs [: flavor]`, comma-separated; nodes are named n0, n1, ... Raises SpecError."""
    nodes: list[Node] = []
    for part in text.split(","):
        found = _PART.match(part.strip())
        if found is None or not int(found[1]) or not int(found[2]):
            raise SpecError(
                f'"{part.strip()}" is not count x GPUs : flavor.',
                where="--nodes",
                hint="For example 128x8:V100,64x4:T4.",
            )
        if len(nodes) + int(found[1]) > MOST_NODES:
            raise SpecError(f"more than {MOST_NODES:,} nodes.", where="--nodes")
        first = len(nodes)
        nodes += [node(first + i, int(found[2]), found[3]) for i in range(int(found[1]))]
    return tuple(nodes)


def enough_for(jobs: Iterable[Job]) -> str:
    """Words for `parse`: nodes of 8 on which every job could begin as soon as it is submitted."""
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for job in jobs:
        changes[job.flavors()[0] or ""] += [(job.submit_s, job.gpus), (job.submit_s + job.duration_s, -job.gpus)]
    words = []
    for flavor, by_time in sorted(changes.items()):
        busy = most = 0
        for _, gpus in sorted(by_time):
            busy += gpus
            most = max(most, busy)
        words.append(f"{-(-most // GPUS_A_NODE)}x{GPUS_A_NODE}" + (f":{flavor}" if flavor else ""))
    return ",".join(words)


def node(number: int, gpus: int, flavor: str | None) -> Node:
    return Node(id=f"n{number}", total=Resources(gpus_milli=gpus * MILLI), flavor=flavor)


def gpus(nodes: tuple[Node, ...], flavor: str | None = None) -> int:
    """Whole GPUs, of one flavor or of all."""
    return sum(n.total.gpus_milli for n in nodes if flavor is None or n.flavor == flavor) // MILLI


def parse_joining(texts: tuple[str, ...], first: int) -> tuple[tuple[float, Node], ...]:
    """`3600=1x8:V100`: nodes that join at that second; their numbers go on from `first`."""
    joining: list[tuple[float, Node]] = []
    for text in texts:
        when, _, nodes = text.partition("=")
        try:
            at = float(when)
        except ValueError:
            at = -1.0
        if at < 0:
            raise SpecError(f'"{text}" is not SECONDS=NODES.', where="--join", hint="For example 3600=1x8:V100.")
        for each in parse(nodes):
            kind = each.total.gpus_milli // MILLI
            joining.append((at, node(first + len(joining), kind, each.flavor)))
    return tuple(joining)


def parse_drains(texts: tuple[str, ...], nodes: Iterable[Node]) -> tuple[DrainBegun | DrainEnded, ...]:
    """`n3=3600..7200`: an operator drains that node then, and gives it back. Raises SpecError."""
    known = [node.id for node in nodes]
    found: list[DrainBegun | DrainEnded] = []
    for text in texts:
        name, _, span = text.partition("=")
        first, dots, last = span.partition("..")
        try:
            start, end = float(first), float(last)
        except ValueError:
            start, end = 0.0, 0.0
        if not dots or not 0 <= start < end < inf:
            raise SpecError(
                f'"{text}" is not NODE=FROM..TO in seconds.', where="--drain", hint="For example n3=0..3600."
            )
        if name not in known:
            ends = f"{known[0]} to {known[-1]}" if known else "none of its own"
            raise SpecError(f'no node is called "{name}".', where="--drain", hint=f"There are {ends}.")
        found += [DrainBegun(start, name), DrainEnded(end, name)]
    return tuple(found)
