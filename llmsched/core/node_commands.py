"""What operators ask of nodes: that one be empty, and that it be given back. Pure, as commands.py, which asks here."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from llmsched.core.facts import DrainBegun, DrainEnded, Fact
from llmsched.core.message import NODE, USER, Quote, Ref, say
from llmsched.core.refusal import Refusal

if TYPE_CHECKING:
    from llmsched.core.state import State


@dataclass(frozen=True, slots=True)
class DrainNode:
    """`node`: its name or id. Again with another `deadline` (a stamp): that one holds."""

    at: float
    node: str
    deadline: float | None
    by: str


@dataclass(frozen=True, slots=True)
class UndrainNode:
    at: float
    node: str
    by: str


def drain(state: State, command: DrainNode) -> Fact | Refusal:
    name = _node_named(state, command.node)
    if isinstance(name, Refusal):
        return name
    known, node = state.drains.get(name), Ref(NODE, name)
    if known is not None and command.deadline in (None, known.deadline):
        return Refusal("conflict", say("conflict.drained", node=node, by=Ref(USER, known.by)))
    if command.deadline is not None and command.deadline < command.at:
        return Refusal("impossible", say("impossible.past", node=node, ago=command.at - command.deadline))
    return DrainBegun(command.at, name, command.deadline, command.by)


def undrain(state: State, command: UndrainNode) -> Fact | Refusal:
    if command.node in state.drains:  # it may be away
        return DrainEnded(command.at, command.node, command.by)
    name = _node_named(state, command.node)
    if isinstance(name, Refusal):
        return name
    if name in state.drains:
        return DrainEnded(command.at, name, command.by)
    leaves = any(node.leaving for node in state.nodes.values() if name in (node.node.shown, node.node.id))
    code = "conflict.leaves" if leaves else "conflict.undrained"
    return Refusal("conflict", say(code, node=Ref(NODE, name)))


def _node_named(state: State, wish: str) -> str | Refusal:
    """What a drain of it goes by: its name, or its id where several have that name."""
    found = [node.node for node in state.nodes.values() if wish in (node.node.id, node.node.shown)]
    if not found:
        names = [node.node.shown for node in state.nodes.values()]
        near = get_close_matches(wish, names, 1)
        if near:
            return Refusal("unknown_node", say("unknown_node.near", name=Quote(wish), near=Ref(NODE, near[0])))
        return Refusal("unknown_node", say("unknown_node", name=Quote(wish)))
    one = found[0]
    same = [node.node for node in state.nodes.values() if node.node.shown == one.shown]
    if len(same) == 1:
        return one.shown
    if wish == one.id:
        return one.id
    ids = tuple(Quote(each.id) for each in same)
    return Refusal("ambiguous_node", say("ambiguous_node", name=Quote(wish), ids=ids))
