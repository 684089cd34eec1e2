"""What `handle.remote()` asks inside of an application: another deployment, on its own thread's loop.

As between Serve's processes: arguments and results are copies, in which a handle leads where it did; exceptions arrive,
a stream comes piece by piece, and who is cancelled cancels what it waits for. `serve_graph.py` makes the deployments,
`serve_line.py` asks those in a process of their own; `Handed` is the router of all their handles.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import io
import pickle
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, cast

import ray
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.router import Router
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from llmsched.runtime import exceptions
from llmsched.runtime.exceptions import WorkError

_PLAIN = (str, bytes, int, float, bool, type(None))


Put = Callable[[Any], None]  # takes the next item of a stream


class Asked(Protocol):
    """A deployment as its handles know it."""

    def run(
        self, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any], put: Put | None
    ) -> Running: ...


def asked(one: Asked, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
    """One request through a handle, from wherever."""
    stream = Stream() if metadata.is_streaming else None
    running = one.run(metadata, args, kwargs, stream.put if stream is not None else None)
    if stream is not None:
        running.add_done_callback(lambda _: stream.end(running))
    return Result(running, stream, metadata.request_id)


class Running(concurrent.futures.Future[Any]):
    """Work elsewhere. `cancel` asks for its end, and it is done when it has ended, however long that takes."""

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


class Work(Running):
    """A coroutine on another thread's loop."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

        def begin() -> None:
            self._task = loop.create_task(_no_end_of_the_loop(work))
            self._task.add_done_callback(self._settle)

        loop.call_soon_threadsafe(begin, context=contextvars.copy_context())

    def cancel(self) -> bool:
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


async def _no_end_of_the_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """What would end the loop that it passes, such as SystemExit, becomes an ordinary exception."""
    try:
        return await work
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise WorkError(exceptions.words(error)) from None


class Handed(Router):  # type: ignore[misc]
    """What a handle asks: the deployment behind it, or one of its copies (`serve_copies.py`)."""

    def __init__(self, deployed: Asked) -> None:
        self._deployed = deployed

    def running_replicas_populated(self) -> bool:
        return True

    def assign_request(
        self, request_meta: RequestMetadata, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[ReplicaResult]:
        assigned: concurrent.futures.Future[ReplicaResult] = concurrent.futures.Future()
        assigned.set_result(asked(self._deployed, request_meta, args, kwargs))
        return assigned

    async def broadcast(self, request_meta: RequestMetadata, *args: Any, **kwargs: Any) -> list[ReplicaResult]:
        return [asked(one, request_meta, args, kwargs) for one in copies_of(self._deployed)]

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


_NO_CHOICE = "Which copy of a deployment answers is chosen for you here: call handle.remote() in the place of choosing."
_NO_BROADCAST = (
    "Only what runs in the replica's own process, as the ingress does, can ask all copies of a deployment (broadcast)."
)


async def resolved(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a request is given, once what other deployments are to answer for it is there."""
    given = await asyncio.gather(*map(_resolved, args))
    named = await asyncio.gather(*map(_resolved, kwargs.values()))
    return tuple(given), dict(zip(kwargs, named, strict=True))


async def _resolved(value: Any) -> Any:
    if isinstance(value, DeploymentResponse):
        return await value
    if isinstance(value, DeploymentResponseGenerator):
        raise RuntimeError("A stream of one deployment cannot be given to another: iterate over it first.")
    return copied(value)


# --- values between deployments -----------------------------------------------------------------------------------


class Several(Asked, Protocol):
    """One that has copies, each of which can be asked."""

    @property
    def copies(self) -> Sequence[Asked]: ...


def copies_of(one: Asked) -> Sequence[Asked]:
    return cast(Several, one).copies if hasattr(type(one), "copies") else (one,)


class _SeveralThere:
    """One of another process that has copies, which are not known here."""

    def __init__(self, one: Asked) -> None:
        self.run = one.run

    @property
    def copies(self) -> Sequence[Asked]:
        raise RuntimeError(_NO_BROADCAST)


_behind: dict[DeploymentID, Asked] = {}  # the handles that this process has given out


def handle_of(id: DeploymentID, one: Asked) -> DeploymentHandle[Any]:
    _behind[id] = one
    return DeploymentHandle(id.name, id.app_name, _create_router=lambda *_, **__: Handed(one))


def forget(id: DeploymentID, one: Asked) -> None:
    if _behind.get(id) is one:
        del _behind[id]


def behind(id: DeploymentID) -> Asked:
    """Raises LookupError when it has ended."""
    if id not in _behind:
        raise LookupError(f"deployment {id.name} of {id.app_name} is not there any more")
    return _behind[id]


def packed(value: Any) -> bytes:
    """Raises what pickling raises."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def unpacked(data: bytes, elsewhere: Callable[[DeploymentID], Asked] = behind) -> Any:
    """`elsewhere` says what is behind a handle that this process has not given out."""
    return _Unpickler(io.BytesIO(data), elsewhere).load()


def copied(value: Any) -> Any:
    """As if it had gone to another process: whoever changes it changes nobody else's."""
    return value if isinstance(value, _PLAIN) else unpacked(packed(value))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A handle is no value: pickled as Serve does it, it would look for a deployment that Serve has made."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, DeploymentHandle) and (one := _behind.get(value.deployment_id)) is not None:
            is_several = isinstance(one, _SeveralThere) or len(copies_of(one)) > 1
            return value.deployment_id, value.handle_options, is_several
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, elsewhere: Callable[[DeploymentID], Asked]) -> None:
        super().__init__(file)
        self._elsewhere = elsewhere

    def persistent_load(self, found: Any) -> DeploymentHandle[Any]:
        id, options, is_several = found
        one = _behind.get(id) or self._elsewhere(id)
        if is_several and not hasattr(type(one), "copies"):
            one = _SeveralThere(one)
        handle = handle_of(id, one)
        handle.handle_options = options
        return handle


class Stream:
    """What a generator of another loop yields."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._work: Running | None = None
        self._waiters: list[concurrent.futures.Future[None]] = []

    def put(self, item: Any) -> None:
        """It is the stream's own from now on."""
        with self._lock:
            self._items.append(item)
            self._wake()

    def end(self, work: Running) -> None:
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


def _look_at(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


class _EndOfStream(Exception):
    pass


class Result(ReplicaResult):  # type: ignore[misc]
    """The answer to one request through a handle."""

    def __init__(self, work: Running, stream: Stream | None, request: str) -> None:
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
        done = asyncio.wrap_future(self._work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(_look_at)  # nobody waits for it any more, which asyncio would complain of
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
