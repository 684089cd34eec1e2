"""A process of Ray's on each node of an attempt that ends, which looks there for what is left of it.

Such a process takes a second to start, several on a busy machine, and until it has looked nobody gets the attempt's
GPUs. So it is started when the attempt is told to stop, and comes up while the work saves. Who ends unasked is looked
at by one that starts then.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray

from llmsched.runtime.containment import LastLook

READY_AT_ONCE = 16  # processes that wait beforehand: many attempts that stop together must not swamp the nodes
ANSWERS_WITHIN_S = 30.0


class LastLooks:
    """Called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: dict[str, dict[str, Any]] = {}  # attempt -> node -> the process there, as an actor

    def prepare(self, attempt: str, nodes: Collection[str]) -> None:
        """Start the processes; returns at once."""
        with self._lock:
            mine = self._ready.setdefault(attempt, {})
            room = READY_AT_ONCE - sum(map(len, self._ready.values()))
            new = [node for node in sorted(nodes) if node not in mine][: max(0, room)]
            mine.update({node: _begin(node) for node in new})

    def clear(self, attempt: str, mark: str, rays: Mapping[str, Sequence[int]]) -> list[str]:
        """End what bears the mark on those nodes, and those workers of Ray's; the names of what does not end. `rays`:
        node -> pids."""
        with self._lock:
            mine = self._ready.setdefault(attempt, {})
            mine.update({node: _begin(node) for node in sorted(rays) if node not in mine})
            asked = {node: mine[node].clear.remote(mark, list(rays[node])) for node in sorted(rays)}
        left: list[str] = []
        for node, answer in asked.items():
            if (found := _left(answer)) is None:  # it was ended while it waited: another one looks
                with self._lock:
                    again = mine[node] = _begin(node)
                found = _left(again.clear.remote(mark, list(rays[node])))
            left += ["a node did not answer"] if found is None else found
        return left

    def end(self, attempt: str) -> None:
        """Nothing is left to be looked at: the processes end."""
        with self._lock:
            looks = self._ready.pop(attempt, {})
        for look in looks.values():
            with suppress(Exception):
                ray.kill(look)


def _begin(node: str) -> Any:
    kind = ray.remote(num_cpus=0, max_restarts=0)(LastLook)
    return kind.options(label_selector={"ray.io/node-id": node}).remote()


def _left(answer: Any) -> list[str] | None:
    """None: the process that was asked has gone."""
    try:
        found: dict[str, list[str]] = ray.get(answer, timeout=ANSWERS_WITHIN_S)
    except ray.exceptions.RayActorError:
        return None
    except ray.exceptions.RayError as error:
        return [f"a node did not answer: {type(error).__name__}"]
    return found["left"]
