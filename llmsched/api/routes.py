"""The routes of /api/v1. Each says in its signature which role may use it; none decides anything itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple, cast

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse

from llmsched.api import diagnosis, logs, page, views, workdirs
from llmsched.api.auth import require
from llmsched.api.home import TokenRecord
from llmsched.control import execution, planning, registry
from llmsched.control.dispatch import newest_run
from llmsched.control.vault import SHARED
from llmsched.core.records import WorkloadState
from llmsched.errors import NotAllowed
from llmsched.executors.port import CommandEnded
from llmsched.runtime.storage import Storage
from llmsched.spec import cluster, load, wire
from llmsched.spec.quantities import ENV_PATTERN

KEEP_ALIVE_S = 15.0
NDJSON = "application/x-ndjson"


class Services(NamedTuple):
    """What the routes are given; `controller` is control.controller.Controller."""

    controller: Any

    @property
    def storage(self) -> Storage:
        return Storage.at(self.controller.storage)


def services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def allow(role: str) -> Callable[[Request], TokenRecord]:
    """Who asks, if that role may. `app.build` refuses to start with a route that does not depend on this."""

    def allowed(request: Request) -> TokenRecord:
        record: TokenRecord = request.scope["llmsched.token"]
        require(record, role)
        return record

    allowed.role = role  # type: ignore[attr-defined]
    return allowed


Given = Annotated[Services, Depends(services)]
Viewer = Annotated[TokenRecord, Depends(allow("viewer"))]
Submitter = Annotated[TokenRecord, Depends(allow("submitter"))]
Admin = Annotated[TokenRecord, Depends(allow("admin"))]
Name = Annotated[str, Path(max_length=200, description="newest run, or name@N", examples=["qwen", "qwen@2"])]
Hex = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Key = Annotated[str | None, Header(max_length=200, description="the same key and body again give the same answer")]

router = APIRouter(prefix="/api/v1")
open_router = APIRouter()


@open_router.get("/healthz")
async def alive() -> wire.Alive:
    return wire.Alive()


@open_router.get(page.PAGE_PATH, response_class=HTMLResponse, include_in_schema=False)
async def web_view() -> HTMLResponse:
    return HTMLResponse(page.content(), headers=page.headers())


@router.get("/health")
async def health(given: Given, who: Viewer) -> wire.Health:
    return cast(wire.Health, given.controller.health)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(given: Given, who: Viewer) -> str:
    return views.metrics(given.controller.state, given.controller.health) + str(given.controller.metrics())


# --- what users ask ---------------------------------------------------------------------------------------------


@router.post("/plan")
async def plan(body: wire.PlanRequest, given: Given, who: Viewer) -> wire.PlannedList:
    """What would happen now. Changes nothing."""
    specs = [load.load_json(spec) for spec in body.specs]
    return wire.PlannedList(planned=await given.controller.plan(specs, user=who.user))


@router.post("/apply")
async def apply(body: wire.ApplyRequest, given: Given, who: Submitter, idempotency_key: Key = None) -> wire.AppliedList:
    """Submit or update; answered when it is committed."""
    specs = [load.load_json(spec) for spec in body.specs]
    for spec in specs:
        _may_change(given, spec.name, who)
    applied = await given.controller.submit(
        specs, user=who.user, again=body.again, idempotency_key=idempotency_key and f"{who.id}:{idempotency_key}"
    )
    return wire.AppliedList(applied=applied)


@router.get("/workdirs/{sha256}")
async def workdir(sha256: Hex, given: Given, who: Submitter) -> wire.WorkdirStored:
    known = await asyncio.to_thread(workdirs.find, given.storage, sha256)
    if known is None:
        raise workdirs.unknown(sha256)
    return known


@router.put("/workdirs/{sha256}")
async def put_workdir(sha256: Hex, request: Request, given: Given, who: Submitter) -> wire.WorkdirStored:
    """A zip, named by its SHA-256."""
    content = await request.body()
    return await asyncio.to_thread(workdirs.keep, given.storage, sha256, content)


@router.get("/workloads")
async def workloads(
    given: Given,
    who: Viewer,
    ended: Annotated[int | None, Query(ge=0, description="how many that have ended at most; default: all")] = None,
    waiting: Annotated[int | None, Query(ge=0, description="how many that wait at most; default: all")] = None,
) -> wire.WorkloadList:
    """Newest first."""
    controller = given.controller
    return views.workloads(controller.state, controller.progress, controller.health.seq, ended=ended, waiting=waiting)


@router.get("/workloads/{name}")
async def workload(name: Name, given: Given, who: Viewer) -> wire.WorkloadView:
    return _view(given, views.find(given.controller.state, name))


@router.get("/workloads/{name}/why")
async def why(name: Name, given: Given, who: Viewer) -> wire.WhyView:
    found = views.find(given.controller.state, name)
    return views.why(given.controller.state, found, given.controller.entries(0, found.workload.id))


@router.get("/workloads/{name}/diagnose")
async def diagnose(name: Name, given: Given, who: Viewer) -> wire.DiagnosisView:
    """What slows it, as far as it is known, and what to do."""
    controller = given.controller
    found = views.find(controller.state, name)
    needs = await planning.memory_of_known(controller.state, found.workload)
    return diagnosis.diagnose(
        controller.state, found, controller.progress, controller.entries(0, found.workload.id), needs
    )


@router.get("/workloads/{name}/story")
async def story(name: Name, given: Given, who: Viewer) -> wire.StoryView:
    found = views.find(given.controller.state, name)
    return views.story(given.controller.state, found, given.controller.entries(0, found.workload.id))


@router.get(
    "/workloads/{name}/logs",
    response_class=StreamingResponse,
    responses={
        200: {"description": "one LogLine a line", "content": {NDJSON: {"schema": wire.LogLine.model_json_schema()}}}
    },
)
async def log_lines(
    name: Name,
    given: Given,
    who: Viewer,
    follow: bool = False,
    gang: Annotated[int | None, Query(ge=0, description="index of a gang or replica; default: all")] = None,
    attempt: Annotated[int | None, Query(ge=1, description="default: the newest of each gang")] = None,
    rank: Annotated[int | None, Query(ge=0)] = None,
    tail: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
) -> StreamingResponse:
    """From storage: works after the workload, and the cluster, are gone. With `follow`, until the workload ends."""
    controller = given.controller
    workload_id = views.find(controller.state, name).workload.id

    def sources() -> list[tuple[str, int]]:
        return views.log_sources(controller.state, workload_id, gang, attempt)

    def ended() -> bool:
        return views.phase(controller.state.workloads[workload_id]) in wire.ENDED

    lines = logs.read(given.storage, sources, rank=rank, tail=tail, follow=follow, ended=ended)
    return StreamingResponse(_as_json_lines(lines), media_type=NDJSON)


@router.post("/workloads/{name}/cancel")
async def cancel(name: Name, given: Given, who: Submitter) -> wire.WorkloadView:
    _may_change(given, name, who)
    found = views.find(given.controller.state, name)
    await given.controller.cancel(found.workload.id, by=who.user)
    return _view(given, views.find(given.controller.state, name))


@router.post("/workloads/{name}/scale")
async def scale(name: Name, body: wire.ScaleRequest, given: Given, who: Submitter) -> wire.WorkloadView:
    """Bundles of an elastic gang, or replicas, within what the spec allows."""
    _may_change(given, name, who)
    found = views.find(given.controller.state, name)
    await given.controller.scale(found.workload.id, body.size, by=who.user)
    return _view(given, views.find(given.controller.state, name))


@router.post(
    "/workloads/{name}/exec",
    response_class=StreamingResponse,
    responses={
        200: {"description": "one ExecLine a line", "content": {NDJSON: {"schema": wire.ExecLine.model_json_schema()}}}
    },
)
async def execute(name: Name, body: wire.ExecRequest, given: Given, who: Submitter) -> StreamingResponse:
    """Run a command beside a running member. The last line says how it ended; whoever hangs up ends it."""
    _may_change(given, name, who)
    command = execution.Command(name, tuple(body.command), who.user, body.rank, body.gang, body.timeout_s)
    said = await given.controller.execute(command)
    return StreamingResponse(_as_exec_lines(said), media_type=NDJSON)


# --- the cluster ------------------------------------------------------------------------------------------------


@router.get("/nodes")
async def nodes(given: Given, who: Viewer) -> wire.NodeList:
    state = given.controller.state
    return wire.NodeList(nodes=views.nodes(state), types=views.node_types(state))


@router.get("/queues")
async def queues(given: Given, who: Viewer) -> wire.QueueList:
    return wire.QueueList(queues=views.queues(given.controller.state))


@router.get("/reservations")
async def reservations(given: Given, who: Viewer) -> wire.ReservationList:
    """In the order of their windows; those that are over last."""
    return wire.ReservationList(reservations=views.reservations(given.controller.state))


@router.post("/reservations")
async def reserve(body: wire.ReserveRequest, given: Given, who: Admin) -> wire.ReservationList:
    """Beside those of the cluster file, and not touched by a new one. Refused over work that can be moved by nobody."""
    spec = cluster.load_reservation(body.reservation)
    await given.controller.reserve(spec, by=who.user)
    return await reservations(given, who)


@router.delete("/reservations/{name}")
async def end_reservation(name: Name, given: Given, who: Admin) -> wire.ReservationList:
    """Only one that was made by command: the others stand in the cluster file."""
    await given.controller.end_reservation(name, by=who.user)
    return await reservations(given, who)


@router.get("/models")
async def models(
    given: Given, who: Viewer, name: Annotated[str | None, Query(max_length=200, description="of one only")] = None
) -> wire.ModelList:
    """Every result of a train workload, the newest version first, with what it was made of."""
    state = given.controller.state
    if name is not None:
        registry.find(state, name)
    return wire.ModelList(models=registry.versions(state, name))


SecretName = Annotated[str, Path(pattern=ENV_PATTERN, description="name of an environment variable")]


@router.get("/secrets")
async def secrets(given: Given, who: Submitter) -> wire.SecretList:
    """One's own and the shared ones: names, never values."""
    return wire.SecretList(secrets=given.controller.vault.known(who.user))


