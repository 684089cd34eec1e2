"""What work asks about the endpoints that its spec names in `calls`, and does to them with the rights of its owner.

A question may come twice, so who rolls back says what it wants to get away from: where that is gone already, nothing is
done. Start reading at `do`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llmsched import sanitize
from llmsched.control import requests
from llmsched.control.authorization import KnownNames, Permissions, Person, check_change, find
from llmsched.core import authorization
from llmsched.core.records import WorkloadState
from llmsched.core.render import text
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Workload
from llmsched.errors import RequestError

VERBS = ("endpoint", "scale", "rollback")
Request = Callable[[requests.UserRequest], Awaitable[Any]]


async def do(
    state: Callable[[], State], request: Request, parent: Workload, spec: Mapping[str, Any], asked: Mapping[str, Any]
) -> Any:
    """`asked`: {"ask": one of VERBS, "endpoint": name, "replicas" | "away_from", "adapter"}. Raises LlmschedError."""
    name, owner = asked.get("endpoint"), Person(parent.user)
    if name not in (spec.get("calls") or ()):
        raise RequestError(
            f"{parent.id} may not ask for anything of {sanitize.line(name, 60)!r}.",
            code="beyond_parent",
            hint=f"Name it in calls of {parent.name}.",
        )
    permissions = Permissions(owner, state().configuration)
    record = find(state(), str(name), permissions)
    if asked["ask"] == "endpoint":
        return _view(state(), record, KnownNames(state(), permissions, parent.id))
    check_change(record, permissions)
    if asked["ask"] == "scale":
        replicas = asked.get("replicas")
        if type(replicas) is not int or replicas < 0:
            raise RequestError('"replicas": expected a whole number.', code="bad_ask")
        await request(requests.Rescale(record.workload.id, replicas, parent.user))
        return None
    adapter, away_from = str(asked.get("adapter") or ""), asked.get("away_from")
    now = _adapters(state(), record).get(adapter) if adapter else record.revision + 1
    if now == away_from or now is None:  # None: it says itself that there is no such adapter
        await request(requests.RollingBack(record.workload.id, owner, None, adapter))
    return None


def _view(state: State, record: WorkloadState, names: KnownNames) -> dict[str, Any]:
    ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
    return {
        "name": record.workload.name,
        "phase": record.phase,
        "message": text(record.message, names),
        "revision": record.revision + 1,
        "replicas": sum(state.gangs[name].status is Status.RUNNING for name in record.gangs),
        "wanted": record.wanted_replicas,
        "most": record.workload.max_replicas,
        "ongoing": ongoing,
        "queued": queued,
        "adapters": _adapters(state, record),
    }


def _adapters(state: State, record: WorkloadState) -> dict[str, str]:
    """Of each that was published which run made it."""
    there = authorization.published_to(state, record.workload)
    return {name: one.origin for name, one in there.items() if one.kind == "adapter"}
