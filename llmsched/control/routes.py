"""The route table of the gateway, as the state has it: which replicas answer for which model, with which adapters.

A table is sent when it differs from the last one. The gateway keeps its last one while the controller is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmsched.control.dispatch import adapters_of, spec_of
from llmsched.core.state import GangState, State, Status
from llmsched.core.workload import attempt_name
from llmsched.errors import RequestError
from llmsched.executors.port import RouteTable

ANSWERING = (Status.RUNNING, Status.RESIZING)


class Routes:
    """Remembers what was sent. Versions grow over restarts because the epoch does."""

    def __init__(self, epoch: int) -> None:
        self._version = epoch * 1_000_000
        self._sent: tuple[dict[str, Any], list[dict[str, Any]]] | None = None

    def forget(self) -> None:
        """The gateway may have lost its table: the next one is sent in any case."""
        self._sent = None

    def changed(self, state: State, keys: Sequence[dict[str, Any]]) -> RouteTable | None:
        wanted = (models_of(state), list(keys))
        if wanted == self._sent:
            return None
        self._sent = wanted
        self._version += 1
        return RouteTable(self._version, *wanted)


def models_of(state: State) -> dict[str, dict[str, Any]]:
    """Model id -> how to reach it. Of two workloads with one id the later submitted has it."""
    models = {}
    for workload_id in state.serving:
        record = state.workloads[workload_id]
        workload, spec = record.workload, spec_of(record.workload)
        serve = spec.get("serve") or {}
        model = serve.get("model")
        model_id = (model or {}).get("id") or workload.name
        replicas = [state.gangs[name] for name in record.gangs if state.gangs[name].status in ANSWERING]
        models[model_id] = {
            "workload": workload.id,
            "task": serve.get("task") or "",
            "kind": "model" if model else "app",
            "routing": serve.get("routing") or "power-of-two",
            "max_ongoing": spec.get("max_ongoing_requests") or 32,
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
