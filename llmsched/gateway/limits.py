"""How much the gateway lets in: the size of one request, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llmsched.gateway.refusals import Refused

BODY_BYTES = 1 << 20  # of texts
MEDIA_BYTES = 16 << 20  # where images and sounds may stand in JSON
AUDIO_BYTES = 25 << 20  # of a form, as OpenAI has it
LATE = 408
BODY_TIMEOUT_S = 30.0  # a client that dribbles its body may not hold a connection for ever
RETRY_FULL_S = 1.0
HEARTBEAT_S = 10.0  # to the client of a stream that waits for a replica: proxies on the way end what is silent
RETRY_NO_REPLICA_S = 5.0
DEFAULT_MAX_ONGOING = 128
DEFAULT_TIMEOUT_S = 600.0

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Disconnected(Exception):
    """The client went away before its request was complete."""


class Incoming:
    """`receive` of one request, which knows whether all of its body has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_whole = False

    async def __call__(self) -> Mapping[str, Any]:
        message = await self._receive()
        self.is_whole = self.is_whole or not message.get("more_body", False)
        return message


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, most: int = BODY_BYTES) -> bytes:
    """The request's body, at most `most` bytes. Raises Refused (413, 408) or Disconnected."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, most)
    except TimeoutError:
        raise late() from None


async def read_beginning(receive: Receive, least: int) -> tuple[bytes, bool]:
    """The request's body and True; or so many bytes of a longer one and some more, and False. Raises as `read_body`."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_on(receive, least)
    except TimeoutError:
        raise late() from None


async def _read(receive: Receive, most: int) -> bytes:
    body, is_whole = await _read_on(receive, most)
    if not is_whole or len(body) > most:
        raise _too_large(most)
    return body


async def _read_on(receive: Receive, enough: int) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    size, is_whole = 0, False
    while not is_whole and size <= enough:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        is_whole = not message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts), is_whole


def late() -> Refused:
    return Refused(LATE, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", code="body_timeout")


def _too_large(most: int) -> Refused:
    return Refused(413, f"The request is larger than {most >> 20} MiB.", code="request_too_large")
