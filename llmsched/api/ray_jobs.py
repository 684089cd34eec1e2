"""Ray's Jobs API: what `ray job submit` and `JobSubmissionClient` ask, unmodified. A job is a `kind: ray` workload.

Paths, bodies and answers are Ray's own; who may do what is as for every other route. The token travels as Ray sends it
(`RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`). What a job becomes is decided in `spec/ray_jobs.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, WebSocket
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from llmsched.api import bodies, logs, views
from llmsched.api.callers import Caller, Found, Given, Looker, Services, Submitter, caller, services
from llmsched.api.routes import REFUSALS, ZIP
from llmsched.control import authorization
from llmsched.control.authorization import KnownNames
from llmsched.core.records import WorkloadState
from llmsched.errors import RequestError
from llmsched.spec import parcel, ray_jobs
from llmsched.spec.http_models import LogLine, WorkdirStored
from llmsched.spec.ray import RaySpec, name_of_job

LOGS_AT_MOST = 16 << 20  # characters of one answer; the tail has no such bound
FORGOTTEN = "[llmsched] what was before is left out: see llmsched logs\n"

router = APIRouter(prefix="/api", responses=REFUSALS, route_class=bodies.Route)

SubmissionId = Annotated[
    str, Path(max_length=200, description="as it was submitted, or the name of a kind: ray workload")
]
Protocol = Annotated[str, Path(pattern="^gcs$")]
Package = Annotated[str, Path(pattern=r"^_ray_pkg_[A-Za-z0-9_.-]{1,150}\.zip$", description="as Ray's client names it")]


def of_job(need: str) -> Callable[[str, HTTPConnection], Awaitable[Found]]:
    """As `callers.of_workload`, of the job with this id."""

    async def allowed(submission_id: SubmissionId, connection: HTTPConnection) -> Found:
        who = caller(connection, need)
        record = services(connection).state.newest(name_of_job(submission_id))
        spec = None if record is None else _spec_of(record)
        if record is None or spec is None or record.unlisted or not who.permissions.sees(record.workload):
            raise unknown(submission_id)
        if spec.ray.job is not None and spec.ray.job.id != submission_id:
            raise unknown(submission_id)
        if need == "change":
            authorization.check_change(record, who.permissions)
        return Found(record, who)

    allowed.need = need  # type: ignore[attr-defined]
    return allowed


def unknown(submission_id: str) -> RequestError:
    return RequestError(
        f'there is no job "{submission_id}".', code="unknown_job", hint="ray job list has them.", http_status=404
    )


def _spec_of(record: WorkloadState) -> RaySpec | None:
    spec = parcel.read(record.workload.parcel).spec if record.workload.kind == "ray" else None
    return spec if isinstance(spec, RaySpec) else None


Seen = Annotated[Found, Depends(of_job("see"))]
Changed = Annotated[Found, Depends(of_job("change"))]


@router.get("/version")
async def ray_version(who: Looker) -> ray_jobs.VersionResponse:
    """Of Ray's Jobs API, and of the Ray on which jobs run."""
    return ray_jobs.VersionResponse(ray_version=version("ray"))


@router.get("/packages/{protocol}/{package}")
async def find_package(protocol: Protocol, package: Package, given: Given, who: Submitter) -> WorkdirStored:
    """Whether one has uploaded it. What others uploaded under that name is theirs."""
    found = await given.uploads.find_package(package, who.user)
    if found is None:
        raise RequestError(f"{package} has not been uploaded.", code="unknown_workdir", http_status=404)
    return found


@router.put("/packages/{protocol}/{package}", openapi_extra=ZIP)
async def put_package(
    protocol: Protocol, package: Package, request: Request, given: Given, who: Submitter
) -> WorkdirStored:
    """A working_dir, zipped: kept as the workdirs of `llmsched apply` are."""
    return await given.uploads.receive_package(package, who.user, request.stream())


@router.post("/jobs/")
async def submit_job(body: ray_jobs.JobSubmitRequest, given: Given, who: Submitter) -> ray_jobs.JobSubmitResponse:
    """Submit it to the queue that its metadata names, as `queue`. Answered when it is committed."""
    sha256_of = await _uploaded(body, given, who)
    submission_id, spec = ray_jobs.spec_of(body, _flavors(given), sha256_of)
    await given.controller.submit([spec], user=who.user, role=who.role, only_new=True)
    return ray_jobs.JobSubmitResponse(job_id=submission_id, submission_id=submission_id)


async def _uploaded(body: ray_jobs.JobSubmitRequest, given: Services, who: Caller) -> Callable[[str], str | None]:
    named = ray_jobs.PACKAGE.fullmatch(str((body.runtime_env or {}).get("working_dir")))
    found = await given.uploads.find_package(named[1], who.user) if named else None
    return lambda package: found.sha256 if found is not None else None


