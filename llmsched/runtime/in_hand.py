"""The requests that a replica has in hand: each counts from its first moment until its work has really ended.

A request whose client left is cancelled, and counts on until it lets go: what blocks in a thread cannot be cancelled.
So a replica never takes on more than it can do, and can say that it is stuck. Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STUCK_AFTER_S = 15.0  # a cancelled request that goes on for so long is taken not to come back
EARLY_KEPT = 1000  # requests that were cancelled before they came
LOST = "replica_lost"  # code of an answer that says: nothing was begun, and this replica will answer no more


class Refused(Exception):
    """The request is not, or no more, worked on. `answer` says why in the form of every replica's errors."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        kind = "rate_limit_error" if status == 429 else "server_error"
        self.answer = {"error": {"message": message, "type": kind, "param": None, "code": code}, "status": status}


class InHand:
    """Used from one event loop. `limit` is the most at once."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._cancelled_at: dict[str, float] = {}
        self._early: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Work on a request, in the task that runs now. Raises Refused for want of room, or once it is cancelled."""
        task = asyncio.current_task()
        assert task is not None
        name = name or f"task {id(task)}"  # whoever gives it no name does not cancel it either
        if name in self._early:
            del self._early[name]
            raise Refused(499, "cancelled", "The request was cancelled before it began.")
        if len(self._tasks) >= self.limit:
            raise Refused(429, "full", f"The replica has {self.limit} requests in hand. Try again shortly.")
        self._tasks[name] = task
        try:
            yield
        except asyncio.CancelledError:
            if name not in self._cancelled_at:
                raise
            task.uncancel()
            raise Refused(499, "cancelled", "The request was cancelled.") from None
        finally:
            del self._tasks[name]
            self._cancelled_at.pop(name, None)

    def cancel(self, name: str) -> None:
        """Ask it to end, once; one that has not come yet ends when it comes."""
        task = self._tasks.get(name)
        if task is None:
            self._early[name] = None
            while len(self._early) > EARLY_KEPT:
                self._early.popitem(last=False)
        elif name not in self._cancelled_at:
            self._cancelled_at[name] = self._clock()
            task.cancel()

    def abandoned(self) -> int:
        """How many were cancelled and do not end."""
        before = self._clock() - STUCK_AFTER_S
        return sum(at <= before for at in self._cancelled_at.values())

    def trouble(self) -> str:
        """Why no other request can be taken, now or later; "" while one can."""
        if self.abandoned() < self.limit:
            return ""
        return f"all {self.limit} requests that it may have in hand were given up by their clients and do not end"
