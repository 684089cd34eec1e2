"""The routes of /api/v1. Each says in its signature what it needs (auth.MAY); none decides anything itself.

A route about one workload takes it as `Seen` or `Changed` (callers.py), and so never has one that its reader may not
see.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse

from llmsched.api import archive, bodies, diagnosis, lists, logs, page, query, results, specs, streams, views, workdirs
from llmsched.api.auth import require
from llmsched.api.callers import (
    Caller,
    Changed,
    Found,
    Given,
    Looker,
    Name,
    NodeName,
    Operator,
    Seen,
    Services,
    Submitter,
)
from llmsched.control import execution, planning, registry, trials
from llmsched.control.vault import SHARED
from llmsched.spec import http_models, http_requests, node_models, spec_requests, trial_models
from llmsched.spec.quantities import ENV_PATTERN

KEEP_ALIVE_S = 15.0
NDJSON = "application/x-ndjson"


Hex = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Key = Annotated[str | None, Header(max_length=200, description="the same key and body again give the same answer")]

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": http_models.ErrorBody, "description": "refused: the request is wrong, or not as things stand now"},
    "5XX": {"model": http_models.ErrorBody, "description": "the cluster, the store or the controller failed"},
}
router = APIRouter(
    prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(query.only_known)], route_class=bodies.Route
)
open_router = APIRouter(route_class=bodies.Route)


@open_router.get("/healthz")
async def alive() -> http_models.Alive:
    """Whether a controller answers. Wants no token."""
    return http_models.Alive()


@open_router.get(page.PAGE_PATH, response_class=HTMLResponse, include_in_schema=False)
async def web_view() -> HTMLResponse:
    return HTMLResponse(page.content(), headers=page.headers())


@router.get("/health")
async def health(given: Given, who: Looker) -> http_models.Health:
    """Whether it can do its work, since when, where dashboard and endpoint are, and whether tokens are a boundary."""
    found = cast(http_models.Health, given.controller.health)
    return found.model_copy(update={"isolation": given.isolation})


# --- what users ask ---------------------------------------------------------------------------------------------


@router.post("/plan")
async def plan(body: spec_requests.PlanRequest, given: Given, who: Looker) -> http_models.PlannedList:
    """What would happen now. Changes nothing."""
    read = await specs.read(body.specs)
    return http_models.PlannedList(planned=await given.controller.plan(read, user=who.user, role=who.role))


@router.post("/apply")
async def apply(
    request: Request,
    body: spec_requests.ApplyRequest,
    given: Given,
    who: Submitter,
    idempotency_key: Key = None,
) -> http_models.AppliedList:
    """Submit or update; answered when it is committed."""
    applied = await given.controller.submit(
        await specs.read(body.specs),
        user=who.user,
        role=who.role,
        again=body.again,
        idempotency_key=idempotency_key and f"{who.token.id}:{idempotency_key}",
        fingerprint=hashlib.sha256(await request.body()).hexdigest(),
    )
    return http_models.AppliedList(applied=applied)


@router.get("/workdirs/{sha256}")
async def workdir(sha256: Hex, given: Given, who: Submitter) -> http_models.WorkdirStored:
    """Whether that zip has been uploaded."""
    known = await given.uploads.find(sha256, who.user)
    if known is None:
        raise workdirs.unknown(sha256)
    return known


ZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put("/workdirs/{sha256}", openapi_extra=ZIP)
async def put_workdir(sha256: Hex, request: Request, given: Given, who: Submitter) -> http_models.WorkdirStored:
    """A zip, named by its SHA-256."""
    return await given.uploads.receive(sha256, who.user, request.stream())


SEQ_AT_MOST = 2**53  # JSON and the store know whole numbers up to there
Limit = Annotated[int, Query(ge=0, le=lists.AT_MOST, description="how many of them at most")]
More = Annotated[str | None, Query(max_length=300, description="go on after the page that gave this as next")]


OfUser = Annotated[str | None, Query(max_length=200, description="only that user's")]
OfParent = Annotated[str | None, Query(max_length=63, description="only what work of that name asked for")]
OfQueue = Annotated[str | None, Query(max_length=63, description="only that queue's")]
InPhase = Annotated[list[http_models.Phase] | None, Query(max_length=8, description="only in one of these phases")]
Labelled = Annotated[list[str] | None, Query(max_length=32, description="only with these labels, KEY=VALUE")]


@router.get("/workloads")
async def workloads(
    given: Given,
    who: Looker,
    active: Limit = 200,
    waiting: Limit = 100,
    ended: Limit = 100,
    every: Limit = 0,
    cursor: More = None,
    user: OfUser = None,
    queue: OfQueue = None,
    phase: InPhase = None,
    label: Labelled = None,
    parent: OfParent = None,
) -> http_models.WorkloadList:
    """Newest first: the first page of each group, or with a cursor the next page of one. `every` pages through all,
    whatever their group. `user`, `queue`, `phase`, `label` and `parent` choose among them; with a cursor, the same
    again. What work has asked for and has ended is listed by its `parent`, and by `every`."""
    selection = lists.Selection.read(user, queue, phase, label, parent)
    limits = {"active": active, "waiting": waiting, "ended": ended, lists.EVERY: every}
    return lists.workloads(given.controller, who.permissions, limits, cursor, selection)


@router.get("/workloads/{name}")
async def workload(given: Given, found: Seen) -> http_models.WorkloadView:
    """One run, with its gangs."""
    return _view(given, found)


@router.get("/workloads/{name}/why")
async def why(given: Given, found: Seen) -> http_models.WhyView:
    """Why it waits, and what would start it; or why it runs where it runs, or how it ended."""
    placed = given.controller.entries(0, found.id, kinds=("Launch", "Resize"), last=lists.STORY_AT_MOST)
    return views.why(given.state, found.workload, placed, found.names(given.state))


@router.get("/workloads/{name}/diagnose")
async def diagnose(given: Given, found: Seen) -> http_models.DiagnosisView:
    """What slows it, as far as it is known, and what to do."""
    controller = given.controller
    needs = await planning.memory_of_known(given.state, found.workload.workload)
    entries = controller.entries(0, found.id, last=lists.STORY_AT_MOST)
    progress, names = controller.progress_of(found.workload), found.names(given.state)
    return diagnosis.diagnose(given.state, found.workload, progress, entries, needs, names)


@router.get("/workloads/{name}/trials")
async def trials_of(given: Given, found: Seen) -> trial_models.TrialTable:
    """Of a search: what was tried, and what came of it."""
    return trials.table(given.state, found.workload, given.controller.progress_of, found.names(given.state))


@router.get("/workloads/{name}/story")
async def story(
    given: Given,
    found: Seen,
    before: Annotated[int | None, Query(ge=1, le=SEQ_AT_MOST, description="of `earlier`")] = None,
) -> http_models.StoryView:
    """Its history, in words: the last of it, or what was before an entry."""
    return lists.story(given.controller, found.workload, before, found.names(given.state))


@router.get(
    "/workloads/{name}/logs",
    response_class=StreamingResponse,
    responses={200: {"description": "one LogLine a line", "content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def log_lines(
    given: Given,
    found: Seen,
    follow: bool = False,
    gang: Annotated[int | None, Query(ge=0, le=SEQ_AT_MOST, description="its index; default: all")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=SEQ_AT_MOST, description="default: the newest of each gang")] = None,
    rank: Annotated[int | None, Query(ge=0, le=SEQ_AT_MOST)] = None,
    tail: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
) -> StreamingResponse:
    """From storage: works after the workload, and the cluster, are gone. With `follow`, until the workload ends."""
    controller, workload_id = given.controller, found.id
    lines = logs.read(
        given.storage,
        lambda: views.log_sources(controller.state, workload_id, gang, attempt),
        rank=rank,
        tail=tail,
        follow=follow,
        ended=lambda: views.has_ended(controller.state, workload_id),
        why_none=lambda: views.why_no_log(controller.state, workload_id, gang, attempt, rank),
    )
    return StreamingResponse(streams.of_logs(lines), media_type=NDJSON)


@router.get("/workloads/{name}/result", response_class=StreamingResponse, responses=archive.RESPONSES)
async def result(given: Given, found: Seen) -> StreamingResponse:
    """What a run that succeeded has left, as a tar of its files."""
    where = archive.within(found.workload.artifact, given.controller.storage, found.id)
    return await archive.respond(results.open_storage(where, given.ray_user), found.id)


@router.post("/workloads/{name}/cancel")
async def cancel(given: Given, found: Changed) -> http_models.WorkloadView:
    """Stop it for good. A training saves first, an endpoint finishes what it serves."""
    await given.controller.cancel(found.id, by=found.who.user)
    return _view(given, found)


@router.post("/workloads/{name}/scale")
async def scale(body: http_requests.ScaleRequest, given: Given, found: Changed) -> http_models.WorkloadView:
    """Bundles of an elastic gang, or replicas, within what the spec allows."""
    await given.controller.scale(found.id, body.size, by=found.who.user)
    return _view(given, found)


@router.post("/workloads/{name}/rollback")
async def rollback(body: http_requests.RollbackRequest, given: Given, found: Changed) -> http_models.WorkloadView:
    """An endpoint goes back to a revision that answered, as a new one: the one before, or the one that is named. With
    `adapter` that one alone, to what was published under its name before."""
    who = found.who
    await given.controller.roll_back(found.id, by=who.user, role=who.role, to=body.to, adapter=body.adapter or "")
    return _view(given, found)


@router.post(
    "/workloads/{name}/exec",
    response_class=StreamingResponse,
    responses={200: {"description": "one ExecLine a line", "content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def execute(body: http_requests.ExecRequest, given: Given, found: Changed) -> StreamingResponse:
    """Run a command beside a running member. The last line says how it ended; whoever hangs up ends it."""
    command = execution.Command(found.id, tuple(body.command), found.who.user, body.rank, body.gang, body.timeout_s)
    begun = await given.controller.execute(command)
    return StreamingResponse(streams.of_command(begun.said), media_type=NDJSON)


# --- the cluster ------------------------------------------------------------------------------------------------


@router.get("/nodes")
async def nodes(given: Given, who: Looker) -> node_models.NodeList:
    """Nodes, what is free on them, and who holds what."""
    state = given.controller.state
    return node_models.NodeList(
        nodes=views.nodes(state, who.permissions),
        types=views.node_types(state),
        drained_away=views.drained_away(state),
    )


@router.post("/nodes/{name}/drain")
async def drain_node(
    name: NodeName, body: http_requests.DrainRequest, given: Given, who: Operator
) -> node_models.NodeList:
    """Nothing new goes there, and what runs there leaves with its grace."""
    await given.controller.drain_node(name, who.user, within_s=body.within, until=body.until)
    return await nodes(given, who)


@router.delete("/nodes/{name}/drain")
async def undrain_node(name: NodeName, given: Given, who: Operator) -> node_models.NodeList:
    """Work goes there again; also to a node that is not here now, once it joins."""
    await given.controller.undrain_node(name, who.user)
    return await nodes(given, who)


@router.get("/queues")
async def queues(given: Given, who: Looker) -> http_models.QueueList:
    """All of them, with what they own and hold and how much waits: numbers, and nobody's work by name."""
    return http_models.QueueList(queues=views.queues(given.controller.state))


