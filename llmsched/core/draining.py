"""Nodes that are to be empty: the cluster says that it will take one away, or an operator drains it.

Nothing new goes there, and what runs there leaves with its grace, by the deadline where there is one. A replica that
answers is *moving*: it counts for none of those wanted, so that another is made first, and goes once that one answers,
or when the deadline is near. What an operator said holds for the node's name until they take it back: a node that
restarts, or comes back as another one, is still drained. What the cluster said ends when it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from llmsched.core.status import Status

if TYPE_CHECKING:
    from llmsched.core.capacity import NodeState
    from llmsched.core.nodes import Node
    from llmsched.core.records import GangState
    from llmsched.core.world import World

LAST_S = 10.0  # before the deadline: then a replica goes without another that answers, to end what it has begun


@dataclass(frozen=True, slots=True)
class OperatorDrain:
    """`name`: of the node, or its id where several have that name."""

    name: str
    at: float
    deadline: float | None = None
    by: str = ""


def drain_of(node: Node, drains: Mapping[str, OperatorDrain]) -> OperatorDrain | None:
    return drains.get(node.id) or drains.get(node.shown)


def leaving_node(gang: GangState, nodes: Mapping[str, NodeState]) -> NodeState | None:
    """The node, of those on which it holds something, that is to be empty first."""
    found = [nodes[p.node] for p in gang.held if p.node in nodes and nodes[p.node].draining]
    return min(found, key=_deadline_of) if found else None


def is_moving(gang: GangState, nodes: Mapping[str, NodeState]) -> bool:
    return gang.spec.kind == "serve" and gang.is_active() and leaving_node(gang, nodes) is not None


def moving(gangs: Iterable[GangState], world: World) -> dict[str, NodeState]:
    """Of some replicas those that are, with the node for which they are."""
    if world.capacity.open == world.capacity.all:
        return {}
    return {gang.id: node for gang in gangs if (node := leaving_node(gang, world.nodes)) is not None}


def grace_of(gang: GangState, node: NodeState, now: float) -> float:
    """How long it may take to leave the node."""
    return max(0.0, min(gang.spec.grace_s, _deadline_of(node) - now))


def gone_by_now(
    gangs: Sequence[GangState], moving: Mapping[str, NodeState], missing: int, now: float
) -> tuple[list[GangState], float | None]:
    """Who of an endpoint's moving replicas, `gangs`, goes, and when to look again at the others. `missing`: so many
    more than those that stay and answer are wanted; the ones whose node stays longest stand in for them."""
    ready = [gang for gang in gangs if gang.status is Status.RUNNING]
    ready.sort(key=lambda gang: (-_deadline_of(moving[gang.id]), gang.index))
    goes_at = {
        gang.id: _deadline_of(moving[gang.id]) - min(gang.spec.grace_s, LAST_S) for gang in ready[: max(missing, 0)]
    }
    going = [gang for gang in gangs if goes_at.get(gang.id, 0.0) <= now]
    return going, min((at for at in goes_at.values() if now < at < inf), default=None)


def _deadline_of(node: NodeState) -> float:
    return inf if node.deadline is None else node.deadline
