"""The requests that are being answered, each by a task of its own, and what ends one before its answer is whole.

Its client leaves, or does not read what it is sent until the time of the request is over; or its key is revoked, is
over, or reaches the model no more. What its replica does for it is cancelled either way, and a client that is still
there is told why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from llmsched.gateway.keys import Key, expired
from llmsched.gateway.limits import Disconnected, Receive
from llmsched.gateway.refusals import Refused
from llmsched.gateway.relay import timed_out
from llmsched.gateway.spending import Spending
from llmsched.gateway.table import Table

READ_WITHIN_S = 2.0  # after the end of its time: the relay says that it is over, and the client has to take it


class OpenRequest:
    """Of the task that makes it. `has_begun`: the client has got the first words of a stream; `is_held`: it waits for a
    replica; `size`: of its body, in bytes; `spending`: what it uses."""

    def __init__(
        self,
        key: Key,
        model: str,
        limit_s: float,
        size: int,
        spending: Spending,
        over: Callable[[OpenRequest], None],
    ) -> None:
        self.key, self.model, self.size, self.spending, self._limit_s = key, model, size, spending, limit_s
        self.has_begun = self.is_held = False
        self.session = ""  # that its client says it belongs to
        self.priority = key.priority
        self._task = asyncio.current_task()
        self._why: Disconnected | Refused | None = None
        self._over = over

    def end(self, why: Disconnected | Refused) -> None:
        if self._why is None:
            self._why = why
            assert self._task is not None
            self._task.cancel()

    async def answer(self, receive: Receive, work: Awaitable[None]) -> None:
        """Do `work`. Raises what ended it early: Disconnected or Refused (401)."""
        loop = asyncio.get_running_loop()
        watcher = asyncio.create_task(self._watch(receive))
        timers = [loop.call_later(self._limit_s + READ_WITHIN_S, self.end, timed_out(self._limit_s))]
        if self.key.expires is not None:
            timers.append(loop.call_later(max(0.0, self.key.expires - time.time()), self.end, expired()))
        try:
            await work
        except asyncio.CancelledError:
            if self._why is None:
                raise
            assert self._task is not None
            self._task.uncancel()
            raise self._why from None
        finally:
            watcher.cancel()
            for timer in timers:
                timer.cancel()
            self.spending.end()
            self._over(self)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(Disconnected())


class OpenRequests:
    def __init__(self) -> None:
        self._open: set[OpenRequest] = set()

    def begin(self, key: Key, model: str, limit_s: float, size: int, spending: Spending) -> OpenRequest:
        """A request of the current task, for the model of that id, which may take `limit_s` seconds."""
        one = OpenRequest(key, model, limit_s, size, spending, self._open.discard)
        self._open.add(one)
        return one

    def check(self, table: Table) -> None:
        """End those that `table` would not let in. A model that has left it is answered to the end."""
        for one in list(self._open):
            key = table.keys.find(one.key.sha256)
            if key is None:
                one.end(Refused(401, "This key is not known here any more.", code="invalid_api_key"))
            elif key.is_over():
                one.end(expired())
            elif one.model in table.routes and not key.reaches(one.model):
                one.end(Refused(401, "This key does not reach this model any more.", code="invalid_api_key"))
