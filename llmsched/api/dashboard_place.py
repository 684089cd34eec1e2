"""Where the page of the controller opens Ray's dashboard: a server beside the API, with an origin of its own.

It begins when it is first asked for, on a free port of loopback, and ends with the server. Whoever opens it needs no
other token: the page asks with its own, and is given an address that is good as long as that token is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn

from llmsched.api import dashboard_jobs
from llmsched.connections import Quiet
from llmsched.control.controller import Controller
from llmsched.control.dashboard import Answer
from llmsched.own_origin import LOOPBACK, Opened, OwnOrigin


class DashboardPlace:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._origin: OwnOrigin | None = None
        self._serving: asyncio.Task[None] | None = None

    def address(self, holds: Callable[[], bool]) -> str:
        if self._origin is None or self._serving is None or self._serving.done():
            self._begin()
        assert self._origin is not None
        return self._origin.address(holds)

    def _begin(self) -> None:
        listener = socket.create_server((LOOPBACK[0], 0))
        self._origin = OwnOrigin(listener.getsockname()[1], self._opened)
        config = uvicorn.Config(self._origin, log_config=None, access_log=False, lifespan="off", server_header=False)
        server = Quiet(config)
        self._serving = asyncio.create_task(server.serve(sockets=[listener]), name="dashboard")

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()  # no answer of it is worth waiting for
            await asyncio.wait({self._serving})

    @asynccontextmanager
    async def _opened(self, path: str, headers: dict[str, str]) -> AsyncIterator[Opened]:
        answer = await dashboard_jobs.ask(self._controller, path, headers)
        try:
            yield Opened(answer.status, answer.headers, _pieces(answer))
        finally:
            await answer.body.aclose()


async def _pieces(answer: Answer) -> AsyncIterator[bytes]:
    async for piece in answer.body:
        yield piece or b""