@router.get("/reservations")
async def reservations(given: Given, who: Looker) -> http_models.ReservationList:
    """In the order of their windows; those that are over last."""
    return http_models.ReservationList(reservations=views.reservations(given.state, who.permissions))


@router.post("/reservations")
async def reserve(body: spec_requests.ReserveRequest, given: Given, who: Operator) -> http_models.ReservationList:
    """Beside those of the cluster file, and not touched by a new one. Refused over work that can be moved by nobody."""
    await given.controller.reserve(body.reservation, by=who.user)
    return await reservations(given, who)


@router.delete("/reservations/{name}")
async def end_reservation(name: Name, given: Given, who: Operator) -> http_models.ReservationList:
    """Only one that was made by command: the others stand in the cluster file."""
    await given.controller.end_reservation(name, by=who.user)
    return await reservations(given, who)


@router.get("/models")
async def models(
    given: Given,
    who: Looker,
    name: Annotated[str | None, Query(max_length=200, description="of one only")] = None,
    limit: Annotated[int, Query(ge=1, le=lists.AT_MOST)] = 200,
    cursor: More = None,
) -> http_models.ModelList:
    """Results of train workloads, the newest version first, with what each was made of; page by page."""
    if name is not None:
        registry.find(given.state, name, sees=who.permissions.sees)
    return lists.models(given.controller, who.permissions, name, limit, cursor)


