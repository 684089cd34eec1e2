"""A request that comes through Ray, from work on another machine: as one of HTTP, its answer in pieces.

The actor's threads pull the pieces, so that a caller who reads slowly holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

AHEAD = 32  # pieces that the gateway may be ahead of the caller
_END: Any = object()


class Asked:
    """One of them. `loop` runs `application`, an ASGI application; `pieces` is called in another thread."""

    def __init__(
        self, application: Any, loop: asyncio.AbstractEventLoop, scope: Mapping[str, Any], body: bytes
    ) -> None:
        self._application, self._loop = application, loop
        self._scope, self._body = dict(scope), body
        self._left = asyncio.Event()
        self._made: asyncio.Queue[Any] = asyncio.Queue(AHEAD)

    def pieces(self) -> Iterator[list[dict[str, Any]]]:
        """What the application sends, as many messages at a time as there are."""
        work = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        try:
            while (some := asyncio.run_coroutine_threadsafe(self._some(), self._loop).result()) is not _END:
                yield some
            work.result()
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """The caller is gone. In any thread; any number of times."""
        self._loop.call_soon_threadsafe(self._left.set)

    async def _run(self) -> None:
        try:
            await self._application(self._scope, self._receive, self._send)
        finally:
            if not self._left.is_set():
                await self._send(_END)

    async def _some(self) -> Any:
        first = await self._made.get()
        if first is _END:
            return _END
        some = [first]
        while not self._made.empty():
            following = self._made.get_nowait()
            if following is _END:
                self._made.put_nowait(_END)
                break
            some.append(following)
        return some

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None  # type: ignore[assignment]
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        put, left = asyncio.ensure_future(self._made.put(message)), asyncio.ensure_future(self._left.wait())
        await asyncio.wait([put, left], return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        put.cancel()  # of a caller that is gone: nobody reads
