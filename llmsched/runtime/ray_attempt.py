"""An attempt of a `kind: ray` gang: its members make up a Ray of their own, and the first one runs the program.

Each member is an actor of the shared Ray that holds the member's resources there, and starts a node of the private Ray
beside itself (`ray_member.py`). The size changes without an end: new members join as nodes, those that go are drained
first. Start reading at `RayAttempt.run`, for a change of size at `become`.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import ray

from llmsched import sanitize
from llmsched.runtime.attempt import CLOSE_WITHIN_S, Life, Outcome
from llmsched.runtime.private_ray import COMES_UP_WITHIN_S
from llmsched.runtime.ray_member import Joined, RayMember
from llmsched.runtime.task import Ending
from llmsched.runtime.task_attempt import TaskAttempt

_LOOK_EVERY_S = 0.5
_NODE_TELLS_WITHIN_S = 3.0  # a program whose Ray has gone may end before `ray start` has noticed


class _Node(NamedTuple):
    """A member that is part of the private Ray."""

    member: dict[str, Any]
    worker: Any
    place: dict[str, Any]  # as `TaskWorker.where` tells it
    joined: Joined
    watch: Any  # the call that returns when its node has ended


class RayAttempt(TaskAttempt):
    AT_ONCE = TaskAttempt.AT_ONCE + 32  # those who look at its dashboard
    WORKER = RayMember

    def __init__(self, life: Life) -> None:
        super().__init__(life)
        self._token = secrets.token_hex(32)
        self._nodes: list[_Node] = []  # the head first
        self._lock = threading.Lock()
        self._next_rank = 0

    def run(self) -> None:
        life = self._life
        try:
            nodes = self._begin(life.order["members"])
            with self._lock:
                self._nodes = nodes
            life.begin()
            head = nodes[0]
            self._check([self._until_it_ends(head.worker.program.remote(self._envs(0)))], has_begun=True)
        finally:
            self._close(self._workers)

    def ask_to_leave(self, grace_s: float) -> None:
        """The program is asked; its Ray is there until it has left."""
        self._stops = [worker.stop.remote(grace_s) for worker in self._workers[:1]]

    def head(self) -> Any:
        """The worker beside its Ray's head, once that is up; else None."""
        with self._lock:
            return self._nodes[0].worker if self._nodes else None

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        """The program's own member must stay."""
        stay, _, _ = _changes(self._nodes, members)
        return bool(stay) and stay[0] is self._nodes[0]

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        with self._lock:
            before = list(self._nodes)
        stay, go, come = _changes(before, members)
        try:
            came = self._join(come, before[0].joined.address) if come else []
        except Outcome as why:
            print(f"{self._life.name}: {why.message}")
            return False
        with self._lock:
            self._nodes = [*stay, *came]
        self._drain(go, stay[0], grace_s)
        return True

    # -- making it up --------------------------------------------------------------------------------------------

    def _begin(self, members: list[dict[str, Any]]) -> list[_Node]:
        workers, places = self._hired(members)
        self._lay_out(workers, places)
        head = self._started([workers[0].start.remote()])[0]
        rest = self._started([worker.start.remote(head.address) for worker in workers[1:]])
        return self._known(members, workers, places, [head, *rest])

    def _join(self, members: list[dict[str, Any]], address: str) -> list[_Node]:
        """Raises Outcome when not all of them come up; then none has."""
        before = len(self._workers)
        try:
            workers, places = self._hired(members)
            self._lay_out(workers, places)
            joined = self._started([worker.start.remote(address) for worker in workers])
        except Outcome:
            failed = self._workers[before:]
            self._close(failed)
            self._dismiss(failed)
            raise
        return self._known(members, workers, places, joined)

    def _hired(self, members: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
        workers = [self._worker(member) for member in members]
        self._workers += workers
        return workers, self._placed(workers)

    def _worker(self, member: dict[str, Any]) -> Any:
        rank, self._next_rank = self._next_rank, self._next_rank + 1
        return self._hire(member, rank, json.dumps(member), self._token)

    def _lay_out(self, workers: list[Any], places: list[dict[str, Any]]) -> None:
        """The working folder: once a machine, by the first of its members; the others keep it there."""
        here = {(node.place["host"], node.place["ip"]) for node in self._nodes}
        first: list[Any] = []
        others: list[Any] = []
        for worker, place in zip(workers, places, strict=True):
            machine = (place["host"], place["ip"])
            (others if machine in here else first).append(worker)
            here.add(machine)
        ranks = list(range(len(first)))
        self._check(self._answers([worker.prepare.remote() for worker in first], ranks))
        ray.get([worker.attach.remote() for worker in others])

    def _started(self, starting: list[Any]) -> list[Joined]:
        until = COMES_UP_WITHIN_S + CLOSE_WITHIN_S
        waiting = list(starting)
        while waiting and until > 0:
            if self._life.is_leaving and not self._nodes:
                raise Outcome("released", "stopped before it began")
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_EVERY_S)
            until -= _LOOK_EVERY_S
        found: list[Joined] = []
        for one in starting:
            try:
                found.append(ray.get(one, timeout=0.1))
            except ray.exceptions.RayError as error:
                raise Outcome(
                    "failed", f"its Ray did not come up: {sanitize.first_line(error)}", "interruption"
                ) from error
            if found[-1].message:
                raise Outcome("failed", f"its Ray did not come up: {found[-1].message}", "interruption")
        return found

    def _known(
        self, members: list[dict[str, Any]], workers: list[Any], places: list[dict[str, Any]], joined: list[Joined]
    ) -> list[_Node]:
        nodes = []
        for member, worker, place, one in zip(members, workers, places, joined, strict=True):
            rank = place["rank"]
            envs = {**place["envs"], **self._envs(rank), **one.envs}
            self._life.ranks.works_in(rank, place["node"], place["folder"], envs, place["pid"])
            nodes.append(_Node(member, worker, place, one, worker.watch.remote()))
        return nodes

    # -- while it works ------------------------------------------------------------------------------------------

    def _until_it_ends(self, program: Any) -> Ending:
        """How the program ended, or the first of its Ray's nodes that ended by itself."""
        while True:
            with self._lock:
                watched = {node.watch: node for node in self._nodes}
            done, _ = ray.wait([program, *watched], num_returns=1, timeout=_LOOK_EVERY_S)
            for one in done:
                if one is not program and (lost := self._lost(watched[one])):
                    return lost
            if program in done:
                return self._answer(program)

    def _answer(self, program: Any) -> Ending:
        head = self._nodes[0]
        try:
            ending: Ending = ray.get(program)
        except ray.exceptions.RayError as error:
            raise Outcome("failed", *self._life.of_death(head.place["rank"], error)) from error
        if ending.message and not self._life.is_leaving:
            ray.wait([head.watch], timeout=_NODE_TELLS_WITHIN_S)
            return self._lost(head, timeout_s=0.0) or ending
        return ending

    def _lost(self, node: _Node, timeout_s: float = 1.0) -> Ending | None:
        """What it means that a node has ended; None when it was asked to, or has not."""
        with self._lock:
            if all(one.worker is not node.worker for one in self._nodes):
                return None  # it left
            is_head = self._nodes[0].worker is node.worker
        try:
            ending: Ending = ray.get(node.watch, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            return Ending(*self._life.of_death(node.place["rank"], error))
        if not ending.message:
            return None
        what = "the head of its Ray" if is_head else "a node of its Ray"
        return ending._replace(message=f"{what} ({node.place['host']}): {ending.message}")

    def _drain(self, nodes: list[_Node], head: _Node, grace_s: float) -> None:
        """Let them go: told to the Ray first, so that what runs there can move or save within the grace."""
        told = [head.worker.drain.remote(node.joined.node, grace_s) for node in nodes]
        with suppress(Exception):
            for words in ray.get(told, timeout=CLOSE_WITHIN_S * 3):
                if words:
                    print(f"{self._life.name}: a node could not be drained: {words}")
        gone = [node.worker.leave.remote(grace_s) for node in nodes]
        ray.wait(gone, num_returns=len(gone), timeout=grace_s + CLOSE_WITHIN_S) if gone else None
        with suppress(Exception):  # whoever kept a working folder may be among those that go
            ray.get([node.worker.attach.remote() for node in self._nodes], timeout=CLOSE_WITHIN_S)
        self._dismiss([node.worker for node in nodes])
        for node in nodes:
            self._life.ranks.left(node.place["rank"])

    def _close(self, workers: list[Any]) -> None:
        """The head last: the others leave its Ray first."""
        for part in (workers[1:], workers[:1]):
            closing = [worker.close.remote() for worker in part]
            with suppress(Exception):
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_WITHIN_S * 3) if closing else None
        with suppress(Exception):
            ray.get([worker.clean.remote() for worker in workers], timeout=5)

    def _dismiss(self, workers: list[Any]) -> None:
        for worker in workers:
            with suppress(Exception):
                ray.kill(worker)
        self._workers = [one for one in self._workers if all(one is not each for each in workers)]


def _changes(
    nodes: list[_Node], members: list[dict[str, Any]]
) -> tuple[list[_Node], list[_Node], list[dict[str, Any]]]:
    """(who stays, who goes, whom to add), so that the machines are those of `members`; the head stays."""
    wanted = Counter(_shape(one) for one in members)
    stay: list[_Node] = []
    go: list[_Node] = []
    for node in nodes:
        shape = _shape(node.member)
        if wanted[shape] > 0:
            wanted[shape] -= 1
            stay.append(node)
        else:
            go.append(node)
    come: list[dict[str, Any]] = []
    for member in members:
        if wanted[_shape(member)] > 0:
            wanted[_shape(member)] -= 1
            come.append(member)
    return stay, go, come


def _shape(member: dict[str, Any]) -> str:
    """What makes two members of a gang the same to Ray: all but the rank."""
    return json.dumps({name: value for name, value in member.items() if name != "rank"}, sort_keys=True)