SecretName = Annotated[str, Path(pattern=ENV_PATTERN, description="name of an environment variable")]


@router.get("/secrets")
async def secrets(given: Given, who: Submitter) -> http_models.SecretList:
    """One's own and the shared ones: names, never values. Who set a shared one is for who sees everything."""
    return http_models.SecretList(secrets=views.secrets(given.controller.vault.known(who.user), who.permissions))


@router.put("/secrets/{name}")
async def set_secret(
    name: SecretName, body: http_requests.SecretRequest, given: Given, who: Submitter
) -> http_models.SecretView:
    """Workloads that are launched from now on get it."""
    owner = _owner_of_secret(who, body.shared)
    return cast(http_models.SecretView, await given.controller.vault.put(owner, name, body.value, by=who.user))


@router.delete("/secrets/{name}")
async def remove_secret(name: SecretName, given: Given, who: Submitter, shared: bool = False) -> http_models.SecretView:
    """What runs keeps the value it was given."""
    owner = _owner_of_secret(who, shared)
    return cast(http_models.SecretView, await given.controller.vault.remove(owner, name, by=who.user))


def _owner_of_secret(who: Caller, shared: bool) -> str:
    if shared:
        require(who.token, "operate")
    return SHARED if shared else who.user


@router.get("/config")
async def config(given: Given, who: Looker) -> http_models.ConfigView:
    """The configuration in force, as a cluster file."""
    return views.configuration(given.state, who.permissions)


