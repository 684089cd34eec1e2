"""Apps behind the gateway: any method, path and websocket below /v1/apps/NAME, passed on as it came.

The request travels as plain data with its body, of which what is above HELD_BYTES follows as it comes (`Upload`). The
answer comes as the ASGI messages of the app, each of which is checked before a client sees it. The caller's key stays
here. Knows nothing of what an app is, and of replicas no more than that they send such messages. `Answer` and `Socket`
are the two that may be had; `carry` fills either.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from llmsched.gateway import forms
from llmsched.gateway.bodies import json_in
from llmsched.gateway.limits import Receive, Send
from llmsched.gateway.refusals import Refused, encode
from llmsched.gateway.routes import APPS, V1

HELD_BYTES = 16 << 20  # of a body before it is passed on; a longer one goes on in pieces
PIECE_BYTES = 1 << 20
SEVER_AFTER_S = 5.0  # an app has so long to end after the client of its websocket has left
AHEAD = 64  # messages of a client that the replica has yet to take
# Between two neighbours of a connection only (RFC 9110, 7.6.1), and what is the gateway's own to know.
_OURS_ALONE = {
    b"authorization", b"proxy-authorization", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
    b"sec-websocket-protocol",
}  # fmt: skip
_NOT_IN_ANSWERS = {b"connection", b"keep-alive", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authenticate"}
_MULTIPLEXED = {b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"}
_BREAKS = (b"\r", b"\n", b"\0")

Batch = list[dict[str, Any]]


def name_in(path: str) -> str:
    """The app's name in a path below /v1/apps/."""
    return path[len(APPS) :].partition("/")[0]


def model_of(headers: Mapping[bytes, bytes], raw: bytes) -> str:
    """What the request to one of OpenAI's routes names, in JSON or in a form. Raises Refused (400)."""
    kind = headers.get(b"content-type", b"").decode("latin-1")
    body = forms.fields(kind, raw) if kind.lower().startswith(forms.KIND) else json_in(raw)
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise Refused(400, "The request names no model.", code="missing_model", param="model")
    return name


