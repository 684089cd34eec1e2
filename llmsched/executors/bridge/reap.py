"""Two-way garbage collection: what bears our name in Ray and belongs to no attempt we believe in is taken away. What an
attempt made beside that goes by who made it: `containment.py`.

The other direction, an attempt whose work is gone, is noticed by whoever watches it. Nothing is reaped before control
has said what is live, and nothing that was not seen twice at least five seconds apart: between the two, an order may
have come for it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import ray

from llmsched.executors.bridge.ownership import PREFIX, attempt_name
from llmsched.executors.bridge.warm_pool import WarmPool
from llmsched.runtime import addressed
from llmsched.runtime.attempt import NAMESPACE

if TYPE_CHECKING:
    from llmsched.executors.bridge.serve import Replicas
    from llmsched.executors.bridge.train import Attempts

TWICE_APART_S = 5.0


class Reaper:
    def __init__(self, attempts: Attempts, replicas: Replicas, warm: WarmPool) -> None:
        self._attempts, self._replicas, self._warm = attempts, replicas, warm
        self._lock = threading.Lock()
        self._ordered: set[str] = set()
        self._is_armed = False
        self._first_seen: dict[str, float] = {}

    def arm(self) -> None:
        """Control has named everything that is live."""
        self._is_armed = True

    def expect(self, name: str) -> None:
        """An order for this attempt is on its way into the tables: not an orphan."""
        with self._lock:
            self._ordered.add(name)

    def arrived(self, name: str) -> None:
        with self._lock:
            self._ordered.discard(name)

    def sweep(self) -> None:
        if not self._is_armed:
            return
        found = {f"actor {name}" for name in _actors()}
        found |= {f"application {name}" for name in self._replicas.applications()}
        with self._lock:
            live = self._attempts.names() | self._replicas.names() | self._ordered | {*self._warm.held()}
        carried = self._warm.carried()
        orphans = {one for one in found if not live & _owners(one.partition(" ")[2], carried)}
        self._warm.keep_only({addressed.supervisor_part(one.partition(" ")[2]) for one in found})
        now = time.monotonic()
        self._first_seen = {one: self._first_seen.get(one, now) for one in orphans}
        for one, at in list(self._first_seen.items()):
            if now - at >= TWICE_APART_S:
                print(f"reaped {one}: no live attempt owns it", file=sys.stderr)
                self._take(one)
                del self._first_seen[one]

    def take_down_everything(self) -> None:
        """All of ours at once, but for the gateway; returns when Ray has been told and Serve has let go."""
        for name in _actors():
            self._take(f"actor {name}")
        self._replicas.shut_down()

    def _take(self, orphan: str) -> None:
        kind, _, name = orphan.partition(" ")
        with suppress(ValueError):  # gone in the meantime
            if kind == "actor":
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            else:
                self._replicas.reap(name)


def _owners(name: str, carried: Mapping[str, str]) -> set[str]:
    """The attempt whose an actor or application of this name is; of a warm supervisor or its worker, that too."""
    if not name.startswith(addressed.PREFIX):
        return {attempt_name(name)}
    warm = addressed.supervisor_part(name)
    return {warm, carried.get(warm, addressed.first_attempt(warm))}


def _actors() -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    ours = (PREFIX, addressed.PREFIX)
    return {one["name"] for one in named if one["namespace"] == NAMESPACE and one["name"].startswith(ours)}