@router.put("/config")
async def configure(body: spec_requests.ConfigRequest, given: Given, who: Operator) -> http_models.ConfigView:
    """A new version; old ones stay in the journal."""
    given.check_storage(body.config.storage or "")
    await given.controller.configure(body.config, by=who.user)
    return views.configuration(given.state, who.permissions)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "server-sent events, one EventView each",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def events(
    given: Given,
    who: Looker,
    after: Annotated[int, Query(ge=0, le=SEQ_AT_MOST, description="the last seq you have")] = 0,
    follow: bool = True,
    last_event_id: Annotated[int | None, Header(ge=0, le=SEQ_AT_MOST)] = None,
) -> StreamingResponse:
    """The journal in order, from after `after` on, without the entries that only keep time. Resume with the last id."""
    return StreamingResponse(
        _as_events(given.controller, who, after if last_event_id is None else last_event_id, follow),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )


@router.post("/shutdown")
async def shutdown(body: http_requests.ShutdownRequest, request: Request, who: Operator) -> http_models.Alive:
    """The controller ends after this answer. What runs goes on, unless it is told to stop everything."""
    request.app.state.stop_everything = body.stop_everything
    request.app.state.stop.set()
    return http_models.Alive()


# --- how ----------------------------------------------------------------------------------------------------------


def _view(given: Services, found: Found) -> http_models.WorkloadView:
    """As it is now, which may be after it was changed."""
    now = given.state.find(found.id) or found.workload
    view = views.workload(given.state, now, given.controller.progress_of(now), found.names(given.state))
    view.may_change = found.who.permissions.changes(now.workload)
    view.notices = given.controller.notices_of(now) if view.may_change else []
    return view


async def _as_events(controller: Any, who: Caller, after: int, follow: bool) -> AsyncIterator[str]:
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
            yield _event(controller, who, *item)
            if not follow and item.seq >= last:
                return
            upcoming = asyncio.ensure_future(anext(source, None))
    finally:
        upcoming.cancel()


def _event(controller: Any, who: Caller, seq: int, at: float, entry: Any) -> str:
    now = who.permissions.under(controller.state.configuration)
    view = views.event_for(seq, at, entry, controller.state, now)
    return "" if view is None else f"id: {seq}\ndata: {view.model_dump_json()}\n\n"
