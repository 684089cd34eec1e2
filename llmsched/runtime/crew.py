"""The workers of a task, left to the next attempt on the same places.

A user's code runs below a worker and never in it. A worker is left only when its guardian has ended all of that and a
look at the whole node finds nothing that bears the attempt's mark. Whoever leaves as asked, is ended by force, had a
Ray of its own or used more memory than it asked for leaves nothing to anybody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray

from llmsched.runtime import containment
from llmsched.runtime.addressed import Addressed
from llmsched.runtime.task import TaskWorker


class Crew:
    """Those of one warm supervisor, while no attempt has them."""

    def __init__(self) -> None:
        self._workers: list[Any] = []

    @property
    def is_there(self) -> bool:
        return bool(self._workers)

    def keep(self, workers: list[Addressed]) -> None:
        """As the attempt that leaves them knows them."""
        self._workers = [one.actor for one in workers]

    def take(self, order: Mapping[str, Any], within_s: float) -> list[Addressed]:
        """All of them, for the attempt of this LaunchOrder (as JSON data); none where they are not all ready."""
        workers, self._workers = self._workers, []
        name, said = f"llms/{order['gang']}/{order['attempt']}", json.dumps(order)
        try:
            ray.get([one.begin_next.remote(said, rank) for rank, one in enumerate(workers)], timeout=within_s)
        except ray.exceptions.RayError as error:
            print(f"{name}: the workers of the attempt before it are not to be had: {error!r}", flush=True)
            _end(workers)
            return []
        return [Addressed(one, name) for one in workers]

    def end(self) -> None:
        workers, self._workers = self._workers, []
        _end(workers)


class WarmWorker:
    """An actor that is a rank of one task after another. `order` is a LaunchOrder as JSON, with the mark of its
    attempt. The methods of `TaskWorker` are called by `said_to`."""

    def __init__(self, order: str, rank: int) -> None:
        self.begin_next(order, rank)

    def begin_next(self, order: str, rank: int) -> None:
        known = json.loads(order)
        os.environ[containment.OWNER] = self._mark = known["mark"]  # guardians and commands read it there
        self._attempt = f"llms/{known['gang']}/{known['attempt']}"
        self._now = TaskWorker(order, rank)

    def said_to(self, attempt: str, method: str, *arguments: Any) -> Any:
        if attempt != self._attempt:
            return None
        return self._can_go_on() if method == "can_go_on" else getattr(self._now, method)(*arguments)

    def _can_go_on(self) -> bool:
        """Whether another attempt may have it: nothing of this one is on its node any more."""
        is_clear = self._now.leaves_nothing() and not containment.clear_node(self._mark)["left"]
        with suppress(ChildProcessError):  # whoever lost its parent has come to this process, and ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return is_clear


def _end(workers: list[Any]) -> None:
    for one in workers:
        with suppress(Exception):
            ray.kill(one)