def _flavors(given: Services) -> list[str]:
    """Of GPUs that are there or may come, those of which there are most first."""
    counted: dict[str, int] = {}
    for one in given.state.nodes.values():
        if one.node.flavor and one.node.total.gpus_milli:
            counted[one.node.flavor] = counted.get(one.node.flavor, 0) + one.node.total.gpus_milli
    for kind in views.node_types(given.state):
        if kind.flavor and kind.gpus:
            counted.setdefault(kind.flavor, 0)
    return sorted(counted, key=lambda flavor: (-counted[flavor], flavor))


@router.get("/jobs/")
async def list_jobs(given: Given, who: Looker) -> list[ray_jobs.JobDetails]:
    """Every `kind: ray` workload that one may see, the newest first, but for those that ended a while ago."""
    found = [
        (record, spec)
        for record in given.state.workloads.values()
        if not record.unlisted and who.permissions.sees(record.workload) and (spec := _spec_of(record)) is not None
    ]
    found.sort(key=lambda one: (-one[0].submitted_at, one[0].workload.id))
    return [_details(given, record, spec, who) for record, spec in found]


@router.get("/jobs/{submission_id}")
async def job(given: Given, found: Seen) -> ray_jobs.JobDetails:
    """How it stands: its `message` says why it waits, or how it ended."""
    spec = _spec_of(found.workload)
    assert spec is not None
    return _details(given, found.workload, spec, found.who)


def _details(given: Services, record: WorkloadState, spec: RaySpec, who: Caller) -> ray_jobs.JobDetails:
    names = KnownNames(given.state, who.permissions)
    view = views.workload(given.state, record, given.controller.progress_of(record), names)
    waits = view.reason.message if view.reason is not None and not view.ended else ""
    told = spec.ray.job
    shows_values = who.permissions.changes(record.workload)
    return ray_jobs.JobDetails(
        submission_id=told.id if told else record.workload.id,
        status=ray_jobs.STATUS[view.phase],
        entrypoint=spec.ray.entrypoint,
        message=waits or view.message or f"Job is {view.phase}.",
        start_time=round(record.submitted_at * 1000),
        end_time=None if record.finished_at is None else round(record.finished_at * 1000),
        metadata=dict(told.metadata) if told else {},
        runtime_env=ray_jobs.runtime_env_of(spec, shows_values=shows_values),
    )


@router.post("/jobs/{submission_id}/stop")
async def stop_job(given: Given, found: Changed) -> ray_jobs.JobStopResponse:
    """Cancel it: it is asked, and has its time to save and leave. False when it has ended already."""
    if found.workload.outcome:
        return ray_jobs.JobStopResponse(stopped=False)
    await given.controller.cancel(found.id, by=found.who.user)
    return ray_jobs.JobStopResponse(stopped=True)


@router.delete("/jobs/{submission_id}")
async def delete_job(given: Given, found: Changed) -> ray_jobs.JobDeleteResponse:
    """Off Ray's list, once it has ended. Its history and its logs stay, see `llmsched story`."""
    await given.controller.unlist(found.id, by=found.who.user)
    return ray_jobs.JobDeleteResponse(deleted=True)


@router.get("/jobs/{submission_id}/logs")
async def job_logs(given: Given, found: Seen) -> ray_jobs.JobLogsResponse:
    """What its entrypoint has written in its newest attempt, the last LOGS_AT_MOST of it."""
    kept: deque[str] = deque()
    size, cut = 0, False
    async for line in _lines(given, found, follow=False):
        kept.append(line)
        size += len(line)
        while size > LOGS_AT_MOST:
            size -= len(kept.popleft())
            cut = True
    return ray_jobs.JobLogsResponse(logs=(FORGOTTEN if cut else "") + "".join(kept))


@router.websocket("/jobs/{submission_id}/logs/tail")
async def tail_job(websocket: WebSocket, given: Given, found: Seen) -> None:
    """The same as it is written, from the beginning on until the job has ended."""
    await websocket.accept()
    sending = asyncio.create_task(_send(websocket, _lines(given, found, follow=True)))
    leaving = asyncio.create_task(_left(websocket))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
            await websocket.close()
    except WebSocketDisconnect:
        pass
    finally:
        for one in (sending, leaving):
            one.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect):
                await one


async def _send(websocket: WebSocket, lines: AsyncIterator[str]) -> None:
    async for line in lines:
        await websocket.send_text(line)


async def _left(websocket: WebSocket) -> None:
    """Nobody has anything to say on it but that it closes."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _lines(given: Services, found: Found, *, follow: bool) -> AsyncIterator[str]:
    controller, name = given.controller, found.id
    told: AsyncIterator[LogLine] = logs.read(
        given.storage,
        lambda: views.log_sources(controller.state, name, None, None),
        rank=0,
        follow=follow,
        ended=lambda: views.has_ended(controller.state, name),
    )
    async for line in told:
        if not line.note:
            yield line.text + "\n"
