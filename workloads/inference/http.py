"""One HTTP request or websocket of a client, run through an app inside the replica: ASGI on both sides.

The gateway sends the request as plain data, with its body, and gets ASGI's own messages back, in lists of those that
are there. What comes in over a websocket, or of a long body, follows by `inbox`. Start at `messages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llmsched import sanitize
from llmsched.data.parameters import RequestError
from llmsched.runtime import exceptions, redaction
from workloads.inference.values import Unsayable, encoded

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

AHEAD = 64  # messages of the app before it waits for the gateway
TOGETHER_S = 0.01  # the head of an answer waits so long for its body: most answers are one message then
_END: Any = object()


async def messages(
    application: Application, request: Mapping[str, Any], inbox: asyncio.Queue[Message] | None
) -> AsyncGenerator[list[Message], None]:
    """What the app sends. Ends when the app has, also when it is closed early. Raises what the app raises, if that is
    not in an answer that is whole by then, and RequestError for none."""
    sent: asyncio.Queue[Message] = asyncio.Queue(AHEAD)
    running = asyncio.create_task(_run(application, _scope(request), _receive(request, inbox), sent))
    is_begun = is_whole = False
    try:
        if request.get("more_body"):
            yield []  # what follows of the body comes once it is heard that somebody is there
        while (first := await sent.get()) is not _END:
            batch = [first]
            if first["type"] == "http.response.start":
                with suppress(TimeoutError):
                    async with asyncio.timeout(TOGETHER_S):
                        batch.append(await sent.get())
            while not sent.empty():
                batch.append(sent.get_nowait())
            is_over = batch[-1] is _END
            batch = batch[:-1] if is_over else batch
            is_begun = True
            is_whole = is_whole or any(map(_is_last, batch))
            yield batch
            if is_over:
                break
        try:
            await running
        except Exception as error:
            if not is_whole:
                raise
            if not isinstance(error, HTTPException):  # it has been answered
                exceptions.show(error)
        if not is_begun:
            raise RequestError("The app ended without an answer.", code="no_answer", status=500)
    finally:
        running.cancel()
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])


async def _run(application: Application, scope: Message, receive: Receive, sent: asyncio.Queue[Message]) -> None:
    try:
        await application(scope, receive, sent.put)
    except asyncio.CancelledError:
        raise
    except Exception:
        await sent.put(_END)
        raise
    except BaseException as error:  # such as SystemExit, which ends the loop that it passes
        await sent.put(_END)
        raise exceptions.WorkError(exceptions.words(error)) from None
    else:
        await sent.put(_END)


def _is_last(message: Message) -> bool:
    kind = message["type"]
    return (kind == "http.response.body" and not message.get("more_body")) or kind == "websocket.close"


def _scope(request: Mapping[str, Any]) -> Message:
    scope = {name: value for name, value in request.items() if name not in ("body", "more_body")}
    scope["headers"] = [(bytes(name), bytes(value)) for name, value in request["headers"]]
    scope["client"] = tuple(request["client"]) if request.get("client") else None
    # 2.4: an answer that streams ends with its task, which is cancelled once the client has left.
    return {**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}, "server": None, "state": {}, "extensions": {}}


def _receive(request: Mapping[str, Any], inbox: asyncio.Queue[Message] | None) -> Receive:
    is_socket = request["type"] == "websocket"
    first: list[Message] = [
        {"type": "websocket.connect"}
        if is_socket
        else {"type": "http.request", "body": request["body"], "more_body": bool(request.get("more_body"))}
    ]

    async def receive() -> Message:
        if first:
            return first.pop()
        if inbox is not None:
            return await inbox.get()
        await asyncio.Event().wait()  # who leaves is cancelled
        raise AssertionError

    return receive


# --- answers ------------------------------------------------------------------------------------------------------


def answer_of(value: Any) -> Response:
    """What a deployment of Serve returned or raised, as Serve answers it: text and bytes as they are, the rest as JSON.
    A status that the app chose is kept."""
    if isinstance(value, str | bytes) or value is None:
        return Response(value or b"", media_type="text/plain")
    return json_answer_of(value)


def json_answer_of(value: Any) -> Response:
    """What a class that takes JSON returned or raised: a Response as it is, the rest as JSON."""
    if isinstance(value, Response):
        return value
    if isinstance(value, HTTPException):
        return JSONResponse({"detail": value.detail}, value.status_code, headers=value.headers)
    if isinstance(value, BaseException):
        return refusal(value)
    try:
        return Response(encoded(value), media_type="application/json")
    except Unsayable as error:
        return refusal(RequestError(str(error), code="not_json", status=500))


def refusal(error: BaseException) -> Response:
    """An error in the form of all others: a RequestError with its own status, else 500 with one line of what it was."""
    answer = of_error(error).answer()
    return JSONResponse({"error": answer["error"]}, answer["status"])


def of_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    text = redaction.clean(sanitize.first_line(error))
    return RequestError(f"{type(error).__name__}: {text}", code="replica_error", status=500)
