"""People's commands beside one attempt: an actor on the rank's node for each, a few at once, ended when nobody listens.

Called by the supervisor, from several threads. What runs there is in `execute.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import ray

from llmsched import sanitize
from llmsched.runtime import execute
from llmsched.runtime.ranks import Place

AT_ONCE = 4


class Commands:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Any] = {}

    def run(
        self, command: str, order: dict[str, Any], place: Place, argv: list[str], timeout_s: float
    ) -> Iterator[execute.Said]:
        """`command` is its id, for `end`."""
        with self._lock:
            if len(self._running) >= AT_ONCE:
                yield "end", f"{AT_ONCE} commands run beside it already", None
                return
            worker = self._running[command] = (
                ray.remote(execute.CommandWorker)
                .options(num_cpus=0, max_concurrency=2, label_selector={"ray.io/node-id": place.node})
                .remote(json.dumps(order))
            )
        try:
            said = worker.run.options(num_returns="streaming").remote(argv, place.folder, place.envs, timeout_s)
            for item in said:
                yield ray.get(item)
        except ray.exceptions.RayError as error:
            yield "end", f"its node or its process died: {sanitize.first_line(error)}", None
        finally:
            with self._lock:
                self._running.pop(command, None)
            ray.kill(worker)

    def end(self, command: str) -> None:
        with self._lock:
            worker = self._running.get(command)
        if worker is not None:
            worker.stop.remote()

    def end_all_but(self, heard: list[str]) -> None:
        with self._lock:
            left = [name for name in self._running if name not in heard]
        for command in left:
            self.end(command)
