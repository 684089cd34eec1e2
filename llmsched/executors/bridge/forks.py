"""On which nodes replicas may be forked (`runtime/fork_server.py`): what Ray is to start their workers with."""

from __future__ import annotations

import threading
from typing import Any

import ray

from llmsched.executors.bridge import processes
from llmsched.runtime import fork_server

ANSWERS_IN_S = 0.01  # one that is there


class Forks:
    """Called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Any] = {}  # by node: the answer, on its way
        self._words: dict[str, str] = {}

    def begin(self, node: str, pid: int) -> None:
        """A replica that was started as ever answers there, in this process: the next one may be its like."""
        with self._lock:
            if node not in self._asked:
                asked = ray.remote(fork_server.begin).options(num_cpus=0, max_retries=0, **processes.on(node))
                self._asked[node] = asked.remote(pid)

    def words(self, node: str) -> str:
        """ "" where they start as ever."""
        with self._lock:
            if (asked := self._asked.get(node)) is not None:
                try:
                    self._words[node] = ray.get(asked, timeout=ANSWERS_IN_S)
                    del self._asked[node]
                except ray.exceptions.GetTimeoutError:
                    pass
                except ray.exceptions.RayError:  # of the node, or of the task: a replica needs neither
                    del self._asked[node]
            return self._words.get(node, "")
