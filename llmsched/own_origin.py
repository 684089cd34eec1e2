"""A web server on loopback with an origin of its own, for pages that others made: a dashboard of Ray.

A browser shows no token here. An address holds a key; the first request takes it and leaves a cookie, and whoever else
asks, another user of this machine or a page of another origin, is refused. Only GET is passed on, without cookies. The
controller has one for the cluster's dashboard, `llmsched dashboard` another on its reader's machine. Start reading at
`OwnOrigin.__call__`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from llmsched.errors import LlmschedError

LOOPBACK = ("127.0.0.1", "localhost")
PASSED_ON = (b"accept", b"if-none-match", b"if-modified-since", b"range")
KEPT = ("content-type", "etag", "last-modified", "cache-control", "content-range", "accept-ranges")
KEYS_AT_MOST = 64  # the oldest goes
TEXT = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]


class Opened(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


Open = Callable[
    [str, dict[str, str]], AbstractAsyncContextManager[Opened]
]  # (path with its query, headers); LlmschedError


class OwnOrigin:
    """ASGI."""

    def __init__(self, port: int, opens: Open) -> None:
        self._port, self._opens = port, opens
        self._keys: dict[str, Callable[[], bool]] = {}

    def address(self, holds: Callable[[], bool] = lambda: True) -> str:
        """With a new key, which is good as long as `holds` says so."""
        while len(self._keys) >= KEYS_AT_MOST:
            del self._keys[next(iter(self._keys))]
        key = secrets.token_urlsafe(32)
        self._keys[key] = holds
        return f"http://{LOOPBACK[0]}:{self._port}/?key={key}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        host = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname
        if host not in LOOPBACK or scope["method"] not in ("GET", "HEAD"):
            await _say(send, 403, "Only a browser of this machine may look, and only look.\n")
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if scope["path"] == "/" and self._is_good(given):
            cookie = f"{self._cookie}={given}; Path=/; HttpOnly; SameSite=Strict"
            await _say(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])
        elif not self._is_good(self._shown(headers)):
            await _say(send, 401, "Open the address that llmsched dashboard, or its page, gave you.\n")
        else:
            await self._pass_on(scope, headers, send)

    @property
    def _cookie(self) -> str:
        """Browsers do not tell the ports of a host apart."""
        return f"llmsched-{self._port}"

    def _is_good(self, shown: str) -> bool:
        good = False
        for key, holds in self._keys.items():  # all of them, so that time tells nothing
            good |= hmac.compare_digest(key.encode(), shown.encode()) and holds()
        return good

    def _shown(self, headers: dict[bytes, bytes]) -> str:
        try:
            found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(self._cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""

    async def _pass_on(self, scope: Any, headers: dict[bytes, bytes], send: Any) -> None:
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        asked = {name.decode(): headers[name].decode("latin-1") for name in PASSED_ON if name in headers}
        begun = False
        try:
            async with self._opens(f"{path}?{query}" if query else path, asked) as answer:
                kept = [(name.encode(), text.encode()) for name, text in answer.headers.items() if name in KEPT]
                begun = True
                await send({"type": "http.response.start", "status": answer.status, "headers": kept})
                async for piece in answer.body:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except LlmschedError as error:
            if begun:
                raise  # whoever has half of it is to know
            await _say(send, 502, f"{error}\n")


async def _say(send: Any, status: int, text: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*TEXT, *(more or [])]})
    await send({"type": "http.response.body", "body": text.encode()})
