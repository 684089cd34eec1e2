"""Who asks, and what they are let see: dependencies of routes.

A route that takes `Looker`, `Seen` ... never has what its caller may not see. All of them run on the event loop: a
thread would look at the state while the loop changes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple, cast

from fastapi import Depends, Path, Request
from starlette.requests import HTTPConnection

from llmsched.api import results, workdirs
from llmsched.api.auth import require
from llmsched.api.home import TokenRecord
from llmsched.control import authorization
from llmsched.core.records import WorkloadState
from llmsched.core.state import State
from llmsched.executors.ray_user import RayUser
from llmsched.runtime.storage import Storage
from llmsched.spec import http_models


class Services(NamedTuple):
    """What the routes are given; `controller` is control.controller.Controller."""

    controller: Any
    uploads: workdirs.Uploads
    isolation: http_models.IsolationView = http_models.IsolationView()
    ray_user: RayUser | None = None  # whose files results and uploads are, where they are not ours
    check_storage: Callable[[str], None] = lambda place: None  # raises RequestError where results cannot lie

    @property
    def state(self) -> State:
        return cast(State, self.controller.state)

    @property
    def storage(self) -> Storage:
        return results.open_storage(self.controller.storage, self.ray_user)


def services(request: HTTPConnection) -> Services:
    return cast(Services, request.app.state.services)


async def given_services(request: HTTPConnection) -> Services:
    return services(request)


class Caller(NamedTuple):
    """Who asks, and what that person may see and change now."""

    token: TokenRecord
    permissions: authorization.Permissions

    @property
    def user(self) -> str:
        return self.token.user

    @property
    def role(self) -> str:
        return self.token.role


class Found(NamedTuple):
    """The workload that a path names, and who asks for it."""

    workload: WorkloadState
    who: Caller

    @property
    def id(self) -> str:
        return self.workload.workload.id

    def names(self, state: State) -> authorization.KnownNames:
        return authorization.KnownNames(state, self.who.permissions)


def allow(need: str) -> Callable[[Request], Awaitable[Caller]]:
    """Who asks, if the token's role may. `app.build` refuses to start with a route that depends on none of these, or on
    anything that would look at the state in a thread, while the loop changes it."""

    async def allowed(request: Request) -> Caller:
        return caller(request, need)

    allowed.need = need  # type: ignore[attr-defined]
    return allowed


def of_workload(need: str) -> Callable[[str, HTTPConnection], Awaitable[Found]]:
    """The same, of one workload: what may not be seen is not found."""

    async def allowed(name: Name, request: HTTPConnection) -> Found:
        who = caller(request, need)
        found = authorization.find(services(request).controller.state, name, who.permissions)
        if need == "change":
            authorization.check_change(found, who.permissions)
        return Found(found, who)

    allowed.need = need  # type: ignore[attr-defined]
    return allowed


def caller(request: HTTPConnection, need: str) -> Caller:
    token: TokenRecord = request.scope["llmsched.token"]
    require(token, need)
    person = authorization.Person(token.user, token.role)
    return Caller(token, authorization.Permissions(person, services(request).controller.state.configuration))


Name = Annotated[str, Path(max_length=200, description="newest run, or name@N", examples=["qwen", "qwen@2"])]
NodeName = Annotated[str, Path(max_length=300, description="name or id of a node", examples=["gpu-7"])]
Given = Annotated[Services, Depends(given_services)]
Looker = Annotated[Caller, Depends(allow("look"))]
Submitter = Annotated[Caller, Depends(allow("submit"))]
Operator = Annotated[Caller, Depends(allow("operate"))]
Seen = Annotated[Found, Depends(of_workload("see"))]
Changed = Annotated[Found, Depends(of_workload("change"))]
