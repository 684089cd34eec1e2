"""The HTTP application: routes, behind the guard, with every error as JSON {code, message, where, hint}."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from llmsched import sanitize, versions
from llmsched.api import (
    bodies,
    by_hand,
    callers,
    dashboards,
    examples,
    key_usage,
    metrics,
    ray_jobs,
    results,
    routes,
    usage,
    workdirs,
)
from llmsched.api.auth import OPEN_PATHS, Guard, Tokens, error_body, error_headers
from llmsched.api.dashboard_place import DashboardPlace
from llmsched.api.home import refuse_in_home
from llmsched.api.rate import Rate
from llmsched.errors import Bug, ClusterError, LlmschedError, RequestError, SpecError
from llmsched.executors.ray_user import RayUser
from llmsched.runtime.storage import StorageError
from llmsched.spec import http_models
from llmsched.spec.quantities import PATTERN_WORDS

log = logging.getLogger("llmsched.api")
ROUTERS = (
    routes.router,
    by_hand.router,
    usage.router,
    key_usage.router,
    metrics.router,
    dashboards.router,
    ray_jobs.router,
)  # want a token
OF_WORKLOAD = ("/workloads/{name}", "/jobs/{submission_id}")  # a path with one of these is about one workload
SHOWN = 10  # of what is wrong with one request


def build(
    controller: Any,
    tokens: Tokens,
    *,
    isolation: http_models.IsolationView | None = None,
    ray_user: RayUser | None = None,
    home: Path | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """`hosts` and `origins` are allowed beside loopback names and no origin. Raises Bug for an unguarded route."""
    app = FastAPI(title="llmsched", version=versions.own(), openapi_url=None, docs_url=None, redoc_url=None)
    app.state.uploads = workdirs.Uploads(
        lambda: results.open_storage(controller.storage, ray_user),
        lambda: [record.workload.parcel for record in controller.state.workloads.values()],
    )
    is_real = home is not None and isolation is not None and isolation.mode  # else no work is told where results lie

    def check_storage(place: str) -> None:
        if place and is_real and home is not None:
            refuse_in_home(home, place)

    app.state.services = callers.Services(
        controller,
        app.state.uploads,
        isolation or http_models.IsolationView(),
        ray_user,
        check_storage,
    )
    app.state.tokens, app.state.dashboard = tokens, DashboardPlace(controller)
    app.state.stop, app.state.stop_everything = asyncio.Event(), False  # server.py waits for it
    every = every_route()
    app.openapi = lambda: examples.describe(app, every)  # type: ignore[method-assign]
    app.add_api_route("/openapi.json", lambda: JSONResponse(app.openapi()), include_in_schema=False)  # in a thread
    app.include_router(routes.open_router)
    for router in ROUTERS:
        app.include_router(router)
    for route in every:
        need_of(route)
    app.add_exception_handler(LlmschedError, _on_error)
    app.add_exception_handler(StorageError, _on_storage)
    app.add_exception_handler(PermissionError, _on_storage)  # of files: what we keep is ours, the rest is Ray's user's
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Guard, tokens=tokens, rate=Rate(lambda: _limits(controller)), hosts=hosts, origins=origins)
    return app


def _limits(controller: Any) -> tuple[float, int]:
    configuration = controller.state.configuration
    return configuration.requests_per_s, configuration.requests_burst


def guarded_routes() -> list[APIRoute | APIWebSocketRoute]:
    return [cast(APIRoute | APIWebSocketRoute, route) for router in ROUTERS for route in router.routes]


def every_route() -> list[Any]:
    return [*guarded_routes(), *routes.open_router.routes]


def need_of(route: Any) -> str | None:
    """What a route needs, a key of auth.MAY; None: nothing, it is open. Raises Bug when it does not say."""
    if not isinstance(route, APIRoute | APIWebSocketRoute):
        raise Bug(f"route {route} is not one that can be guarded.")
    if isinstance(route, APIRoute) and not isinstance(route, bodies.Route):
        raise Bug(f"route {route.path} would read a body in which a key stands twice.")
    for part in route.dependant.dependencies:
        if not inspect.iscoroutinefunction(part.call):
            raise Bug(f"route {route.path} would have {part.call} run in a thread, while the loop changes the state.")
    needs = [part.call.need for part in route.dependant.dependencies if hasattr(part.call, "need")]  # type: ignore[union-attr]
    if route.path in OPEN_PATHS and not needs:
        return None
    if len(needs) != 1:
        raise Bug(f"route {route.path} does not say who may use it.")
    if any(part in route.path for part in OF_WORKLOAD) != (needs[0] in ("see", "change")):
        raise Bug(f"route {route.path} does not look whose workload it is.")
    return str(needs[0])


def _respond(error: LlmschedError) -> JSONResponse:
    return JSONResponse(error_body(error).model_dump(), error.http_status, error_headers(error))


async def _on_error(request: HTTPConnection, error: Any) -> JSONResponse:
    if isinstance(error, Bug):
        log.error("%s %s: %s", request.scope.get("method", "websocket"), request.url.path, error)
    response = _respond(error)
    if isinstance(request, WebSocket):  # not accepted yet: what is wrong is found before
        await request.send_denial_response(response)
    return response


async def _on_storage(request: Request, error: Any) -> JSONResponse:
    return _respond(ClusterError(str(error), code="storage"))


async def _on_invalid(request: Request, error: Any) -> JSONResponse:
    said = [f"{'.'.join(str(part) for part in one['loc'])}: {_in_words(one)}" for one in error.errors()[:SHOWN]]
    hint = "What each route takes stands in /openapi.json, and in words in the contract, llmsched/api/README.md."
    return _respond(SpecError(sanitize.text("; ".join(said)), code="invalid_request", hint=hint))


def _in_words(flaw: Any) -> str:
    """What pydantic says, but for patterns, which are for machines."""
    pattern = (flaw.get("ctx") or {}).get("pattern")
    if flaw["type"] != "string_pattern_mismatch":
        return str(flaw["msg"])
    return f"expected {PATTERN_WORDS[pattern]}" if pattern in PATTERN_WORDS else "it has another form than is expected"


async def _on_http(request: Request, error: Any) -> JSONResponse:
    """FastAPI's own refusals; one that wraps an error of ours (a body that grew too large) is told as ours."""
    cause = error.__cause__
    if isinstance(cause, LlmschedError):
        return _respond(cause)
    code = {404: "unknown_route", 405: "method"}.get(error.status_code, "request")
    hint = (
        "The client and the controller may be of different versions."
        if error.status_code == 404
        else "Which routes there are, and what each takes, stands in /openapi.json."
    )
    return _respond(RequestError(f"{error.detail}.", code=code, hint=hint, http_status=error.status_code))


async def _on_bug(request: Request, error: Any) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _respond(Bug("the controller made a mistake; its log says more.", hint="Please report it."))
