"""What nodes there are, what on them is beyond what attempts were given, and which attempt took it.

Looks once a second and says only what changed. Ray's node table is the truth about nodes; foreign use is what Ray has
given away beyond what our attempts were ordered to hold, and excess the part of it that an attempt has made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import ray

from llmsched.executors.bridge.ownership import Ownership
from llmsched.executors.bridge.ray_internals import available_resources_per_node, draining_nodes
from llmsched.executors.port import Deliver, ExcessSeen, ForeignSeen, Member, NodeGone, NodeSeen

LASTING_LOOKS = 3
_NOTHING = 1e-3  # below this an amount is rounding
_PLAIN = {"CPU", "GPU", "memory", "object_store_memory"}


class _Amount(NamedTuple):
    gpus: float = 0.0
    cpus: float = 0.0
    memory: float = 0.0

    def plus(self, other: _Amount) -> _Amount:
        return _Amount(self.gpus + other.gpus, self.cpus + other.cpus, self.memory + other.memory)

    def beyond(self, other: _Amount) -> _Amount:
        """What is more than the other, each for itself."""
        return _Amount(*(_rest(mine - its) for mine, its in zip(self, other, strict=True)))

    def is_worth_a_word(self) -> bool:
        """A bundle that asks for nothing takes a thousandth of a CPU all the same."""
        return self.gpus >= 0.01 or self.cpus >= 0.1 or self.memory >= 1024**2


_ByNode = dict[str, _Amount]


class Look(Protocol):
    def __call__(self, *, with_tasks: bool) -> Ownership: ...


class Nodes:
    """`given` has the members of every attempt we believe in, by its name; `look_at_owners` says whose is what."""

    def __init__(
        self,
        deliver: Deliver,
        given: Callable[[], dict[str, tuple[Member, ...]]],
        look_at_owners: Look,
    ) -> None:
        self._deliver, self._given, self._look_at_owners = deliver, given, look_at_owners
        self._known: dict[str, NodeSeen] = {}
        self._foreign: dict[str, deque[_Amount]] = {}
        self._foreign_said: dict[str, _Amount] = {}
        self._excess_said: dict[str, _ByNode] = {}
        self._looks = 0
        self.head = ""

    def alive(self) -> list[str]:
        return [str(one["NodeID"]) for one in ray.nodes() if one["Alive"]]

    def able(self) -> int:
        """How many may run work, as of the last look."""
        return sum(seen.cpus > 0 for seen in self._known.values())

    def look(self) -> None:
        """Compare with the last look. Raises what Ray raises when it cannot be reached."""
        leaving = draining_nodes()
        alive = {one["NodeID"]: _seen(one, leaving) for one in ray.nodes() if one["Alive"]}
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
        given = {
            name: _by_node((one.node, _of_member(one)) for one in members) for name, members in self._given().items()
        }
        self._look_for_foreign_use(given)
        self._look_for_excess(given)

    def _look_for_foreign_use(self, given: dict[str, _ByNode]) -> None:
        free = available_resources_per_node()
        ours = _by_node(item for amounts in given.values() for item in amounts.items())
        for node, seen in self._known.items():
            left = free.get(node)
            if left is None:
                continue
            taken = _Amount(
                seen.gpus - left.get("GPU", 0.0),
                seen.cpus - left.get("CPU", 0.0),
                seen.memory_bytes - left.get("memory", 0.0),
            )
            # What is there for a look or two is an attempt of ours that comes or goes, not somebody else.
            looks = self._foreign.setdefault(node, deque([_Amount()] * LASTING_LOOKS, maxlen=LASTING_LOOKS))
            looks.append(taken.beyond(ours.get(node, _Amount())))
            lasting = _Amount(*map(min, *looks))
            if lasting != self._foreign_said.get(node, _Amount()):
                self._foreign_said[node] = lasting
                self._deliver(ForeignSeen(node, lasting.gpus, lasting.cpus, int(lasting.memory)))

    def _look_for_excess(self, given: dict[str, _ByNode]) -> None:
        """Whose the foreign use is. Nobody is asked while there is none. Of every attempt something is said once: a
        bridge before this one may have said more."""
        self._looks += 1
        if self._looks <= LASTING_LOOKS:
            return
        foreign, found = self._foreign_said, dict[str, _ByNode]()
        if any(map(any, foreign.values())):
            found = _excess_of(self._look_at_owners(with_tasks=False), given, foreign)
            known = _by_node(item for amounts in found.values() for item in amounts.items())
            if any(any(amount.beyond(known.get(node, _Amount()))) for node, amount in foreign.items()):
                found = _excess_of(self._look_at_owners(with_tasks=True), given, foreign)
        said = self._excess_said
        self._excess_said = {name: found.get(name, {}) for name in given}
        for name, now in self._excess_said.items():
            if said.get(name) != now:
                gang, _, attempt = name.partition("/")[2].rpartition("/")
                used = tuple(ForeignSeen(node, one.gpus, one.cpus, int(one.memory)) for node, one in now.items())
                self._deliver(ExcessSeen(gang, int(attempt), used))


def _excess_of(owned: Ownership, given: dict[str, _ByNode], foreign: _ByNode) -> dict[str, _ByNode]:
    """What attempts hold beyond what they were given, by attempt: no more than what has lasted as foreign use, for the
    two looks are not of one moment, and an actor may ask for more than it holds."""
    found: dict[str, _ByNode] = {}
    for name, held in owned.held().items():
        if name not in given:
            continue
        for node, amount in _by_node((one.node, _of_resources(one.resources)) for one in held).items():
            beyond = amount.beyond(given[name].get(node, _Amount()))
            excess = _Amount(*map(min, beyond, foreign.get(node, _Amount())))
            if excess.is_worth_a_word():
                found.setdefault(name, {})[node] = excess
    return found


def _by_node(amounts: Iterable[tuple[str, _Amount]]) -> _ByNode:
    total: _ByNode = {}
    for node, amount in amounts:
        total[node] = total.get(node, _Amount()).plus(amount)
    return total


def _of_member(one: Member) -> _Amount:
    return _Amount(one.gpus, one.cpus, one.memory_bytes)


def _of_resources(found: Mapping[str, float]) -> _Amount:
    return _Amount(found.get("GPU", 0.0), found.get("CPU", 0.0), found.get("memory", 0.0))


def _rest(amount: float) -> float:
    return round(amount, 3) if amount > _NOTHING else 0.0


def _seen(node: dict[str, Any], leaving: Mapping[str, float | None]) -> NodeSeen:
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
        leaving=node["NodeID"] in leaving,
        leaves_at=leaving.get(node["NodeID"]),
    )
