"""An attempt of a tune gang: a task of one process, which asks for the trials (`workloads.search`).

It ends as any command does; one that found that no more trials would help says so by its exit code.
"""

from __future__ import annotations

import sys
from typing import Any

from llmsched.runtime.failures import NO_USE
from llmsched.runtime.rendezvous import Rendezvous
from llmsched.runtime.task import Ending, TaskWorker
from llmsched.runtime.task_attempt import TaskAttempt

# -P: what lies in the workdir is the trials', not this program's.
SECTION: dict[str, Any] = {"run": [sys.executable, "-P", "-m", "workloads.search"]}


class SearchWorker(TaskWorker):
    KIND = "tune"

    @property
    def _section(self) -> dict[str, Any]:
        return SECTION

    def _ending(self, what: str, code: int) -> Ending:
        if code != NO_USE:
            return super()._ending(what, code)
        return Ending(self._last_words().removeprefix("; last line: "), "input", code)


class TuneAttempt(TaskAttempt):
    WORKER = SearchWorker

    def _meeting(self, addresses: list[str]) -> Rendezvous:
        """It meets nobody."""
        port = self._of_worker_0(self._workers[0].hold_port.remote())
        order = {**self._life.order, "spec": {"task": SECTION, "workers": {"max": 1}}}
        return Rendezvous.of(order, self._life.resizes, addresses, port)
