"""Answers of the gateway's own, as ASGI messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmsched.connections import read_rest
from llmsched.gateway.limits import LATE, Incoming, Send
from llmsched.gateway.refusals import Refused, encode

JSON_TYPE = (b"content-type", b"application/json")
TEXT_TYPE = (b"content-type", b"text/plain; charset=utf-8")


async def refuse(send: Send, refused: Refused, incoming: Incoming, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Who is still writing what is refused is heard to the end, unless it was given its time or waits to be asked."""
    waits = refused.status == LATE or any(name.lower() == b"expect" for name, _ in headers)
    if incoming.is_whole or waits:
        await reply(send, refused.status, refused.body(), refused.headers())
        return
    await reply(send, refused.status, refused.body(), refused.headers(), is_whole=False)
    await read_rest(incoming)
    await send_end(send)


async def reply(send: Send, status: int, value: Any, headers: Any = (), *, is_whole: bool = True) -> None:
    """A text as it is, anything else as JSON. `is_whole`: it has ended, else `send_end` says so."""
    kind, body = (TEXT_TYPE, value.encode("utf-8", "replace")) if isinstance(value, str) else (JSON_TYPE, encode(value))
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": not is_whole})


async def send_event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})


async def send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})
