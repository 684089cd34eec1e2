"""A class of the user's own that takes JSON: made once with the spec's `args`, called with the JSON body of each POST.

`routes` of the class, if it has any, are paths below its own that it answers too, such as OpenAI's "audio/speech".
`__call__` may be plain or async, and may return a value or yield several. A plain one runs in a thread, one for each
request that the replica may have in hand, so that a slow call does not stop the others. A call ends when its thread
does, also one that was cancelled. A class whose `__call__` has its body annotated as a dict gets objects alone: 422
for a list, a text, a number or null. Several values are a list, or server-sent events for who asks for a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, get_origin

from starlette.exceptions import HTTPException

from llmsched import sanitize
from llmsched.data.parameters import RequestError
from llmsched.runtime import exceptions
from llmsched.runtime.serve_internals import of_model
from workloads.inference.http import Message, Receive, Send, json_answer_of, refusal
from workloads.inference.values import encoded

_END = object()
_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_TOO_LARGE = "The request is larger than 16 MiB, which a class that takes JSON may get. Longer: a FastAPI ingress."
_NO_SOCKET = "This app is a class that takes JSON, by POST alone. Websockets: a FastAPI ingress (@serve.ingress)."


def _called(call: Callable[..., Any], *args: Any) -> Any:
    """No future takes a StopIteration: whoever awaits it would wait for ever."""
    try:
        return call(*args)
    except StopIteration as error:
        raise RuntimeError(f"it raised StopIteration({error.value!r}) outside of a generator") from error


class JsonApp:
    """One object of the user's class as an ASGI application."""

    def __init__(self, app: Any, threads: int = 32) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="call")
        call = type(app).__call__
        self._wants_object = _wants_object(call)
        self._is_plain = not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003, "reason": _NO_SOCKET})
            return
        try:
            _check_place(scope, getattr(self._app, "routes", ()))
            message = await receive()
            if message["more_body"]:
                raise RequestError(_TOO_LARGE, code="request_too_large", status=413)
            body = _json(message["body"])
            headers = dict(scope["headers"])
            is_stream = isinstance(body, dict) and body.get("stream") is True
            with of_model(scope["multiplexed"]):
                if is_stream or b"text/event-stream" in headers.get(b"accept", b""):
                    await self._events(body, send)
                else:
                    await json_answer_of(await self.call(body))(scope, receive, send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # nothing has been sent yet
            if not isinstance(error, RequestError | HTTPException):
                exceptions.show(error)
            await json_answer_of(error)(scope, receive, send)

    async def _events(self, body: Any, send: Send) -> None:
        is_begun = False
        try:
            async with aclosing(self.stream(body)) as chunks:
                async for chunk in chunks:
                    event = encoded(chunk)
                    if not is_begun:
                        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                        is_begun = True
                    await _send_event(send, event)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not is_begun:
                raise
            exceptions.show(error)
            await _send_event(send, bytes(refusal(error).body))
        else:
            if not is_begun:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
            await _send_event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def call(self, body: Any) -> Any:
        """What the app returned; a list of what it yielded."""
        result = await self._result(body)
        if hasattr(result, "__aiter__"):
            return [item async for item in result]
        if inspect.isgenerator(result):
            return await self._in_thread(list, result)
        return result

    async def stream(self, body: Any) -> AsyncGenerator[Any, None]:
        """What the app yields, as it comes; a returned value is the only item."""
        result = await self._result(body)
        try:
            if hasattr(result, "__aiter__"):
                async for item in result:
                    yield item
            elif inspect.isgenerator(result):
                while (item := await self._in_thread(next, result, _END)) is not _END:
                    yield item
            else:
                yield result
        finally:  # the client left: the app's own clean-up runs now, not when the garbage is collected
            if inspect.isasyncgen(result):
                await result.aclose()
            elif inspect.isgenerator(result):
                with contextlib.suppress(ValueError):  # it is in the middle of a step, in its thread
                    result.close()

    async def _result(self, body: Any) -> Any:
        if self._wants_object and not isinstance(body, dict):
            kind = _KINDS.get(type(body), "a number")
            raise HTTPException(422, f'the body must be a JSON object ({{"name": value, ...}}), not {kind}')
        if not self._is_plain:
            made = self._app(body)
            return await made if inspect.isawaitable(made) else made
        made = await self._in_thread(self._app, body)
        return await made if inspect.isawaitable(made) else made

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        context = contextvars.copy_context()
        called = partial(context.run, _called, call, *args)
        running = asyncio.get_running_loop().run_in_executor(self._threads, called)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():  # it goes on for all that, and so does the request
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            running.exception()
            raise

    def check_health(self) -> Any:
        """The app's own word, to be awaited if it can be."""
        health = getattr(self._app, "check_health", None)
        return health() if callable(health) else None

    def close(self) -> None:
        """Its own clean-up is its object's end."""


def _wants_object(call: Callable[..., Any]) -> bool:
    """Whether its body is annotated as a dict. Annotations are not evaluated: their names may be there for a type
    checker alone."""
    try:
        _, body, *_ = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # made in C, or it takes no body
        return False
    if isinstance(body.annotation, str):
        return re.fullmatch(r"(typing\.)?[Dd]ict(\[.*\])?", body.annotation, re.S) is not None
    return (get_origin(body.annotation) or body.annotation) is dict


def _check_place(scope: Message, routes: Iterable[str]) -> None:
    root, path = scope["root_path"], scope["path"]
    if path not in (root, f"{root}/", *(f"{root}/{route}" for route in routes)):
        there = " or ".join([root, *(f"{root}/{route}" for route in routes)])
        raise RequestError(
            f"There is nothing at {path}: this app is a class that takes JSON, by POST to {there} alone. Paths and "
            "methods of one's own: a FastAPI ingress (@serve.ingress).", code="unknown_url", status=404,
        )  # fmt: skip
    if scope["method"] != "POST":
        raise RequestError(
            f"{root} answers POST, not {scope['method']}: this app is a class that takes JSON.",
            code="method_not_allowed", status=405,
        )  # fmt: skip


def _json(raw: bytes) -> Any:
    try:
        return sanitize.asked_of_app(raw)
    except sanitize.RepeatedKey as error:
        raise RequestError(f"In the body, {error}.", code="repeated_key") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not JSON: {error}.", code="invalid_json") from None


async def _send_event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
