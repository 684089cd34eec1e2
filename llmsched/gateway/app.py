"""The gateway as one detached Ray actor with an HTTP port of its own: the only files of this room that import Ray.

It is no Serve application and stands behind no Serve proxy: what others deploy through Serve is not on its port, and
who shuts Serve down does not take it along. The bridge makes it with `start`, and talks to it by its methods:
`route(table)` gives it a route table, `load()` asks what is in flight. One that Ray has made anew says version 0 in
`load()` until the bridge sends the table again; the controller need not be there for requests to be served.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import ray
import uvloop
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Gauge, Histogram

from llmsched import sanitize
from llmsched.gateway import serve_internals
from llmsched.gateway.asked import Asked
from llmsched.gateway.front import Gateway, internal_error
from llmsched.gateway.replicas import ReplicaGone
from llmsched.gateway.server import web_server
from llmsched.runtime import attempt, calls_door

NAME, NAMESPACE = calls_door.GATEWAY, attempt.NAMESPACE
STANDBY = calls_door.STANDBY
CALLS_AT_ONCE = 128  # requests that come through Ray, from work on other machines: each has a thread
DEPLOYMENT = "replica"  # of the Serve application of every replica
PROCESS = f"{os.getpid()}-{os.urandom(4).hex()}"  # in the names of requests
LOOP_ANSWERS_WITHIN_S = 4.0
_END: Any = object()
ASSIGN_S = 3.0  # Serve's router waits for ever for a replica that is gone; this is how long we wait for it
GONE = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, RayServeException)
FULL_S = 0.05  # until a replica is asked again whether its app has read what came before
LATENCY_BOUNDS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]


class ServeReplica:
    """A replica behind the Serve application `name`. Each request has a name, under which the replica can cancel it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._whole: DeploymentHandle | None = None
        self._handles: dict[str, DeploymentHandle] = {}
        self._numbers = itertools.count()

    async def call(self, route: str, body: Any, adapter: dict[str, str] | None) -> Any:
        await self._connected()
        request = self._next_name()
        response = self._handle("call").remote(route, body, adapter, request)
        timer = _bound_assignment(response)
        answer = asyncio.ensure_future(self._answer(response))
        answer.add_done_callback(lambda _: timer.cancel())
        return await self._until_let_go(answer, request)

    async def _answer(self, response: Any) -> Any:
        try:
            return await response
        except RayTaskError as error:
            return _failed(error)
        except GONE as error:
            raise ReplicaGone(f"{self._name}: {error}") from None

    async def stream(
        self, route: str, body: Any, adapter: dict[str, str] | None, incoming: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        await self._connected()
        request = self._next_name()
        is_open = () if incoming is None else (True,)
        response = self._handle("stream").remote(route, body, adapter, request, *is_open)
        timer = _bound_assignment(response)
        bringing: asyncio.Task[None] | None = None
        ended = False
        try:
            while (chunk := await self._until_let_go(self._next(response), request)) is not _END:
                if incoming is not None and bringing is None:  # it has begun: it takes what comes in
                    bringing = asyncio.create_task(self._bring(incoming, request))
                yield chunk
            ended = True
        except (ReplicaGone, _Failed) as error:
            ended = True
            if isinstance(error, ReplicaGone):
                raise
            yield error.answer
        finally:
            timer.cancel()
            if bringing is not None:
                bringing.cancel()
            if not ended:
                self._cancel(request)
                with suppress(ReplicaGone, _Failed):
                    while await self._until_let_go(self._next(response), request) is not _END:
                        pass

    async def _bring(self, incoming: AsyncIterator[Any], request: str) -> None:
        """Give the replica what comes in, one after the other."""
        with suppress(RayTaskError, *GONE):  # whoever waits for its answer hears of it
            async for message in incoming:
                while True:
                    if await self._handle("receive").remote(request, message):
                        break
                    await asyncio.sleep(FULL_S)

    def _next(self, response: Any) -> asyncio.Future[Any]:
        async def chunk() -> Any:
            try:
                return await anext(response, _END)
            except RayTaskError as error:
                raise _Failed(_failed(error)) from None
            except GONE as error:
                raise ReplicaGone(f"{self._name}: {error}") from None

        return asyncio.ensure_future(chunk())

    async def _until_let_go(self, work: asyncio.Future[Any], request: str) -> Any:
        """What `work` brings. Cancelled, it asks the replica to end the request, and goes on waiting until it has."""
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if work.cancelled():
                raise ReplicaGone(f"{self._name}: it was not given the request in time") from None
            self._cancel(request)
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            if not work.cancelled():
                work.exception()
            raise

    def _cancel(self, request: str) -> None:
        with suppress(*GONE):
            self._handle("cancel").remote(request)

    def _next_name(self) -> str:
        return f"{PROCESS}-{next(self._numbers)}"

    async def _connected(self) -> None:
        if self._whole is None:
            try:
                self._whole = await asyncio.to_thread(serve_internals.handle, DEPLOYMENT, self._name)
            except Exception as error:  # whatever the reason, this replica cannot be reached now
                raise ReplicaGone(f"{self._name}: {error}") from None

    def _handle(self, method: str) -> DeploymentHandle:
        handle = self._handles.get(method)
        if handle is None:
            assert self._whole is not None
            handle = self._handles[method] = self._whole.options(method_name=method, stream=method == "stream")
        return handle


class _Failed(Exception):
    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__()
        self.answer = answer


def _bound_assignment(response: Any) -> asyncio.TimerHandle:
    """Cancel `response` if Serve has not given it to a replica's process within ASSIGN_S.

    Serve has no public word for this: the future of the assignment is the response's own.
    """

    def give_up() -> None:
        if not response._replica_result_future.done():
            response.cancel()

    return asyncio.get_running_loop().call_later(ASSIGN_S, give_up)


def _failed(error: RayTaskError) -> dict[str, Any]:
    """A replica answers errors itself; one that raised is broken. The client hears what, not where in which file."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, GONE):
        raise ReplicaGone(str(cause)) from None
    return internal_error(f"The replica failed: {sanitize.first_line(cause)}")


class GatewayActor:
    """Serves HTTP in a thread of its own, from the moment it is made, and again when Ray has made it anew."""

    def __init__(self, host: str, port: int) -> None:
        tags = ("workload", "route")
        self._requests = Counter("llmsched_requests", "Requests that ended", tag_keys=(*tags, "status"))
        self._seconds = Histogram(
            "llmsched_request_seconds", "Seconds from request to end of answer", LATENCY_BOUNDS_S, tag_keys=tags
        )
        self._ongoing = Gauge("llmsched_ongoing_requests", "Requests in flight", tag_keys=("workload",))
        self._gateway = Gateway(ServeReplica, seed=os.getpid(), observe=self._observe)
        self._asked: dict[str, Asked] = {}
        self._socket = socket.create_server((host, port), backlog=2048, reuse_port=False)
        self._address = (host, int(self._socket.getsockname()[1]))
        self._loop: asyncio.AbstractEventLoop
        begun = threading.Event()
        threading.Thread(target=self._serve, args=(begun,), daemon=True, name="http").start()
        begun.wait()

    def _serve(self, begun: threading.Event) -> None:
        web = web_server(self._gateway)

        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            begun.set()
            await web.serve(sockets=[self._socket])

        try:
            uvloop.run(run())
        finally:
            os._exit(1)  # without HTTP there is no gateway: Ray makes another one

    def address(self) -> tuple[str, int]:
        return self._address

    def route(self, table: dict[str, Any]) -> int:
        """Take a route table; the version now in use."""

        async def take() -> int:
            self._gateway.route(table)
            return self._gateway.version

        version: int = self._in_loop(take())
        return version

    def load(self) -> dict[str, Any]:
        """{workload: {"ongoing", "recent", "queued"}, ...}, "version": that of the table in use, 0 for none, and
        "pid"."""

        async def count() -> dict[str, Any]:
            return {**self._gateway.load(), "version": self._gateway.version}

        load: dict[str, Any] = self._in_loop(count())
        for workload, counts in load.items():
            if workload != "version":
                self._ongoing.set(counts["ongoing"], {"workload": workload})
        return {**load, "pid": os.getpid()}

    def used(self, after: int) -> dict[str, Any]:
        """What keys have used, as far as it has changed since that version: `spending.Book.after`."""

        async def read() -> dict[str, Any]:
            return self._gateway.book.after(after)

        return dict(self._in_loop(read()))

    def pid(self) -> int:
        return os.getpid()

    def place(self) -> dict[str, str]:
        """Where it answers over HTTP, and on which loopback."""
        return {"url": f"http://{self._address[0]}:{self._address[1]}", "loopback": calls_door.loopback()}

    @ray.method(concurrency_group="calls")  # type: ignore[untyped-decorator]
    def ask(self, name: str, scope: dict[str, Any], body: bytes) -> Iterator[list[dict[str, Any]]]:
        """One request, under a name by which its caller can hang up, of ASGI's scope; lists of ASGI's messages."""
        asked = self._asked[name] = Asked(self._gateway, self._loop, scope, body)
        try:
            yield from asked.pieces()
        finally:
            self._asked.pop(name, None)

    def hang_up(self, name: str) -> None:
        """Whoever asked under that name has gone, or has it all."""
        if (asked := self._asked.get(name)) is not None:
            asked.hang_up()

    def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LOOP_ANSWERS_WITHIN_S)

    def _observe(self, workload: str, route: str, status: int, seconds: float) -> None:
        tags = {"workload": workload, "route": route}
        self._requests.inc(1, {**tags, "status": str(status)})
        self._seconds.observe(seconds, tags)


def start(host: str, port: int, name: str = NAME, **options: Any) -> Any:
    """The actor of the gateway of that name, made if there is none. `options` are Ray's, for placing it. It outlives
    whoever made it."""
    actor = ray.remote(concurrency_groups={"calls": CALLS_AT_ONCE})(GatewayActor).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=4,
        num_cpus=0,
        **options,
    )
    return actor.remote(host, port)


def find(name: str = NAME) -> Any:
    """The actor of the gateway of that name, or None."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
