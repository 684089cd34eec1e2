"""The route table of the gateway, as the state has it: which replicas answer for which model, with which adapters, and
which key reaches which of them.

A table is sent when it differs from the last one. The gateway keeps its last one while the controller is away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llmsched.control.authorization import Permissions, Person
from llmsched.control.dispatch import adapters_of
from llmsched.control.endpoint_names import model_id
from llmsched.control.lookup import spec_of
from llmsched.core.state import GangState, State, Status, WorkloadState
from llmsched.core.workload import attempt_name
from llmsched.errors import RequestError
from llmsched.executors.port import RouteTable

ANSWERING = (Status.RUNNING, Status.RESIZING)


class Routes:
    """Remembers what was sent. Versions grow over restarts because the epoch does."""

    def __init__(self, epoch: int) -> None:
        self._version = epoch * 1_000_000
        self._sent: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        self._looked_at: tuple[State, int, list[dict[str, Any]]] | None = None

    def forget(self) -> None:
        """The gateway may have lost its table: the next one is sent in any case."""
        self._sent = self._looked_at = None

    def changed(self, state: State, tokens: Sequence[dict[str, Any]]) -> RouteTable | None:
        """`tokens`: {"id", "sha256", "user", "role", "expires"} of everybody who may ask at all."""
        seen, self._looked_at = self._looked_at, (state, state.version, list(tokens))
        if seen is not None and seen[0] is state and seen[1:] == self._looked_at[1:]:
            return None
        wanted = (models_of(state), keys_of(state, tokens))
        if wanted == self._sent:
            return None
        self._sent = wanted
        self._version += 1
        return RouteTable(self._version, *wanted)


def keys_of(state: State, tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each token reaches: the endpoints whose workload its user may see."""
    reached: dict[tuple[str, str], list[str]] = {}
    for token in tokens:
        who = token["user"], token["role"]
        if who not in reached:
            permissions = Permissions(Person(*who), state.configuration)
            reached[who] = [name for name, found in _endpoints(state) if permissions.sees(found.workload)]
    return [
        {
            "id": token["id"],
            "sha256": token["sha256"],
            "models": reached[token["user"], token["role"]],
            "expires": token.get("expires"),
        }
        for token in tokens
    ]


def _endpoints(state: State) -> Iterator[tuple[str, WorkloadState]]:
    """By the id that requests use; of two with one id, the first has it."""
    taken: dict[str, None] = {}
    for workload_id in state.serving:
        record = state.workloads[workload_id]
        name = model_id(record.workload)
        if name not in taken:
            taken[name] = None
            yield name, record


def models_of(state: State) -> dict[str, dict[str, Any]]:
    """Model id -> how to reach it."""
    models = {}
    for name, record in _endpoints(state):
        workload, spec = record.workload, spec_of(record.workload)
        serve = spec.get("serve") or {}
        replicas = [state.gangs[gang] for gang in record.gangs if state.gangs[gang].status in ANSWERING]
        models[name] = {
            "workload": workload.id,
            "name": workload.name,
            "task": serve.get("task") or "",
            "kind": "model" if serve.get("model") else "app",
            "routing": serve.get("routing") or "power-of-two",
            "max_ongoing": spec.get("max_ongoing_requests") or 32,
            "timeout_s": spec.get("request_timeout") or 600.0,
            "calls": list(serve.get("calls") or ()),
            "replicas": [{"app": attempt_name(gang.id, gang.attempt)} for gang in replicas],
            "adapters": _adapters(state, workload.id, spec, replicas),
        }
    return models


def _adapters(state: State, workload_id: str, spec: dict[str, Any], replicas: list[GangState]) -> dict[str, str]:
    """Those that no replica has refused to load."""
    try:
        wanted = adapters_of(state, state.workloads[workload_id].workload, spec)
    except RequestError:
        return {}  # one comes from a run that has no result yet: nothing of it answers either
    refused = {name for gang in replicas for name in gang.adapter_errors}
    return {name: uri for name, uri in sorted(wanted.items()) if name not in refused}
