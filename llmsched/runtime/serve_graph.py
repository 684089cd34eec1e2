"""A bound Serve application in a replica: each deployment on an event loop of its own, handles between them.

Serve would make a process of its own for each deployment, beside the gang that was placed for the replica and outside
of what it was given. Here the whole application is one replica: it has the resources, the variables and the log of its
gang, and starts, drains and ends with it. All are in this process, but for those that have GPUs which others are not to
see, or are placed by themselves as other members of the gang (`serve_apart.py`, `serve_copies.py`). Serve's own class
runs the user's code (`UserCallableWrapper`), so what a deployment may be and how it is called is Serve's word. What
else this file uses of Serve without its promise: how an application is built, and what a handle asks.
`tests/runtime/test_runtime_serve_graph.py` fails when Serve changes.
Start reading at `Graph`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, cast

from ray import serve
from ray.serve import context as serve_context
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve._private.common import DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.constants import RAY_SERVE_RUN_SYNC_IN_THREADPOOL
from ray.serve._private.http_util import ASGIAppReplicaWrapper
from ray.serve._private.replica import UserCallableWrapper
from ray.serve.deployment import Application, Deployment
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.responses import Response

from llmsched.runtime import serve_handles
from llmsched.runtime.exceptions import WorkError
from llmsched.runtime.serve_apart import Apart, Place
from llmsched.runtime.serve_copies import Copies
from llmsched.runtime.serve_handles import Put, Work, copied, resolved

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[Any], Response]  # what a deployment returned, or an exception, as a response

CLOSE_WITHIN_S = 5.0  # for the destructor of a deployment
# What a deployment's own options say that has effect here. The rest is the spec's to say, or Serve's processes'.
HONOURED = {"name", "user_config", "max_ongoing_requests", "max_queued_requests", "backpressure_config"}


def built(entry: Any, args: Mapping[str, Any]) -> Application:
    """The application that `serve run` would make of a bound application or a builder. Raises what the builder does,
    TypeError and ValueError for what is neither."""
    application: Application = call_user_app_builder_with_args_if_necessary(entry, dict(args))
    return application


def is_asgi(definition: Any) -> bool:
    """Whether @serve.ingress made it."""
    return isinstance(definition, type) and issubclass(definition, ASGIAppReplicaWrapper)


def deployments_of(application: Application) -> list[Deployment]:
    """Those of an application, the ingress last. None of them is made."""
    return list(build_app(application, name="plan").deployments)


def options_of(deployment: Deployment) -> dict[str, Any]:
    """What somebody set: Serve's names of options, and those of `ray_actor_options` beside them."""
    config = deployment._deployment_config
    told = {name: getattr(config, name, None) for name in sorted(config.user_configured_option_names) if name[0] != "_"}
    actor = {name: value for name, value in (deployment.ray_actor_options or {}).items() if value}
    bundles = deployment._replica_config.placement_group_bundles
    return {**told, "ray_actor_options": actor, **({"placement_group_bundles": bundles} if bundles else {})}


