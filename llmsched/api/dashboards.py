"""The dashboards of Ray, passed on: a workload's own to whoever may change it, the cluster's to operators and auditors.

Only questions are passed on (GET), and no token of Ray's leaves where it is. What comes back may be made by the work of
others: it is for another origin than this API's, such as the one that `llmsched dashboard` opens where its reader is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import StreamingResponse

from llmsched.api import bodies, dashboard_jobs
from llmsched.api.auth import Tokens
from llmsched.api.callers import Caller, Changed, Given, Services, allow
from llmsched.api.routes import REFUSALS
from llmsched.core.records import WorkloadState
from llmsched.errors import RequestError
from llmsched.runtime.dashboard import ASKS
from llmsched.spec import http_models

LONGEST_PATH = 4096
HEADERS = {
    "content-security-policy": "sandbox",  # where a browser would show it on this origin after all, it may do nothing
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

router = APIRouter(prefix="/api/v1", responses=REFUSALS, route_class=bodies.Route)

Auditor = Annotated[Caller, Depends(allow("audit"))]
Part = Annotated[str, Path(max_length=LONGEST_PATH, description="of the dashboard; its query goes with it")]
ANY: dict[int | str, dict[str, Any]] = {
    200: {"description": "as the dashboard answers", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class DashboardAddress(http_models.Reply):
    """For a browser on the controller's machine. It holds a key: whoever has it may look."""

    url: str


@router.get("/workloads/{name}/dashboard/{part:path}", response_class=StreamingResponse, responses=ANY)
async def of_workload(part: Part, request: Request, given: Given, found: Changed) -> StreamingResponse:
    """That of the Ray that a `kind: ray` workload has of its own, while it runs."""
    return await _answer(given, found.workload, part, request)


@router.get("/dashboard/{part:path}", response_class=StreamingResponse, responses=ANY)
async def of_cluster(part: Part, request: Request, given: Given, who: Auditor) -> StreamingResponse:
    """That of the Ray on which everything runs."""
    return await _answer(given, None, part, request)


@router.post("/dashboard")
async def open_dashboard(request: Request, who: Auditor) -> DashboardAddress:
    """Where a browser of this machine sees that of the cluster without another token, while the caller's is good."""
    tokens: Tokens = request.app.state.tokens
    return DashboardAddress(url=request.app.state.dashboard.address(lambda: tokens.holds(who.token)))


async def _answer(given: Services, found: WorkloadState | None, part: str, request: Request) -> StreamingResponse:
    path = request.scope["raw_path"].decode("latin-1").partition("/dashboard/")[2]
    query = request.scope["query_string"].decode("latin-1")
    whole = f"/{path}?{query}" if query else f"/{path}"
    if len(whole) > LONGEST_PATH or not whole.isascii() or not whole.isprintable():
        raise RequestError("that is no path of a dashboard.", code="path", http_status=404)
    asked = {name: text for name, text in request.headers.items() if name in ASKS}
    if found is None:
        answer = await dashboard_jobs.ask(given.controller, whole, asked)
    else:
        answer = await given.controller.ask_dashboard(found, whole, asked)
    return StreamingResponse(_pieces(answer.body), status_code=answer.status, headers={**answer.headers, **HEADERS})


async def _pieces(body: AsyncGenerator[bytes | None, None]) -> AsyncIterator[bytes]:
    async with aclosing(body):
        async for piece in body:
            yield piece or b""
