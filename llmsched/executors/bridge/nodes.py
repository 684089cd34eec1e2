"""What nodes there are and what on them is not ours. Looks once a second and says only what changed.

Ray's node table is the truth about nodes; foreign use is what Ray has given away beyond what our attempts hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from llmsched.executors.bridge.ray_internals import available_resources_per_node
from llmsched.executors.port import Deliver, ForeignSeen, Member, NodeGone, NodeSeen

LASTING_LOOKS = 3
_NOTHING = 1e-3  # below this an amount is rounding
_PLAIN = {"CPU", "GPU", "memory", "object_store_memory"}


class _Amount(NamedTuple):
    gpus: float = 0.0
    cpus: float = 0.0
    memory: float = 0.0


class Nodes:
    """`held` gives the members of every attempt we believe in."""

    def __init__(self, deliver: Deliver, held: Callable[[], list[Member]]) -> None:
        self._deliver, self._held = deliver, held
        self._known: dict[str, NodeSeen] = {}
        self._foreign: dict[str, deque[_Amount]] = {}
        self._foreign_said: dict[str, _Amount] = {}
        self.head = ""

    def alive(self) -> list[str]:
        return [str(one["NodeID"]) for one in ray.nodes() if one["Alive"]]

    def look(self) -> None:
        """Compare with the last look. Raises what Ray raises when it cannot be reached."""
        alive = {one["NodeID"]: _seen(one) for one in ray.nodes() if one["Alive"]}
        for node, seen in alive.items():
            if "node:__internal_head__" in seen.custom or not self.head:
                self.head = node
            seen.custom.pop("node:__internal_head__", None)
            if self._known.get(node) != seen:
                self._deliver(seen)
        for node in self._known.keys() - alive.keys():
            self._deliver(NodeGone(node))
            self._foreign.pop(node, None)
            self._foreign_said.pop(node, None)
        self._known = alive
        self._look_for_foreign_work()

    def _look_for_foreign_work(self) -> None:
        free = available_resources_per_node()
        ours: dict[str, _Amount] = {}
        for one in self._held():
            held = ours.get(one.node, _Amount())
            ours[one.node] = _Amount(held.gpus + one.gpus, held.cpus + one.cpus, held.memory + one.memory_bytes)
        for node, seen in self._known.items():
            left = free.get(node)
            if left is None:
                continue
            mine = ours.get(node, _Amount())
            now = _Amount(
                _rest(seen.gpus - left.get("GPU", 0.0) - mine.gpus),
                _rest(seen.cpus - left.get("CPU", 0.0) - mine.cpus),
                _rest(seen.memory_bytes - left.get("memory", 0.0) - mine.memory),
            )
            # What is there for a look or two is an attempt of ours that comes or goes, not somebody else.
            looks = self._foreign.setdefault(node, deque([_Amount()] * LASTING_LOOKS, maxlen=LASTING_LOOKS))
            looks.append(now)
            lasting = _Amount(*map(min, *looks))
            if lasting != self._foreign_said.get(node, _Amount()):
                self._foreign_said[node] = lasting
                self._deliver(ForeignSeen(node, lasting.gpus, lasting.cpus, int(lasting.memory)))


def _rest(amount: float) -> float:
    return round(amount, 3) if amount > _NOTHING else 0.0


def _seen(node: dict[str, Any]) -> NodeSeen:
    total, labels = node["Resources"], {str(key): str(value) for key, value in (node.get("Labels") or {}).items()}
    is_detail = ("node:", "accelerator_type:")
    return NodeSeen(
        node=node["NodeID"],
        gpus=float(total.get("GPU", 0.0)),
        cpus=float(total.get("CPU", 0.0)),
        memory_bytes=int(total.get("memory", 0)),
        labels=labels,
        custom={
            name: float(amount)
            for name, amount in total.items()
            if name not in _PLAIN and (not name.startswith(is_detail) or name == "node:__internal_head__")
        },
        name=labels.get("llmsched.io/name") or str(node.get("NodeManagerHostname") or ""),
    )
