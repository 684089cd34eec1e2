"""Connections on which nobody who is known asks anything: bounded in number and in time, so that they take no place.

A connection waits from its first moment, and again after each answer, until a request on it has shown a token. Too many
waiting ones never keep a new one out: the one that waits for longest goes, of the same address first.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

WAITING_AT_MOST = 512
WAITING_OF_ONE_ADDRESS = 256
WAIT_AT_MOST_S = 10.0
DESCRIPTORS = 8192  # more than all that may be open: waiting ones, and those of `rate`
REST_BYTES, REST_WITHIN_S = 256 << 20, 5.0
ADMIT = "llmsched.admit"  # in the scope: called once the request has shown a token that is known


class Waiting:
    """By address, the one that waits for longest first."""

    def __init__(self, at_most: int = WAITING_AT_MOST, of_one: int = WAITING_OF_ONE_ADDRESS) -> None:
        self._at_most = at_most
        self._of_one = of_one
        self._by_address: dict[str, dict[Connection, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    def add(self, one: Connection) -> None:
        """From now on; whoever is one too many is closed."""
        self.discard(one)
        mine = self._by_address.setdefault(one.address, {})
        mine[one] = asyncio.get_running_loop().call_later(WAIT_AT_MOST_S, self._close, one)
        if len(mine) > self._of_one:
            self._close(next(iter(mine)))
        elif len(self) > self._at_most:
            most = max(self._by_address, key=lambda address: len(self._by_address[address]))
            self._close(next(iter(self._by_address[most])))

    def discard(self, one: Connection) -> None:
        mine = self._by_address.get(one.address, {})
        timer = mine.pop(one, None)
        if timer is not None:
            timer.cancel()
        if not mine:
            self._by_address.pop(one.address, None)

    def _close(self, one: Connection) -> None:
        self.discard(one)
        one.transport.abort()


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's own, which says when it waits. See `connections_of`."""

    waiting: ClassVar[Waiting]

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.address = ""
        self._application: Any = self.app
        self._admitted = 0
        self.app: Any = self._answer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self.waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.discard(self)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Another protocol has the connection now; it waits on all the same, until a request on it is admitted."""
        super().handle_websocket_upgrade()
        self.transport.get_protocol().app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        admitted = False

        def admit() -> None:
            nonlocal admitted
            if not admitted:
                admitted = True
                self._admitted += 1
                self.waiting.discard(self)

        scope[ADMIT] = admit
        try:
            await self._application(scope, receive, send)
        finally:
            self._admitted -= admitted
            protocol = self.transport.get_protocol()
            if getattr(protocol, "initial_response", None) is not None:
                protocol.handshake_complete = True  # refused with a status of HTTP, which uvicorn takes for a fault
            if not self._admitted and not self.transport.is_closing():
                self.waiting.add(self)


def connections_of(waiting: Waiting) -> type[Connection]:
    """The class of the connections of one server."""
    return type("Connection", (Connection,), {"waiting": waiting})


async def read_rest(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    """What a client still sends of a request that has its answer, within bounds. One that is cut off while it writes
    sees a reset connection in the place of the answer; so this comes before the end of that is sent."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_WITHIN_S):
            while size <= REST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


class Quiet(uvicorn.Server):
    """Signals are ours: uvicorn would raise them again after it stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def make_room(descriptors: int = DESCRIPTORS) -> None:
    """Let this process open as many files as the bounds allow; as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
