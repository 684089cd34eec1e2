"""Where work finds the endpoints that its spec names in `calls`: an address on its own machine.

On the gateway's machine that is the gateway's own port, on loopback. On another one a server here passes each request
to the gateway's actor through Ray, and the answer back as it comes; it checks nothing, for the gateway does. Stock
clients find the address and the attempt's key in the variables that they read anyway.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from llmsched.runtime.attempt import NAMESPACE

GATEWAY = "llms-gateway"  # the name of its actor, in NAMESPACE
STANDBY = "llms-gateway-2"  # of the one that stands by, where there is one
URL = "LLMSCHED_CALLS_URL"
CLIENTS_URL = "OPENAI_BASE_URL"
ANSWERS_WITHIN_S = 10.0
BODY_BYTES = 25 << 20  # the most that any route of the gateway takes (gateway/limits.py); it has bounds of each
_doors: list[str] = []  # of this process

Message = MutableMapping[str, Any]


def envs_of(order: Mapping[str, Any]) -> dict[str, str]:
    """For the work of an attempt; nothing where it calls nobody. `order` is the LaunchOrder as JSON data."""
    if not order["spec"].get("calls"):
        return {}
    url = _url_here()
    return {URL: url, CLIENTS_URL: f"{url}/v1"}


def loopback() -> str:
    """Names the loopback that this process has: a machine's, or a container's."""
    machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{machine} {Path('/proc/self/ns/net').readlink()}"


def _url_here() -> str:
    with suppress(RayError, ValueError, OSError):
        there = ray.get(_gateway().place.remote(), timeout=ANSWERS_WITHIN_S)
        if there["loopback"] == loopback():
            return str(there["url"])
    if not _doors:
        _doors.append(open_here())
    return _doors[0]


def _gateway() -> Any:
    return ray.get_actor(GATEWAY, namespace=NAMESPACE)


def open_here() -> str:
    """A door of this process; its address."""
    import uvicorn  # only where it is needed

    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    config = uvicorn.Config(Door(_gateway), log_config=None, access_log=False, lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    serve = server.serve(sockets=[listening])
    threading.Thread(target=lambda: asyncio.run(serve), daemon=True, name="calls").start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


class Door:
    """An ASGI application: each request to the gateway's actor, which `find` returns."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1011, "reason": "calls are plain requests"})
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > BODY_BYTES:
                await _refuse_large(receive if message.get("more_body") else None, send)
                return
            if not message.get("more_body"):
                break
        await self._pass_on(scope, body, receive, send)

    async def _pass_on(self, scope: Mapping[str, Any], body: bytes, receive: Any, send: Any) -> None:
        kept = ("type", "method", "scheme", "http_version", "path", "raw_path", "query_string", "headers", "root_path")
        asked, name = {key: scope[key] for key in kept if key in scope}, uuid.uuid4().hex
        has_begun, gateway = False, None

        async def tell(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            gateway = await asyncio.to_thread(self._find)
            work = asyncio.ensure_future(
                _answer(gateway.ask.options(num_returns="streaming").remote(name, asked, body), tell)
            )
            left = asyncio.ensure_future(receive())
            await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
            for task in (left, work) if not work.done() else (left,):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await work
        except (RayError, ValueError) as error:
            if has_begun:
                raise  # what was promised does not come: the connection ends
            words = f"The endpoints of this cluster cannot be reached: {type(error).__name__}."
            await _refuse(send, 503, words)
        finally:
            if gateway is not None:
                with suppress(RayError):
                    gateway.hang_up.remote(name)


async def _answer(answer: Any, send: Any) -> None:
    async for reference in answer:
        for message in await reference:
            await send(message)


async def _refuse_large(receive: Callable[[], Awaitable[Message]] | None, send: Any) -> None:
    """As the gateway does. `receive`: of a client that is still writing."""
    from llmsched.connections import read_rest  # with uvicorn

    body = _error(f"The request is larger than {BODY_BYTES >> 20} MiB.", "invalid_request_error", "request_too_large")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if receive is not None:
        await read_rest(receive)
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Any, status: int, words: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": _error(words, "server_error", "unreachable")})


def _error(words: str, kind: str, code: str) -> bytes:
    import json

    return json.dumps({"error": {"message": words, "type": kind, "param": None, "code": code}}).encode()
