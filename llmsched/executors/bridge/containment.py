"""What an attempt has made in Ray and on its nodes ends with it, before its end is told: so before its GPUs go on.

Everything that the bridge says of attempts passes `Containment.deliver`. An end waits there until nothing is left of
the attempt: Serve applications it deployed, placement groups, actors (detached ones too), drivers and processes,
whatever way it ended. Whose a thing is says `ownership.py`. What does not go within ENDS_WITHIN_S is named and tried
again by `sweep`: an end that is never told would hold the GPUs for ever.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.util.placement_group import PlacementGroup

from llmsched.executors.bridge import ray_internals
from llmsched.executors.bridge.ownership import REPLICA, Ownership
from llmsched.executors.bridge.ray_internals import Actor, Job
from llmsched.executors.port import Deliver, Ended, LaunchOrder, NotStarted, Observation, Vanished
from llmsched.runtime import containment

ENDS_WITHIN_S = 30.0
AT_ONCE = 8
TASKS_EVERY_S = 3.0
TWICE_APART_S = 5.0  # an order for it may be on its way
_LOOK_EVERY_S = 0.2
_POLITE_S = 2.0  # what ends by itself when its maker does has this long


class Containment:
    """Called from several threads. `deliver` is the only way to say something of an attempt. `carried`: as of
    `Ownership`, now."""

    def __init__(self, deliver: Deliver, cluster: str, carried: Callable[[], Mapping[str, str]] = dict) -> None:
        self._deliver, self._cluster, self._carried = deliver, cluster, carried
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="containment")
        self._nodes: dict[str, set[str]] = {}  # attempt -> nodes on which it may have processes
        self._ending: dict[str, list[Observation]] = {}
        # One function for all: Ray hands a worker on to the next call of the same function on the same node at once.
        self._clear_node = ray.remote(num_cpus=0, max_retries=0)(containment.clear_node_of)
        self._waking: dict[str, Any] = {}  # node -> a call that does nothing there
        self._is_armed = False
        self._orphans: dict[str, float] = {}
        self._tasks: tuple[ray_internals.Task, ...] = ()
        self._tasks_at = -TASKS_EVERY_S
        self._deployers: dict[str, str] = {}
        self._drivers: dict[str, str] = {}  # job -> the mark of its process
        self._asker = ThreadPoolExecutor(2, thread_name_prefix="owners")
        self._asking: dict[str, Future[None]] = {}
        self._asked_about: set[str] = set()  # replicas of strangers, by actor id

    def expect(self, order: LaunchOrder) -> None:
        """The attempt will run there, or does already."""
        with self._lock:
            self._nodes.setdefault(order.name, set()).update(one.node for one in order.members)

    def is_cleared(self, attempt: str) -> None:
        """Its workers have looked themselves: nothing of it is on its nodes any more."""
        with self._lock:
            self._nodes[attempt] = set()

    def wake(self, attempt: str) -> None:
        """It is told to stop: on its nodes a worker of Ray's is to be awake when somebody has to look there, and comes
        up while the attempt saves. Where one is idle this costs a call; returns at once."""
        alive = _alive()
        with self._lock:
            for node in self._waking.keys() - alive:  # a call for a node that has gone would wait for ever
                with suppress(Exception):
                    ray.cancel(self._waking.pop(node), force=True)
            for node in sorted(self._nodes.get(attempt, set()) & alive):
                if (before := self._waking.get(node)) is not None and not ray.wait([before], timeout=0)[0]:
                    continue  # many that end together need no worker each
                self._waking[node] = self._on(node).remote(None)

    def _on(self, node: str) -> Any:
        return self._clear_node.options(label_selector={"ray.io/node-id": node})

    def mark(self, attempt: str) -> str:
        return containment.owner_mark(attempt, self._cluster)

    def deliver(self, seen: Observation) -> None:
        if not isinstance(seen, (Ended, NotStarted, Vanished)):
            self._deliver(seen)
            return
        attempt = f"llms/{seen.gang}/{seen.attempt}"
        with self._lock:
            waiting = self._ending.setdefault(attempt, [])
            waiting.append(seen)
            if len(waiting) > 1:
                return
        self._pool.submit(self._end_and_tell, attempt)

    def look(self, *, with_tasks: bool = False, waits: bool = False) -> Ownership:
        """Whose is what, now. `with_tasks`: remote functions too, as of TASKS_EVERY_S ago at most. Whose a Serve
        application or an unmarked driver is takes a while to ask: `waits` for that, else a later look has it."""
        tables = ray_internals.tables()
        if with_tasks:
            tables = tables._replace(tasks=self._running_tasks())
        found = Ownership(tables, self._cluster, self._deployers, self._drivers, self._carried())
        strangers, jobs = set(found.strangers()), found.unmarked_jobs()
        asking = []
        if not strangers <= self._asked_about:
            asking.append(self._ask("Serve", lambda: self._ask_serve(strangers)))
        if unknown := [one for job, one in jobs.items() if job not in self._drivers]:
            asking.append(self._ask("drivers", lambda: self._ask_nodes(unknown)))
        if not asking:
            return found
        if waits:
            wait(asking)
        return Ownership(tables, self._cluster, self._deployers, self._drivers, self._carried())

    def _ask(self, what: str, ask: Callable[[], None]) -> Future[None]:
        """Serve and the nodes are asked apart: who is slow, or away, keeps nobody else's answer back."""
        with self._lock:
            if (asking := self._asking.get(what)) is None or asking.done():
                asking = self._asking[what] = self._asker.submit(_try, what, ask)
            return asking

    def _ask_serve(self, strangers: set[str]) -> None:
        self._deployers = ray_internals.deployers()
        self._asked_about = strangers

    def _ask_nodes(self, jobs: list[Job]) -> None:
        """Of drivers that were started without what we put into their environment: of processes above them. All nodes
        at once; one that does not answer is asked again, one that has gone took its drivers along."""
        nodes = {one["NodeManagerAddress"]: one["NodeID"] for one in ray.nodes() if one["Alive"]}
        pids: dict[str, dict[str, int]] = {}
        for job in jobs:
            if job.address in nodes:
                pids.setdefault(nodes[job.address], {})[job.id] = job.pid
            else:
                self._drivers[job.id] = ""
        ask = ray.remote(num_cpus=0, max_retries=0)(containment.owners_of)
        asked = {
            node: ask.options(label_selector={"ray.io/node-id": node}).remote(list(here.values()))
            for node, here in pids.items()
        }
        for node, answer in asked.items():
            self._drivers.update(zip(pids[node], ray.get(answer, timeout=ENDS_WITHIN_S), strict=True))

    def _running_tasks(self) -> tuple[ray_internals.Task, ...]:
        now = time.monotonic()
        if now - self._tasks_at > TASKS_EVERY_S:
            self._tasks_at = now
            try:
                self._tasks = ray_internals.running_tasks()
            except Exception as error:  # it is the dashboard's to answer, and that may be away
                print(f"Ray does not say which functions run: {error!r}", file=sys.stderr)
        return self._tasks

    def arm(self) -> None:
        """Control has named everything that is live."""
        self._is_armed = True

    def sweep(self) -> None:
        """End what is left of attempts that nobody believes in: a bridge may have died before it was through."""
        if not self._is_armed:
            return
        owned = self.look()
        with self._lock:
            orphans = owned.attempts() - self._nodes.keys() - self._ending.keys()
        now = time.monotonic()
        self._orphans = {name: self._orphans.get(name, now) for name in orphans}
        for name in [name for name, since in self._orphans.items() if now - since >= TWICE_APART_S]:
            del self._orphans[name]
            print(f"{name} has ended, and what it made has not: ended now", file=sys.stderr)
            self._end(name)
            with self._lock:
                self._nodes.pop(name, None)

    def end_everything(self) -> None:
        """What all attempts have made in Ray. Their workers are ended already, and what was theirs on nodes by that."""
        with self._lock:
            attempts = [*self._nodes]
        list(self._pool.map(self._end_in_ray, attempts))

    def _end_and_tell(self, attempt: str) -> None:
        try:
            self._end(attempt)
        except Exception:  # the end is told all the same
            traceback.print_exc()
        with self._lock:
            told = self._ending.pop(attempt)
            self._nodes.pop(attempt, None)
        for seen in told:
            self._deliver(seen)

    def _end(self, attempt: str) -> None:
        """Until nothing of it is left in Ray, then until nothing of it is left on its nodes."""
        left = self._end_in_ray(attempt)
        with self._lock:
            nodes = set(self._nodes.get(attempt, ()))
        left += self._clear(attempt, nodes, [])
        if left:
            print(f"{attempt} has ended and left behind: {'; '.join(left[:20])}", file=sys.stderr)

    def _end_in_ray(self, attempt: str) -> list[str]:
        """The names of what has not ended."""
        begun = time.monotonic()
        while True:
            owned, waited = self.look(waits=True), time.monotonic() - begun
            actors = owned.made(attempt)  # its supervisor leaves when read
            groups = owned.groups(attempt)
            left = [_name(one) for one in actors] + [f"placement group {one.id[:12]}" for one in groups]
            if not left or waited > ENDS_WITHIN_S:
                return left
            with self._lock:
                nodes = self._nodes.setdefault(attempt, set())
                nodes.update(one.node for one in actors if one.node)
            for application in owned.applications(attempt):
                serve.delete(application, _blocking=False)
            for group in groups:
                _remove(group.id)
            for one in actors:  # Serve ends its replicas with their requests, when there is time
                if waited > _POLITE_S or not one.name.startswith(REPLICA):
                    _kill(one)
            if waited > _POLITE_S and (stubborn := [one for one in actors if not one.name]):
                self._clear(attempt, {one.node for one in stubborn}, stubborn)
            time.sleep(_LOOK_EVERY_S)

    def _clear(self, attempt: str, nodes: set[str], stubborn: list[Actor]) -> list[str]:
        """End its processes on those nodes, those of these actors too; names of what does not end."""
        asked = [
            self._on(node).remote(self.mark(attempt), [one.pid for one in stubborn if one.node == node])
            for node in sorted(nodes & _alive())
        ]
        left: list[str] = []
        for answer in asked:
            try:
                found: dict[str, list[str]] = ray.get(answer, timeout=ENDS_WITHIN_S)
            except ray.exceptions.RayError as error:
                left.append(f"a node did not answer: {type(error).__name__}")
                with suppress(Exception):
                    ray.cancel(answer, force=True)
            else:
                left += found["left"]
        return left


def _alive() -> set[str]:
    return {one["NodeID"] for one in ray.nodes() if one["Alive"]}


def _try(what: str, ask: Callable[[], None]) -> None:
    try:
        ask()
    except Exception as error:  # Serve or a node is slow, or going, or has gone: the next look asks again
        print(f"{what}: whose some things in Ray are is not known yet: {error!r}", file=sys.stderr)


def _name(actor: Actor) -> str:
    return f"actor {actor.name or actor.class_name}"


def _kill(actor: Actor) -> None:
    """By its name; one without ends with the one who made it."""
    if actor.name:
        with suppress(ValueError):
            ray.kill(ray.get_actor(actor.name, namespace=actor.namespace))


def _remove(group: str) -> None:
    with suppress(Exception):
        ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
