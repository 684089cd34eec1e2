"""A supervisor of tasks that goes on to another attempt when one has ended: it, and its workers, need not start anew.

The next attempt has the same owner, and the same resources on the same nodes; which one it is says the bridge
(`executors/bridge/warm_pool.py`). A user's code never runs in this process. What is left with it is in `crew.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray

from llmsched.runtime.addressed import warm_name
from llmsched.runtime.crew import Crew
from llmsched.runtime.supervisor import Supervisor


class WarmSupervisor:
    """`order` is the first attempt's LaunchOrder as JSON, `mark` says in environments whose processes are whose.
    Methods are called from several threads; those of `Supervisor` by `said_to`."""

    def __init__(self, order: str, mark: str, end_process: Callable[[int], object] = os._exit) -> None:
        self._end_process = end_process
        self._crew = Crew()
        self._name = warm_name(_attempt_of(json.loads(order)))
        self.begin_next(order, mark)

    def begin_next(self, order: str, mark: str) -> None:
        """Whoever had it has ended, and said that it leaves its processes."""
        known = json.loads(order) | {"warm": self._name, "mark": mark}
        attempt = self._attempt = _attempt_of(known)
        self._now = Supervisor(json.dumps(known), lambda code: self._end(attempt, code), self._crew)

    def said_to(self, attempt: str, method: str, *arguments: Any) -> Any:
        return getattr(self._now, method)(*arguments) if attempt == self._attempt else None

    def streamed_to(self, attempt: str, method: str, *arguments: Any) -> Iterator[Any]:
        """The same of a method that answers in pieces."""
        yield from self.said_to(attempt, method, *arguments) or ()

    def carries(self) -> dict[str, Any]:
        """The order of the attempt that it has, and of its status what becomes of it: receipt, leaves."""
        return {"order": self._now.launch_order(), **self._now.status()}

    def leave(self) -> None:
        """Nobody needs it any more."""
        self._crew.end()
        ray.actor.exit_actor()

    def _end(self, attempt: str, code: int) -> None:
        """Nobody came for the end of this attempt; for that of one before it somebody did."""
        if attempt == self._attempt:
            self._end_process(code)


def _attempt_of(order: dict[str, Any]) -> str:
    return f"llms/{order['gang']}/{order['attempt']}"
