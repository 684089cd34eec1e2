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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import ray
from ray import serve
from ray.util.placement_group import PlacementGroup

from llmsched.executors.bridge import ray_internals
from llmsched.executors.bridge.ownership import REPLICA, Ownership
from llmsched.executors.bridge.ray_internals import Actor
from llmsched.executors.port import Deliver, Ended, LaunchOrder, NotStarted, Observation, Vanished
from llmsched.runtime import containment

ENDS_WITHIN_S = 30.0
AT_ONCE = 8
TASKS_EVERY_S = 3.0
TWICE_APART_S = 5.0  # an order for it may be on its way
_LOOK_EVERY_S = 0.2
_POLITE_S = 2.0  # what ends by itself when its maker does has this long


class Containment:
    """Called from several threads. `deliver` is the only way to say something of an attempt."""

    def __init__(self, deliver: Deliver, cluster: str) -> None:
        self._deliver, self._cluster = deliver, cluster
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="containment")
        self._nodes: dict[str, set[str]] = {}  # attempt -> nodes on which it may have processes
        self._ending: dict[str, list[Observation]] = {}
        self._is_armed = False
        self._orphans: dict[str, float] = {}
        self._tasks: tuple[ray_internals.Task, ...] = ()
        self._tasks_at = -TASKS_EVERY_S
        self._deployers: dict[str, str] = {}
        self._asked_about: set[str] = set()  # replicas of strangers, by actor id

    def expect(self, order: LaunchOrder) -> None:
        """The attempt will run there, or does already."""
        with self._lock:
            self._nodes.setdefault(order.name, set()).update(one.node for one in order.members)

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

    def look(self, *, with_tasks: bool = False) -> Ownership:
        """Whose is what, now; `with_tasks`: remote functions too, as of TASKS_EVERY_S ago at most."""
        tables = ray_internals.tables()
        if with_tasks:
            now = time.monotonic()
            if now - self._tasks_at > TASKS_EVERY_S:
                self._tasks, self._tasks_at = ray_internals.running_tasks(), now
            tables = tables._replace(tasks=self._tasks)
        found = Ownership(tables, self._cluster, self._deployers)
        strangers = found.strangers()
        if strangers.keys() <= self._asked_about:
            return found
        self._deployers = ray_internals.deployers()
        self._asked_about = set(strangers)
        return Ownership(tables, self._cluster, self._deployers)

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
        begun = time.monotonic()
        with self._lock:
            nodes = set(self._nodes.get(attempt, ()))
        left: list[str] = []
        while time.monotonic() - begun < ENDS_WITHIN_S:
            owned = self.look()
            actors = [one for one in owned.actors(attempt) if one.name != attempt]  # its supervisor leaves when read
            nodes |= {one.node for one in actors if one.node}
            left = [_name(one) for one in actors]
            left += [f"placement group {one.id[:12]}" for one in owned.groups(attempt)]
            if not left:
                break
            for application in owned.applications(attempt):
                serve.delete(application, _blocking=False)
            for group in owned.groups(attempt):
                _remove(group.id)
            is_late = time.monotonic() - begun > _POLITE_S
            for one in actors:
                if one.name.startswith(REPLICA) and not is_late:
                    continue  # Serve ends it, with its requests
                _kill(one)
            if is_late and (stubborn := [one for one in actors if not one.name]):
                self._clear(attempt, nodes, stubborn)
            time.sleep(_LOOK_EVERY_S)
        left += self._clear(attempt, nodes, [])
        if left:
            print(f"{attempt} has ended and left behind: {'; '.join(left[:20])}", file=sys.stderr)

    def _clear(self, attempt: str, nodes: set[str], stubborn: list[Actor]) -> list[str]:
        """End its processes on those nodes, those of these actors too; names of what does not end."""
        alive = {one["NodeID"] for one in ray.nodes() if one["Alive"]}
        clear = ray.remote(num_cpus=0, max_retries=0)(containment.clear_node)
        asked = [
            clear.options(label_selector={"ray.io/node-id": node}).remote(
                self.mark(attempt), [one.pid for one in stubborn if one.node == node]
            )
            for node in sorted(nodes & alive)
        ]
        left: list[str] = []
        for answer in asked:
            try:
                found: dict[str, list[str]] = ray.get(answer, timeout=ENDS_WITHIN_S)
            except ray.exceptions.RayError as error:
                left.append(f"a node was not asked: {type(error).__name__}")
            else:
                left += found["left"]
        return left


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
