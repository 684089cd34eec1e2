"""Endpoints that work may ask: `calls` of a spec. Each run has a key of its own, which reaches those and no others, and
no longer than the run lasts.

The gateway knows keys by their sha256 alone. A key is derived, not kept: an order that is made again after a restart
has the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from llmsched.control import prefills
from llmsched.control.authorization import Permissions, Person
from llmsched.control.endpoint_names import model_id
from llmsched.control.lookup import spec_of
from llmsched.control.vault import Secrets
from llmsched.core.decisions import Decision, Launch
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import RequestError

KEY = "LLMSCHED_CALLS_KEY"  # of the variables of an attempt; where it answers: runtime/calls_door.py
CLIENTS_KEY = "OPENAI_API_KEY"  # what stock clients read

# The same for what is not there and what may not be seen: who asks is not to learn which.
_NOT_SEEN = (
    "Apply it first, or in the same file. If somebody else runs it, ask for a role in its queue: endpoints of queues "
    "without one are not seen."
)


def envs_of(workload: Workload, secrets: Secrets) -> dict[str, str]:
    """For an attempt. Raises StoreError."""
    key = _key_of(workload, secrets)
    return {KEY: key, CLIENTS_KEY: key}


def _key_of(workload: Workload, secrets: Secrets) -> str:
    return f"call_{secrets.derived(f'calls of {workload.id}')}"


def check(state: State, workload: Workload, file: Sequence[Workload], permissions: Permissions) -> None:
    """Raises RequestError for a call to what is no endpoint that its owner may see, and for endpoints that call in a
    circle."""
    wanted = _wanted(workload)
    if not wanted:
        return
    known = _endpoints(state, file, permissions)
    for name in wanted:
        if name not in known:
            near = [one.name for one in known.values() if model_id(one) == name] or get_close_matches(name, known, 1)
            raise RequestError(
                f'there is no endpoint "{name}" that {workload.name} could call.',
                code="unknown_endpoint",
                hint=f'Did you mean "{near[0]}"?' if near else _NOT_SEEN,
            )
        if prefills.reads_for_others(known[name]):
            raise RequestError(
                f'"{name}" reads prompts for other endpoints (serve.role: prefill), and answers nobody itself.',
                code="unknown_endpoint",
                hint="Call the endpoint that names it in serve.prefill.",
            )
    if workload.kind == "serve" and (circle := _circle(workload.name, known | {workload.name: workload})):
        raise RequestError(
            f"endpoints call in a circle: {' -> '.join(circle)}.",
            code="circle_of_calls",
            hint="A request to one of them might wait for itself: take one call out.",
        )


def _wanted(workload: Workload) -> list[str]:
    if '"calls":[]' in workload.parcel:  # canonical JSON; most call nobody
        return []
    return [*(spec_of(workload).get("calls") or ())]


def _endpoints(state: State, file: Iterable[Workload], permissions: Permissions) -> dict[str, Workload]:
    live = (state.workloads[name].workload for name in state.serving)
    seen = {one.name: one for one in live if permissions.sees(one)}
    return seen | {one.name: one for one in file if one.kind == "serve"}


def _circle(start: str, endpoints: Mapping[str, Workload]) -> list[str]:
    """From `start` back to it, if calls lead there."""
    came_from: dict[str, str] = {}
    ahead = [start]
    while ahead:
        name = ahead.pop()
        for following in _wanted(endpoints[name]) if name in endpoints else ():
            if following == start:
                path = [start, name]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1] if name != start else [start, start]
            if following not in came_from:
                came_from[following] = name
                ahead.append(following)
    return []


class Callers:
    """The runs that have begun and may call, for the table of routes; kept in step with what is launched."""

    def __init__(self) -> None:
        self._of_state: State | None = None
        self._known: dict[str, None] = {}

    def keys(
        self, state: State, endpoints: Mapping[str, Workload], secrets: Secrets, decisions: Sequence[Decision]
    ) -> list[dict[str, Any]]:
        """`endpoints`: by the name that requests use. `decisions`: those of this round. Raises StoreError."""
        if self._of_state is not state:
            self._of_state, self._known = state, {}
            gangs = [*state.holding]
        else:
            gangs = [each.gang for each in decisions if isinstance(each, Launch)]
        for name in gangs:
            gang = state.gangs.get(name)
            if gang is not None and _wanted(gang.spec):
                self._known[gang.workload_id] = None
        rows = []
        for name in [*self._known]:
            record = state.workloads.get(name)
            if record is None or record.outcome:
                del self._known[name]
                continue
            workload, wanted = record.workload, set(_wanted(record.workload))
            permissions = Permissions(Person(workload.user), state.configuration)
            rows.append(
                {
                    "id": f"calls of {name}",
                    "sha256": hashlib.sha256(_key_of(workload, secrets).encode()).hexdigest(),
                    "models": [
                        model for model, one in endpoints.items() if one.name in wanted and permissions.sees(one)
                    ],
                    "expires": None,
                    "user": workload.user,
                }
            )
        return rows
