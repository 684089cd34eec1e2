"""What `handle.remote()` asks inside of an application of one process: another deployment, on its own thread's loop.

As between processes: arguments and results are copies, exceptions arrive, a stream comes piece by piece, and who is
cancelled cancels what it waits for. `serve_graph.py` makes the deployments; `Handed` is the router of their handles.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray.serve._private.common import RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.router import Router
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from llmsched.runtime import exceptions
from llmsched.runtime.exceptions import WorkError

_PLAIN = (str, bytes, int, float, bool, type(None))


class Asked(Protocol):
    """A deployment as its handles know it."""

    def asked(self, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReplicaResult: ...


class Work(concurrent.futures.Future[Any]):
    """A coroutine on another thread's loop. Done when the coroutine is, also when it was cancelled before."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

        def begin() -> None:
            self._task = loop.create_task(_no_end_of_the_loop(work))
            self._task.add_done_callback(self._settle)

        loop.call_soon_threadsafe(begin, context=contextvars.copy_context())

    def cancel(self) -> bool:
        """Ask for it."""

        def ask() -> None:
            assert self._task is not None  # begun before, in the order of calls
            self._task.cancel()

        if not self.done():
            self._loop.call_soon_threadsafe(ask)
        return False  # it may go on for as long as it likes

    def _settle(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.set_exception(RequestCancelledError())
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    async def until_done(self) -> Any:
        """Its result. Cancelled, it asks the work to end, and goes on waiting until it has."""
        done = asyncio.wrap_future(self)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            self.cancel()
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
            done.exception()
            raise


async def _no_end_of_the_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """What would end the loop that it passes, such as SystemExit, becomes an ordinary exception."""
    try:
        return await work
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise WorkError(exceptions.words(error)) from None


class Handed(Router):  # type: ignore[misc]
    """What a handle asks: the one deployment behind it."""

    def __init__(self, deployed: Asked) -> None:
        self._deployed = deployed

    def running_replicas_populated(self) -> bool:
        return True

    def assign_request(
        self, request_meta: RequestMetadata, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[ReplicaResult]:
        assigned: concurrent.futures.Future[ReplicaResult] = concurrent.futures.Future()
        assigned.set_result(self._deployed.asked(request_meta, args, kwargs))
        return assigned

    async def broadcast(self, request_meta: RequestMetadata, *args: Any, **kwargs: Any) -> list[ReplicaResult]:
        return [self._deployed.asked(request_meta, args, kwargs)]

    @asynccontextmanager
    async def choose_replica(self, request_meta: RequestMetadata, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise RuntimeError(_NO_CHOICE)
        yield

    def dispatch(self, selection: Any, request_meta: RequestMetadata, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(_NO_CHOICE)

    def shutdown(self) -> concurrent.futures.Future[None]:
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        ended.set_result(None)
        return ended


_NO_CHOICE = "A deployment has one replica inside its application here: call handle.remote() in the place of choosing."


async def resolved(value: Any) -> Any:
    if isinstance(value, DeploymentResponse):
        return await value
    if isinstance(value, DeploymentResponseGenerator):
        raise RuntimeError("A stream of one deployment cannot be given to another: iterate over it first.")
    return copied(value)


def copied(value: Any) -> Any:
    """As if it had gone to another process: whoever changes it changes nobody else's."""
    return value if isinstance(value, _PLAIN) else cloudpickle.loads(cloudpickle.dumps(value))


class Stream:
    """What a generator of another loop yields."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._work: Work | None = None
        self._waiters: list[concurrent.futures.Future[None]] = []

    def put(self, item: Any) -> None:
        with self._lock:
            self._items.append(copied(item))
            self._wake()

    def end(self, work: Work) -> None:
        with self._lock:
            self._work = work
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            with suppress(concurrent.futures.InvalidStateError):  # nobody waits there any more
                waiter.set_result(None)
        self._waiters.clear()

    def step(self) -> tuple[bool, Any]:
        """(True, the next item), or (False, what is done once there is one). Raises at the end: EndOfStream, or what
        ended it."""
        with self._lock:
            if self._items:
                return True, self._items.popleft()
            if self._work is not None:
                self._work.result()
                raise _EndOfStream
            waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._waiters.append(waiter)
            return False, waiter


class _EndOfStream(Exception):
    pass


class Result(ReplicaResult):  # type: ignore[misc]
    """The answer to one request through a handle."""

    def __init__(self, work: Work, stream: Stream | None, request: str) -> None:
        self._work, self._stream, self._request = work, stream, request

    async def get_rejection_response(self) -> None:
        return None

    def get(self, timeout_s: float | None) -> Any:
        try:
            return self._work.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self._work.done():
                raise
            raise TimeoutError("Timed out waiting for result.") from None

    async def get_async(self) -> Any:
        try:
            return await asyncio.shield(asyncio.wrap_future(self._work))
        except asyncio.CancelledError:
            self._work.cancel()
            raise

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        assert self._stream is not None
        while True:
            try:
                is_there, what = self._stream.step()
            except _EndOfStream:
                raise StopIteration from None
            if is_there:
                return what
            what.result()

    async def __anext__(self) -> Any:
        assert self._stream is not None
        while True:
            try:
                is_there, what = self._stream.step()
            except _EndOfStream:
                raise StopAsyncIteration from None
            if is_there:
                return what
            try:
                await asyncio.wrap_future(what)
            except asyncio.CancelledError:
                self._work.cancel()
                raise

    def add_done_callback(self, callback: Callable[..., Any]) -> None:
        self._work.add_done_callback(callback)

    def cancel(self) -> None:
        self._work.cancel()

    def to_object_ref(self) -> ray.ObjectRef:
        return ray.put(self._work.result())

    async def to_object_ref_async(self) -> ray.ObjectRef:
        return ray.put(await self.get_async())

    def to_object_ref_gen(self) -> ray.ObjectRefGenerator:
        raise RuntimeError("A stream inside of an application is no generator of object references.")