@router.put("/secrets/{name}")
async def set_secret(name: SecretName, body: wire.SecretRequest, given: Given, who: Submitter) -> wire.SecretView:
    """Workloads that are launched from now on get it."""
    owner = _owner_of_secret(who, body.shared)
    return cast(wire.SecretView, await given.controller.vault.put(owner, name, body.value, by=who.user))


@router.delete("/secrets/{name}")
async def remove_secret(name: SecretName, given: Given, who: Submitter, shared: bool = False) -> wire.SecretView:
    """What runs keeps the value it was given."""
    owner = _owner_of_secret(who, shared)
    return cast(wire.SecretView, await given.controller.vault.remove(owner, name, by=who.user))


def _owner_of_secret(who: TokenRecord, shared: bool) -> str:
    if shared:
        require(who, "admin")
    return SHARED if shared else who.user


@router.get("/config")
async def config(given: Given, who: Viewer) -> wire.ConfigView:
    return views.configuration(given.controller.state)


@router.put("/config")
async def configure(body: wire.ConfigRequest, given: Given, who: Admin) -> wire.ConfigView:
    """A new version; old ones stay in the journal."""
    await given.controller.configure(cluster.load_json(body.config), by=who.user)
    return views.configuration(given.controller.state)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"description": "server-sent events, one EventView each", "content": {"text/event-stream": {}}}},
)
async def events(
    given: Given,
    who: Viewer,
    after: Annotated[int, Query(ge=0, description="the last seq you have")] = 0,
    follow: bool = True,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> StreamingResponse:
    """The journal in order, from after `after` on, without the entries that only keep time. Resume with the last id."""
    return StreamingResponse(
        _as_events(given.controller, after if last_event_id is None else last_event_id, follow),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )


@router.post("/shutdown")
async def shutdown(body: wire.ShutdownRequest, request: Request, who: Admin) -> wire.Alive:
    """The controller ends after this answer. What runs goes on, unless it is told to stop everything."""
    request.app.state.stop_everything = body.stop_everything
    request.app.state.stop.set()
    return wire.Alive()


# --- how ----------------------------------------------------------------------------------------------------------


def _view(given: Services, found: WorkloadState) -> wire.WorkloadView:
    return views.workload(given.controller.state, found, given.controller.progress)


def _may_change(given: Services, name: str, who: TokenRecord) -> None:
    """One's own, or an admin everyone's."""
    found = newest_run(given.controller.state, name)
    owner = found.workload.user if found is not None else who.user
    if owner != who.user and who.role != "admin":
        raise NotAllowed(f'"{name}" belongs to {owner}.', code="owner", hint="Choose another name, or ask an admin.")


async def _as_json_lines(lines: AsyncIterator[wire.LogLine]) -> AsyncIterator[str]:
    async for line in lines:
        yield line.model_dump_json() + "\n"


async def _as_exec_lines(said: AsyncGenerator[Any, None]) -> AsyncIterator[str]:
    async with aclosing(said):
        async for item in said:
            if item is None:
                yield "\n"  # shows us a client that left
            elif isinstance(item, CommandEnded):
                yield wire.ExecLine(stream="end", text=item.message, exit_code=item.code).model_dump_json() + "\n"
            else:
                yield wire.ExecLine(stream=item.stream, text=item.text).model_dump_json() + "\n"


async def _as_events(controller: Any, after: int, follow: bool) -> AsyncIterator[str]:
    last = controller.health.seq
    if not follow and after >= last:
        return
    source = controller.follow(after)
    upcoming: asyncio.Future[Any] = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_S)
            if not done:
                yield ": still here\n\n"  # keeps proxies from closing, and shows us a client that left
                continue
            item = upcoming.result()
            if item is None:
                return
            yield _event(controller, *item)
            if not follow and item.seq >= last:
                return
            upcoming = asyncio.ensure_future(anext(source, None))
    finally:
        upcoming.cancel()


def _event(controller: Any, seq: int, at: float, entry: Any) -> str:
    if views.keeps_time_only(entry):
        return ""
    view = views.event(seq, at, entry, views.names(controller.state))
    return f"id: {seq}\ndata: {view.model_dump_json()}\n\n"
