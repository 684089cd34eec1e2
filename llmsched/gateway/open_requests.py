"""The requests that are being answered, each by a task of its own, and what ends one before its answer is whole.

Its client leaves; or its key is revoked, is over, or reaches the model no more. What its replica does for it is
cancelled either way, and a client that is still there is told why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from llmsched.gateway.keys import Key, expired
from llmsched.gateway.limits import Disconnected, Receive
from llmsched.gateway.refusals import Refused
from llmsched.gateway.table import Table


class OpenRequest:
    """Of the task that makes it. `has_begun`: the client has got the first words of a stream."""

    def __init__(self, key: Key, model: str, over: Callable[[OpenRequest], None]) -> None:
        self.key, self.model = key, model
        self.has_begun = False
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
        watcher = asyncio.create_task(self._watch(receive))
        expiry = self.key.expires
        if expiry is not None:
            timer = asyncio.get_running_loop().call_later(max(0.0, expiry - time.time()), self.end, expired())
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
            if expiry is not None:
                timer.cancel()
            self._over(self)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(Disconnected())


class OpenRequests:
    def __init__(self) -> None:
        self._open: set[OpenRequest] = set()

    def begin(self, key: Key, model: str) -> OpenRequest:
        """A request of the current task, for the model of that id."""
        one = OpenRequest(key, model, self._open.discard)
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
