"""Supervisors of tasks that have ended, for a moment: the next task of the same owner on the same places gets one.

To the scheduler what they hold in Ray is free, so whoever else is to have it comes first: an order for one of their
nodes that is not for exactly their places ends them. Start reading at `take`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray

from llmsched.executors.port import LaunchOrder, Member
from llmsched.runtime.addressed import PREFIX, Addressed, supervisor_part, warm_name
from llmsched.runtime.attempt import NAMESPACE

IDLE_S = 10.0  # the next order comes within a second where work waits, and within several on a busy machine
ATTEMPTS_AT_MOST = 200  # of one supervisor: what a process may gather in its life is bounded
LEARNT_WITHIN_S = 10.0


class _Idle(NamedTuple):
    name: str
    actor: Any
    owner: str
    members: tuple[Member, ...]
    since: float


class WarmPool:
    """Called from several threads. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[str, _Idle] = {}
        self._carried: dict[str, str] = {}  # supervisor -> its attempt, where that is not its first; "": none
        self._counts: dict[str, int] = {}
        self._left: set[str] = set()  # attempts that left theirs to nobody yet before this bridge came

    def put(self, actor: Addressed, order: LaunchOrder) -> None:
        """Its attempt has ended and leaves its processes."""
        name = self.name_of(order.name)
        with self._lock:
            self._carried[name] = ""
            self._counts[name] = self._counts.get(name, 1)
            self._idle[name] = _Idle(name, actor.actor, order.owner, order.members, self._clock())
        if self._counts[name] >= ATTEMPTS_AT_MOST:
            self._end([name])

    def take(self, order: LaunchOrder) -> Any:
        """One for this attempt, which it has from now on; None: there is none."""
        with self._lock:
            for name, one in self._idle.items():
                if one.owner == order.owner and _same(one.members, order.members):
                    del self._idle[name]
                    self._carried[name] = order.name
                    self._counts[name] += 1
                    return one.actor
        return None

    def has_left(self, attempt: str) -> bool:
        """Whether it has ended under an earlier bridge, and nothing of it is on its nodes any more."""
        return attempt in self._left

    def make_way(self, order: LaunchOrder) -> None:
        """What those hold on the order's nodes is to be had by it."""
        nodes = {one.node for one in order.members}
        self._end([one.name for one in self._here() if nodes & {member.node for member in one.members}])

    def node_gone(self, node: str) -> None:
        self._end([one.name for one in self._here() if any(member.node == node for member in one.members)])

    def end_idle(self) -> None:
        """Those for whom nothing came."""
        now = self._clock()
        self._end([one.name for one in self._here() if now - one.since > IDLE_S])

    def held(self) -> dict[str, tuple[Member, ...]]:
        """What they have in Ray, and nobody else does."""
        return {one.name: one.members for one in self._here()}

    def carried(self) -> Mapping[str, str]:
        """By the names of supervisors, the attempts that they have, where that is not their first; "": none."""
        with self._lock:
            return dict(self._carried)

    def name_of(self, attempt: str) -> str:
        """Of the supervisor that has, or would have, this attempt."""
        with self._lock:
            return next((name for name, has in self._carried.items() if has == attempt), warm_name(attempt))

    def keep_only(self, there: set[str]) -> None:
        """What is known of other supervisors: they are gone."""
        with self._lock:
            for name in self._carried.keys() - there - self._idle.keys():
                del self._carried[name]
                self._counts.pop(name, None)

    def learn(self) -> None:
        """Which attempts those have that a bridge before this one started. What an attempt has left is for another; of
        one that ended otherwise the end is in the storage, and nobody needs its supervisor."""
        asked = {}
        for name in warm_supervisors():
            try:
                actor = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:  # gone meanwhile
                continue
            asked[actor.carries.remote()] = name, actor
        done, _ = ray.wait([*asked], num_returns=len(asked), timeout=LEARNT_WITHIN_S) if asked else ([], [])
        for answer in done:
            name, actor = asked[answer]
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError:
                continue
            order = json.loads(said["order"])
            attempt = f"llms/{order['gang']}/{order['attempt']}"
            with self._lock:
                self._carried[name] = attempt
                if said["leaves"]:
                    self._carried[name], self._counts[name] = "", self._counts.get(name, 1)
                    members = tuple(Member(**one) for one in order["members"])
                    self._left.add(attempt)
                    since = self._clock() + LEARNT_WITHIN_S  # orders come once all that lives has been adopted
                    self._idle[name] = _Idle(name, actor, order["owner"], members, since)
            if said["receipt"] is not None and not said["leaves"]:
                actor.leave.remote()

    def _here(self) -> list[_Idle]:
        with self._lock:
            return [*self._idle.values()]

    def _end(self, names: list[str]) -> None:
        for name in names:
            with self._lock:
                one = self._idle.pop(name, None)
            if one is not None:
                one.actor.leave.remote()


def warm_supervisors() -> list[str]:
    """The names of all that there are."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [str(one["name"]) for one in named if one["namespace"] == NAMESPACE]
    return [name for name in names if name.startswith(PREFIX) and supervisor_part(name) == name]


def _same(some: tuple[Member, ...], others: tuple[Member, ...]) -> bool:
    return [_place(one) for one in some] == [_place(one) for one in others]


def _place(one: Member) -> tuple[Any, ...]:
    return one.rank, one.node, one.gpus, one.cpus, one.memory_bytes, one.custom