class Graph:
    """The application, made: an ASGI application, of its ingress. `answer` makes responses of what deployments return;
    `most` requests run at once in a deployment that does not say itself how many. `apart`: by name, the places of those
    that have processes of their own, one a copy, never the ingress."""

    def __init__(
        self,
        application: Application,
        name: str,
        most: int,
        answer: Answer,
        apart: Mapping[str, Sequence[Place]] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self._made: list[Deployed | Apart | Copies] = []

        def make(deployment: Deployment, app_name: str) -> DeploymentHandle[Any]:
            made: Deployed | Apart | Copies
            places = apart.get(deployment.name, ())
            if not places:
                made = Deployed(deployment, app_name, most, answer)
            elif len(places) == 1:
                made = Apart(deployment, app_name, most, places[0])
            else:
                made = Copies(deployment, app_name, most, places)
            self._made.append(made)
            made.begin()
            return made.handle()

        try:
            build_app(application, name=name, make_deployment_handle=make).validate_single_fastapi_ingress()
        except BaseException:
            self.close()
            raise

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """`receive` and `send` are of the running loop. Ends when the ingress has, also when it is cancelled."""
        ingress = self._made[-1]
        assert isinstance(ingress, Deployed)
        await ingress.serve(scope, receive, send)

    def handle(self) -> DeploymentHandle[Any]:
        """Of the ingress."""
        return self._made[-1].handle()

    @property
    def can_answer(self) -> bool:
        """Whether each deployment has a process that is there. One that has lost a copy of several goes on with the
        rest until it is made anew."""
        return all(isinstance(one, Deployed) or one.can_answer for one in self._made)

    async def check_health(self) -> None:
        """What the deployments' own checks say. Raises what they raise, WorkError for one whose process has gone."""
        for one in self._made:
            if not isinstance(one, Deployed) and (why := one.is_gone):
                raise WorkError(why)
        await asyncio.gather(*(asyncio.wrap_future(one.check()) for one in self._made if one.has_check))

    def close(self) -> None:
        """Let the deployments clean up, those that others call last."""
        for one in reversed(self._made):
            with suppress(concurrent.futures.TimeoutError):
                one.close()
        self._made.clear()


def deploy_inside(make: Callable[[Application, str], Graph]) -> None:
    """From now on, an application that code of this process deploys (`serve.run`) is made by `make`, under the name
    that it gives: it belongs to the replica, meets nobody else's of that name, and has no route of its own."""
    inside: dict[str, Graph] = {}
    outside_handle, outside_delete = serve.get_app_handle, serve.delete

    def run(target: Any, *_: Any, name: str = "default", **__: Any) -> DeploymentHandle[Any]:
        if not isinstance(target, Application):
            raise TypeError("`serve.run` expects an `Application` returned by `Deployment.bind()`.")
        if name in inside:
            delete(name)
        inside[name] = make(target, name)
        return inside[name].handle()

    def get_app_handle(name: str) -> DeploymentHandle[Any]:
        return inside[name].handle() if name in inside else outside_handle(name)

    def delete(name: str, *arguments: Any, **more: Any) -> None:
        if name in inside:
            inside.pop(name).close()
        else:
            outside_delete(name, *arguments, **more)

    serve.run, serve.get_app_handle, serve.delete = run, get_app_handle, delete


class _Wrapper(UserCallableWrapper):  # type: ignore[misc]
    """Serve's own, with our word for answers."""

    answer: Answer

    async def _send_user_result_over_asgi(self, result: Any, asgi_args: Any) -> None:
        await self.answer(result)(*asgi_args.to_args_tuple())

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, self.service_unavailable_exceptions):
            return cast(Response, super().handle_exception(exc))
        return self.answer(exc)


