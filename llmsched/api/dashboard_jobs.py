"""The Jobs page of the cluster's dashboard lists our workloads too, beside the programs that Ray knows as jobs.

To Ray a job is what was submitted to it or joined it as a driver, and our work is neither: its public API has no word
for more. So where that dashboard is passed on, the answers to the two questions of that page get them. Whoever may look
there sees all work. Start at `ask`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from llmsched import sanitize
from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.controller import Controller
from llmsched.control.dashboard import Answer
from llmsched.control.roles import AUDITOR
from llmsched.core.records import WorkloadState
from llmsched.spec import ray_jobs

JOBS = "/api/jobs/"
_JSON = {"content-type": "application/json"}


async def ask(controller: Controller, path: str, headers: Mapping[str, str]) -> Answer:
    """As `Controller.ask_dashboard` of the cluster. Raises ClusterError."""
    asked, _, _ = path.partition("?")
    known = controller.state.newest(asked.removeprefix(JOBS)) if asked.startswith(JOBS) else None
    if known is not None:
        return _answer(_details(controller, known).model_dump_json().encode())
    answer = await controller.ask_dashboard(None, path, headers)
    if asked.rstrip("/") + "/" != JOBS or answer.status != 200:
        return answer
    async with aclosing(answer.body):
        said = b"".join([piece async for piece in answer.body if piece])
    try:
        jobs = sanitize.loads(said)
    except ValueError:
        jobs = None
    if not isinstance(jobs, list):
        return answer._replace(body=_whole(said))
    newest = sorted(controller.state.workloads.values(), key=lambda one: (-one.submitted_at, one.workload.id))
    ours = [_details(controller, one).model_dump(mode="json") for one in newest]
    return _answer(json.dumps([*ours, *jobs]).encode())


def _answer(body: bytes) -> Answer:
    return Answer(200, dict(_JSON), _whole(body))


async def _whole(body: bytes) -> AsyncGenerator[bytes | None, None]:
    yield body


def _details(controller: Controller, record: WorkloadState) -> ray_jobs.JobDetails:
    it, state = record.workload, controller.state
    names = KnownNames(state, Permissions(Person("", AUDITOR), state.configuration))
    view = views.workload(state, record, controller.progress_of(record), names)
    waits = view.reason.message if view.reason is not None and not view.ended else ""
    return ray_jobs.JobDetails(
        submission_id=it.id,
        status=ray_jobs.STATUS[view.phase],
        entrypoint=f"{it.kind} workload {it.name}",
        message=waits or view.message or f"{it.name} is {view.phase}: llmsched story {it.id}",
        start_time=round(record.submitted_at * 1000),
        end_time=None if record.finished_at is None else round(record.finished_at * 1000),
        metadata={"kind": it.kind, "queue": it.queue, "user": it.user, "gpus": f"{view.gpus:g}"},
    )
