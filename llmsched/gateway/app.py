"""The gateway as one Ray Serve application: the only file of this room that imports Ray.

The bridge deploys `build()` under the name "llms-gateway" at route prefix "/", and talks to it through handle methods:
`route(table)` gives it a route table, `load()` asks what is in flight. A gateway that Serve has restarted says version
0 in `load()` until the bridge sends the table again; the controller need not be there for requests to be served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Gauge, Histogram

from llmsched.gateway.front import Gateway, internal_error
from llmsched.gateway.replicas import ReplicaGone

NAME = "llms-gateway"
ASSIGN_S = 3.0  # Serve's router waits for ever for a replica that is gone; this is how long we wait for it
GONE = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, RayServeException)
LATENCY_BOUNDS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]


class ServeReplica:
    """A replica behind the Serve application `name`. Its handle is looked up when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._call: DeploymentHandle | None = None
        self._stream: DeploymentHandle | None = None

    async def call(self, route: str, body: Any, adapter: dict[str, str] | None) -> Any:
        if self._call is None:
            await self._look_up()
        assert self._call is not None
        response = self._call.remote(route, body, adapter)
        timer = _bound_assignment(response)
        try:
            return await response
        except RayTaskError as error:
            return _failed(error)
        except GONE as error:
            raise ReplicaGone(f"{self._name}: {error}") from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        finally:
            timer.cancel()

    async def stream(self, route: str, body: Any, adapter: dict[str, str] | None) -> AsyncGenerator[Any, None]:
        if self._stream is None:
            await self._look_up()
        assert self._stream is not None
        response = self._stream.remote(route, body, adapter)
        timer = _bound_assignment(response)
        ended = False
        try:
            async for chunk in response:
                yield chunk
            ended = True
        except RayTaskError as error:
            yield _failed(error)
        except GONE as error:
            raise ReplicaGone(f"{self._name}: {error}") from None
        finally:
            timer.cancel()
            if not ended:
                response.cancel()

    async def _look_up(self) -> None:
        try:  # in a thread: it asks the Serve controller, which may be slow to answer, and others are being served
            handle = await asyncio.to_thread(serve.get_app_handle, self._name)
        except Exception as error:  # whatever the reason, this replica cannot be reached now
            raise ReplicaGone(f"{self._name}: {error}") from None
        self._call = handle.options(method_name="call")
        self._stream = handle.options(method_name="stream", stream=True)


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
    return internal_error(
        f"The replica failed: {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
    )


@serve.ingress()
class Endpoint:
    """The Serve deployment around `Gateway`."""

    def __init__(self) -> None:
        tags = ("workload", "route")
        self._requests = Counter("llmsched_requests", "Requests that ended", tag_keys=(*tags, "status"))
        self._seconds = Histogram(
            "llmsched_request_seconds", "Seconds from request to end of answer", LATENCY_BOUNDS_S, tag_keys=tags
        )
        self._ongoing = Gauge("llmsched_ongoing_requests", "Requests in flight", tag_keys=("workload",))
        self._gateway = Gateway(ServeReplica, seed=os.getpid(), observe=self._observe)

    def __serve_build_asgi_app__(self) -> Gateway:
        return self._gateway

    async def route(self, table: dict[str, Any]) -> int:
        """Take a route table; the version now in use."""
        self._gateway.route(table)
        return self._gateway.version

    async def load(self) -> dict[str, Any]:
        """{workload: {"ongoing", "queued"}, ...} and "version": that of the table in use, 0 for none."""
        load = self._gateway.load()
        for workload, counts in load.items():
            self._ongoing.set(counts["ongoing"], {"workload": workload})
        return {**load, "version": self._gateway.version}

    async def pid(self) -> int:
        return os.getpid()

    def _observe(self, workload: str, route: str, status: int, seconds: float) -> None:
        tags = {"workload": workload, "route": route}
        self._requests.inc(1, {**tags, "status": str(status)})
        self._seconds.observe(seconds, tags)


def build(**actor_options: Any) -> serve.Application:
    """The application to `serve.run(..., name=NAME, route_prefix="/")`. `actor_options` are Ray's, for placing it."""
    deployment = serve.deployment(Endpoint).options(
        name="gateway",
        num_replicas=1,  # its counts are the truth about what is in flight: two gateways would each know half
        max_ongoing_requests=10_000,  # the gateway refuses by itself, with a word
        ray_actor_options={"num_cpus": 0, **actor_options},
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=10,
    )
    return deployment.bind()