class Deployed:
    """One deployment and the thread that its loop runs in. It is copy `rank` of `copies`."""

    def __init__(
        self, deployment: Deployment, app_name: str, most: int, answer: Answer, rank: int = 0, copies: int = 1
    ) -> None:
        self.id = DeploymentID(deployment.name, app_name)
        self._deployment = deployment
        self._rank, self._copies = ReplicaRank(rank=rank, node_rank=0, local_rank=0), copies
        config = deployment._deployment_config
        is_said = "max_ongoing_requests" in config.user_configured_option_names
        self._most = int(config.max_ongoing_requests if is_said else most)
        self._answer = answer
        self._waiting = 0
        self._wrapper: _Wrapper
        self._room: asyncio.Semaphore
        self._here: _Here
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name=f"serve {deployment.name}").start()

    def begin(self) -> None:
        """Construct the user's object. Raises what its constructor raises."""
        self.submit(self.constructed()).result()

    async def constructed(self) -> None:
        deployment = self._deployment
        self._wrapper = _Wrapper(
            deployment.func_or_class,
            deployment.init_args,
            deployment.init_kwargs,
            deployment_id=self.id,
            run_sync_methods_in_threadpool=RAY_SERVE_RUN_SYNC_IN_THREADPOOL,
            run_user_code_in_separate_thread=False,  # this thread is its own
            local_testing_mode=False,
            deployment_config=deployment._deployment_config,
            actor_id="",
            ray_actor_options=deployment.ray_actor_options,
        )
        self._wrapper.answer = self._answer
        self._room = asyncio.Semaphore(self._most)
        self._here = _Here.of(self, deployment, self._rank, self._copies)
        _now.set(self._here)
        _show_where()
        await self._wrapper.set_sync_method_threadpool_limit(self._most)
        await self._wrapper.initialize_callable()
        self._here.servable_object = self._wrapper.user_callable
        await self._wrapper.call_reconfigure(deployment.user_config, rank=self._rank)

    def handle(self) -> DeploymentHandle[Any]:
        return serve_handles.handle_of(self.id, self)

    @property
    def has_check(self) -> bool:
        """Whether the user's code says how it is. Without, a busy loop counts as healthy, as in Serve."""
        return self._wrapper._user_health_check is not None

    def check(self) -> Work:
        async def asked() -> None:
            _now.set(self._here)
            word = self._wrapper.call_user_health_check()
            if word is not None:
                await word

        return self.submit(asked())

    def close(self) -> None:
        serve_handles.forget(self.id, self)
        self.submit(self.destroyed()).result(CLOSE_WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def destroyed(self) -> None:
        """What the user's object has cleaned up, if it was ever made."""
        if hasattr(self, "_here") and self._here.servable_object is not None:
            await self._wrapper.call_destructor()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Work:
        return Work(work, self._loop)

    # --- requests -----------------------------------------------------------------------------------------------

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """As its ingress. `receive` and `send` are of the caller's loop."""
        theirs = asyncio.get_running_loop()

        async def received() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_of(receive()), theirs))

        def sent(message: Message) -> Awaitable[None]:
            if not isinstance(message, MutableMapping):  # what a generator yields, which no client would ever see
                raise TypeError(_YIELDS)
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_of(send(message)), theirs))

        async def work() -> None:
            headers = dict(scope["headers"])
            self._enter(
                route=scope["root_path"],
                request_id=headers.get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex,
                _internal_request_id=uuid.uuid4().hex,
                multiplexed_model_id=scope["multiplexed"],
                is_http_request=True,
            )
            info = self._wrapper.get_user_method_info("__call__")
            try:
                async with self._slot():
                    await self._wrapper._call_http_entrypoint(info, scope, received, sent)
            except BackPressureError as error:  # outside of the user's code, which would have answered
                await self._wrapper.handle_exception(error)(scope, received, sent)

        await self.submit(work()).until_done()

    def run(self, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any], put: Put | None) -> Work:
        """Through a handle, from wherever. `put` takes copies of what it yields."""

        async def work() -> Any:
            given, named = await resolved(args, kwargs)
            self._enter(
                route=metadata.route,
                request_id=metadata.request_id,
                _internal_request_id=metadata.internal_request_id,
                multiplexed_model_id=metadata.multiplexed_model_id,
                session_id=metadata.session_id,
            )
            async with self._slot():
                if put is None:
                    return copied(await self._wrapper.call_user_method(metadata, given, named))
                return await self._wrapper._call_user_generator(
                    metadata, given, named, enqueue=lambda item: put(copied(item))
                )

        return self.submit(work())

    def _enter(self, **request: Any) -> None:
        """Say where and for which request the code runs that is called from here."""
        _show_where()
        _now.set(self._here)
        serve_context._serve_request_context.set(serve_context._RequestContext(app_name=self.id.app_name, **request))

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Room for one of `max_ongoing_requests`. Raises BackPressureError when too many wait for it."""
        config = self._deployment._deployment_config
        if self._room.locked() and 0 <= config.max_queued_requests <= self._waiting:
            told = config.backpressure_config
            raise BackPressureError(self._waiting, config.max_queued_requests, told.status_code, told.retry_after_s)
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._room.release()


_YIELDS = "a deployment that is asked over HTTP does not yield: it returns a StreamingResponse over its generator."


async def _of(work: Awaitable[Any]) -> Any:
    return await work


# --- where code runs ----------------------------------------------------------------------------------------------

_now: contextvars.ContextVar[_Here] = contextvars.ContextVar("deployment")


class _Here(serve_context.ReplicaContext):  # type: ignore[misc]
    """What `serve.get_replica_context()` says in the code of a deployment."""

    name: str

    @classmethod
    def of(cls, deployed: Deployed, deployment: Deployment, rank: ReplicaRank, copies: int) -> _Here:
        outer = serve_context._get_internal_replica_context()
        id = getattr(outer, "replica_id", None) or ReplicaID(str(rank.rank), deployed.id)
        here = cls(id, None, deployment._deployment_config, rank, copies)
        here.name = deployment.name
        return here

    @property
    def deployment(self) -> str:
        return self.name


class _Where:
    """In the place of the one context that Serve has a process for: that of the deployment whose code asks."""

    def __init__(self, outer: Any) -> None:
        self._outer = outer

    def __getattr__(self, name: str) -> Any:
        return getattr(_now.get(self._outer), name)


def _show_where() -> None:
    """Serve sets its context anew once a replica is made: looked at for every request."""
    known = serve_context._INTERNAL_REPLICA_CONTEXT
    if not isinstance(known, _Where):
        serve_context._INTERNAL_REPLICA_CONTEXT = _Where(known)


def bound(definition: Any, args: Mapping[str, Any]) -> Application:
    """A class, function or deployment of a user as an application. Raises TypeError for arguments that do not fit."""
    deployment = definition if isinstance(definition, Deployment) else serve.deployment(definition)
    return deployment.bind(**args)