def below(scope: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same request, at its path below the app's own."""
    path = f"{APPS}{name}/{scope['path'].removeprefix(V1)}"
    return {**scope, "path": path, "raw_path": quote(path).encode()}


def asked(scope: Mapping[str, Any], name: str, body: bytes, is_whole: bool = True) -> dict[str, Any]:
    """The request as the replica gets it, without the caller's key. `is_whole`: none of its body follows."""
    root = f"{APPS}{name}"
    headers = [(key.lower(), value) for key, value in scope["headers"]]
    path = scope["path"] if scope["path"] != root else f"{root}/"
    return {
        "type": scope["type"],
        "method": scope.get("method", "GET"),
        "scheme": scope.get("scheme", "http"),
        "http_version": scope.get("http_version", "1.1"),
        "root_path": root,
        "path": path,
        "raw_path": path.encode() if scope["path"] == root else scope.get("raw_path") or path.encode(),
        "query_string": scope.get("query_string", b""),
        "headers": [(name, value) for name, value in headers if name not in _OURS_ALONE],
        "client": list(scope.get("client") or ()) or None,
        "subprotocols": list(scope.get("subprotocols", ())),
        "multiplexed": next((value.decode("latin-1") for key, value in headers if key in _MULTIPLEXED), ""),
        "body": body,
        "more_body": not is_whole,
    }


class _Taking(ABC):
    """The client's side of one request, to which an app's messages go until `is_over`."""

    is_over: bool

    async def take(self, batch: Any) -> None:
        """Send what an app sent. Raises Refused (502) for what is no message of its protocol."""
        for message in batch if isinstance(batch, list) else [batch]:
            if self.is_over:
                return
            try:
                await self._pass_on(message)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise _no_message(error) from None

    @abstractmethod
    async def _pass_on(self, message: Mapping[str, Any]) -> None: ...


class Answer(_Taking):
    """What has been sent to the client of one request; `is_over`: nothing more may be."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.is_over = False
        self._is_events = False

    async def _pass_on(self, message: Mapping[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start" and not self.status:
            status, headers = int(message["status"]), _headers(message.get("headers", ()))
            if not 200 <= status <= 599:
                raise ValueError(f"status {status}")
            self.status = status
            self._is_events = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
            await self._send({"type": kind, "status": status, "headers": headers})
        elif kind == "http.response.body" and self.status:
            is_more = bool(message.get("more_body"))
            self.is_over = not is_more
            await self._send({"type": kind, "body": bytes(message.get("body", b"")), "more_body": is_more})
        else:
            raise ValueError(f"{kind} out of turn")

    async def fail(self, body: dict[str, Any]) -> bool:
        """Tell why it ends early, where that can still be told: as the last event of a stream of them. Else False."""
        if not self._is_events or self.is_over:
            return False
        self.is_over = True
        await self._send({"type": "http.response.body", "body": b"data: " + encode(body) + b"\n\n", "more_body": False})
        return True


class Upload:
    """What follows of a body: no more than AHEAD messages of it wait for the app."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(AHEAD)
        self.is_whole = False

    async def put(self, message: Mapping[str, Any]) -> None:
        """What the client has sent."""
        if message["type"] == "http.request" and not self.is_whole:
            self.is_whole = not message.get("more_body")
            await self._inbox.put(message)

    async def incoming(self) -> AsyncIterator[dict[str, Any]]:
        """In larger pieces, each of which is a call to the replica."""
        is_more = True
        while is_more:
            parts: list[bytes] = []
            size = 0
            while is_more and (not parts or size < PIECE_BYTES and not self._inbox.empty()):
                message = await self._inbox.get()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                is_more = bool(message.get("more_body"))
            yield {"type": "http.request", "body": b"".join(parts), "more_body": is_more}


class Socket(_Taking):
    """One websocket of a client."""

    def __init__(self, receive: Receive, send: Send, can_deny: bool) -> None:
        self._receive, self._send, self._can_deny = receive, send, can_deny
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(AHEAD)
        self.is_open = False
        self.is_over = False

    async def watch(self) -> dict[str, Any]:
        """Take what the client sends, until it has left and the app had its time to hear of it."""
        while True:
            message = dict(await self._receive())
            if message["type"] == "websocket.disconnect":
                self.is_over = True
            await self._inbox.put(message)
            if self.is_over:
                await asyncio.sleep(SEVER_AFTER_S)  # whoever is done earlier ends this
                return {"type": "http.disconnect"}

    async def incoming(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            message = await self._inbox.get()
            yield {name: message[name] for name in ("type", "text", "bytes", "code", "reason") if name in message}
            if message["type"] == "websocket.disconnect":
                return

    async def _pass_on(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "websocket.accept" if not self.is_open:
                self.is_open = True
                chosen = str(message.get("subprotocol") or "") or None
                headers = _headers(message.get("headers") or ())
                await self._send(
                    {"type": "websocket.accept", "subprotocol": chosen and str(chosen), "headers": headers}
                )
            case "websocket.send" if self.is_open:
                text, data = message.get("text"), message.get("bytes")
                what = {"text": str(text)} if text is not None else {"bytes": bytes(data or b"")}
                await self._send({"type": "websocket.send", **what})
            case "websocket.close" if not self.is_open and message.get("reason"):  # 403, as every server of ASGI has it
                await self.refuse(Refused(403, str(message["reason"]), code="websocket_refused"))
            case "websocket.close":
                self.is_over = True
                code, reason = int(message.get("code") or 1000), str(message.get("reason") or "")
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
            case kind:
                raise ValueError(f"{kind} out of turn")

    async def refuse(self, refused: Refused) -> None:
        """Before it is open with the status of HTTP, afterwards with a code of its own."""
        if self.is_over:
            return
        self.is_over = True
        if self.is_open:
            code = {401: 1008, 503: 1013, 504: 1013}.get(refused.status, 1011)
            await self._send({"type": "websocket.close", "code": code, "reason": refused.message[:100]})
        elif self._can_deny:
            headers = [(b"content-type", b"application/json"), *refused.headers()]
            await self._send({"type": "websocket.http.response.start", "status": refused.status, "headers": headers})
            await self._send({"type": "websocket.http.response.body", "body": encode(refused.body())})
        else:
            await self._send({"type": "websocket.close", "code": 1008, "reason": refused.message[:100]})

    async def end(self) -> None:
        """The app has ended."""
        if not self.is_open:
            await self.refuse(Refused(502, "The app ended without an answer.", code="no_answer"))
        elif not self.is_over:
            self.is_over = True
            await self._send({"type": "websocket.close", "code": 1000, "reason": ""})


def error_of(batch: Any) -> Refused | None:
    """What a replica says in the place of an answer: full, cancelled, broken."""
    if not isinstance(batch, dict) or not isinstance(batch.get("error"), dict):
        return None
    error, status = batch["error"], batch.get("status")
    return Refused(
        status if isinstance(status, int) and 400 <= status <= 599 else 500,
        str(error.get("message")),
        code=str(error.get("code") or "replica_error"),
        retry_after_s=1.0 if status in (429, 503) else None,
    )


async def carry(batches: AsyncGenerator[Any, None], into: Answer | Socket) -> None:
    """Everything that an app sends. Raises Refused for an error in the place of it."""
    async with aclosing(batches):
        async for batch in batches:
            if (refused := error_of(batch)) is not None:
                raise refused
            await into.take(batch)


def _headers(given: Any) -> list[tuple[bytes, bytes]]:
    headers = [(bytes(name).lower(), bytes(value)) for name, value in given]
    if any(breaker in part for pair in headers for part in pair for breaker in _BREAKS):
        raise ValueError("a header of several lines")
    return [(name, value) for name, value in headers if name not in _NOT_IN_ANSWERS]


def _no_message(error: Exception) -> Refused:
    return Refused(502, f"The app's answer is no HTTP: {error}.", code="bad_answer")
