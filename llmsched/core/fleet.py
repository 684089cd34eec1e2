"""Nodes that were asked for and have not come, those asked to go, and types that had none to give."""

from __future__ import annotations

from collections.abc import Iterable

from llmsched.core.capacity import NodeState
from llmsched.core.nodes import COMES_WITHIN_S, SHUNNED_S


class Fleet:
    def __init__(self) -> None:
        self.requested: tuple[tuple[str, int], ...] = ()  # last RequestCapacity
        self.overdue_since: dict[str, float] = {}  # node type -> since when fewer have joined than were asked for
        self.shunned_until: dict[str, float] = {}  # node type that had no capacity -> when it may be tried first again
        self.releasing: dict[str, float] = {}  # nodes asked to go

    def count(self, nodes: Iterable[NodeState], now: float) -> None:
        """Since when each type owes nodes that were asked for. One that is given up on after COMES_WITHIN_S is shunned
        for a while."""
        asked = dict(self.requested)
        for node in nodes:
            name = node.node.node_type
            if name in asked and not node.leaving:
                asked[name] -= 1
        for name, since in [*self.overdue_since.items()]:
            if asked.get(name, 0) <= 0:
                del self.overdue_since[name]
                if now - since >= COMES_WITHIN_S:
                    self.shunned_until[name] = now + SHUNNED_S
        for name, missing in asked.items():
            if missing > 0:
                self.overdue_since.setdefault(name, now)
