"""An app of the user's own: a class that Ray Serve could run, from the packed workdir or an installed package.

It is made once with the spec's `args` and called with the request's JSON body. `__call__` may be plain or async, and
may return a value or yield several. A plain one runs in a thread, one for each request that the replica may have in
hand, so that a slow call does not stop the others. A call ends when its thread does, also one that was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from llmsched.runtime import environment, nested
from workloads.inference.openai import RequestError

_END = object()


def make(entry: str, args: Mapping[str, Any], workdir: str | None) -> Any:
    """The user's object for "module:Class". Raises environment.UserError."""
    if workdir is not None:
        folder = environment.unpack(workdir, nested.place_for_code())
        os.chdir(folder)  # as in a loop: its files are named from here
        sys.path.insert(0, str(folder))
    found: Any = environment.load_entry(entry, "serve.app")
    kind = getattr(found, "func_or_class", found)  # decorated with @serve.deployment
    if not inspect.isclass(kind) or "__call__" not in dir(kind):
        raise environment.UserError(f"serve.app {entry}: expected a class with a __call__ method.")
    try:
        inspect.signature(kind).bind(**args)
    except TypeError as error:
        raise environment.UserError(f"serve.app {entry}: its arguments do not fit serve.args: {error}.") from None
    return kind(**args)


def _called(call: Callable[..., Any], *args: Any) -> Any:
    """No future takes a StopIteration: whoever awaits it would wait for ever."""
    try:
        return call(*args)
    except StopIteration as error:
        raise RuntimeError(f"it raised StopIteration({error.value!r}) outside of a generator") from error


class AppServer:
    """One object of the user's class, asked over the route "app"."""

    routes = ("app",)

    def __init__(self, app: Any, threads: int = 32) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="call")
        call = type(app).__call__
        self._is_plain = not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))

    async def call(self, route: str, body: Any, adapter: str | None) -> Any:
        """What the app returned; a list of what it yielded."""
        result = await self._result(body)
        if hasattr(result, "__aiter__"):
            return [item async for item in result]
        if inspect.isgenerator(result):
            return await self._in_thread(list, result)
        return result

    async def stream(self, route: str, body: Any, adapter: str | None) -> AsyncGenerator[Any, None]:
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

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise RequestError("An app takes no adapters.", code="no_adapters")

    def check(self) -> Any:
        """The app's own word, to be awaited if it can be."""
        health = getattr(self._app, "check_health", None)
        return health() if callable(health) else None
