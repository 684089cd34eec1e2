"""People's commands beside one attempt: an actor on the rank's node for each, a few at once, ended when nobody listens.

Called by the supervisor, from several threads. What runs there is in `execute.py` and `by_hand.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from llmsched import sanitize
from llmsched.runtime import execute
from llmsched.runtime.command_worker import Ask, CommandWorker
from llmsched.runtime.ranks import Place

AT_ONCE = 4


class Commands:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Any] = {}
        self._is_closed = False
        self.used_at = time.monotonic()  # when somebody said or heard something last

    def run(self, command: str, order: dict[str, Any], place: Place, ask: Ask) -> Iterator[execute.Said]:
        """`command` is its id, for `take` and `end`."""
        with self._lock:
            if self._is_closed:
                yield "end", "it has ended", None
                return
            if len(self._running) >= AT_ONCE:
                yield "end", f"{AT_ONCE} commands run beside it already", None
                return
            worker = self._running[command] = (
                ray.remote(CommandWorker)
                .options(num_cpus=0, max_concurrency=3, label_selector={"ray.io/node-id": place.node})
                .remote(json.dumps(order))
            )
        try:
            said = worker.run.options(num_returns="streaming").remote(ask, place.folder, place.envs)
            for item in said:
                self.used_at = time.monotonic()
                yield ray.get(item)
        except ray.exceptions.RayError as error:
            yield "end", f"its node or its process died: {sanitize.first_line(error)}", None
        finally:
            with self._lock:
                self._running.pop(command, None)
            ray.kill(worker)

    def take(self, command: str, frames: list[bytes]) -> None:
        """What the other end of it sends; returns once it is there."""
        self.used_at = time.monotonic()
        with self._lock:
            worker = self._running.get(command)
        if worker is not None:
            ray.get(worker.take.remote(frames))

    def end(self, command: str) -> None:
        with self._lock:
            worker = self._running.get(command)
        if worker is not None:
            worker.stop.remote()

    def close(self) -> bool:
        """None begins any more; whether one runs."""
        with self._lock:
            self._is_closed = True
            return bool(self._running)

    def end_all_but(self, heard: list[str]) -> None:
        with self._lock:
            left = [name for name in self._running if name not in heard]
        for command in left:
            self.end(command)
