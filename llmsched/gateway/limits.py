"""How much the gateway lets in: the size of one request, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llmsched.gateway.refusals import Refused

BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0  # a client that dribbles its body may not hold a connection for ever
RETRY_FULL_S = 1.0
RETRY_NO_REPLICA_S = 5.0
DEFAULT_MAX_ONGOING = 128
DEFAULT_TIMEOUT_S = 600.0

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class Disconnected(Exception):
    """The client went away before its request was complete."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The request's body, at most BODY_BYTES. Raises Refused (413, 408) or Disconnected."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive)
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", code="body_timeout") from None


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES:
            raise _too_large()
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large() -> Refused:
    return Refused(413, f"The request is larger than {BODY_BYTES >> 20} MiB.", code="request_too_large")
