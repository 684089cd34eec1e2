"""The route table of the gateway, as the state has it: which replicas answer for which model, with which adapters, and
which key reaches which of them.

A table is sent when it differs from the last one. The gateway keeps its last one while the controller is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmsched.control import prefills
from llmsched.control.authorization import Permissions, Person
from llmsched.control.calls import Callers
from llmsched.control.dispatch import adapters_of, is_result
from llmsched.control.endpoint_names import model_id
from llmsched.control.lookup import spec_of
from llmsched.control.readers import ANSWERING, kv_of
from llmsched.control.roles import CALLER
from llmsched.control.vault import NoSecrets, Secrets
from llmsched.core.decisions import Decision
from llmsched.core.state import GangState, State, WorkloadState
from llmsched.core.workload import Workload, attempt_name
from llmsched.errors import RequestError
from llmsched.executors.port import RouteTable
from llmsched.spec.endpoint_keys import Terms


class Endpoint(NamedTuple):
    """What the table says of one endpoint, as of a version of the state; `reads` results of other workloads."""

    name: str  # by which requests ask for it
    row: dict[str, Any]
    as_of: int
    workload: Workload
    reads: bool


class Routes:
    """Remembers what was sent, and works out again what has changed. Versions grow over restarts: the epoch does."""

    def __init__(self, epoch: int, secrets: Secrets | None = None) -> None:
        self._version = epoch * 1_000_000
        self._secrets = secrets or NoSecrets()
        self._sent: tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]] | None = None
        self._looked_at: tuple[State, int, list[dict[str, Any]]] | None = None
        self._known: dict[str, Endpoint] = {}  # by workload
        self._failed: dict[str, None] = {}  # endpoints that have failed for good, and are in the state
        self._of_state: State | None = None  # of which they are
        self._keys: tuple[Any, list[dict[str, Any]]] = None, []
        self._callers = Callers()

    def forget(self) -> None:
        """The gateway may have lost its table: the next one is sent in any case."""
        self._sent = self._looked_at = None

    def changed(
        self, state: State, tokens: Sequence[dict[str, Any]], decisions: Sequence[Decision] = ()
    ) -> RouteTable | None:
        """`tokens`: {"id", "sha256", "user", "role", "expires", "models"} and `Terms` of everybody who may ask at all;
        besides, work that has begun may ask what its `calls` name. `decisions`: those of this round."""
        seen, self._looked_at = self._looked_at, (state, state.version, list(tokens))
        if seen is not None and seen[0] is state and seen[1:] == self._looked_at[1:]:
            return None
        endpoints = self._endpoints(state)
        workloads = {name: found.workload for name, found in endpoints.items()}
        failed = {model_id(one): one for one in (state.workloads[each].workload for each in self._failed)}
        failed = {name: one for name, one in failed.items() if name not in workloads}
        asked = {**failed, **workloads}  # who may ask for what has failed is told that
        keys = [
            *self._keys_of(state, asked, tokens),
            *self._callers.keys(state, asked, self._secrets, decisions),
        ]
        models = {name: _with_prefill(found, workloads) for name, found in endpoints.items()}
        wanted = models, keys, {name: one.name for name, one in failed.items()}
        if wanted == self._sent:
            return None
        self._sent = wanted
        self._version += 1
        return RouteTable(self._version, *wanted)

    def _endpoints(self, state: State) -> dict[str, Endpoint]:
        """By the id that requests use; of two with one id, the first has it."""
        known, over = (self._known, [*self._failed, *self._known]) if self._of_state is state else ({}, state.ended)
        self._of_state, self._known = state, {}
        self._failed = {each: None for each in over if _has_failed(state.workloads.get(each))}
        by_name: dict[str, Endpoint] = {}
        for workload_id in state.serving:
            found = known.get(workload_id)
            if found is None or found.reads or found.as_of < state.touched.since(workload_id):
                found = endpoint_of(state, state.workloads[workload_id])
            self._known[workload_id] = found
            by_name.setdefault(found.name, found)
        return by_name

    def _keys_of(
        self, state: State, endpoints: Mapping[str, Workload], tokens: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        owners = [(name, found.user, found.queue) for name, found in endpoints.items()]
        depends_on = (owners, state.configuration.queues, list(tokens))
        if depends_on != self._keys[0]:
            self._keys = depends_on, keys_of(state, endpoints, tokens)
        return self._keys[1]


def keys_of(state: State, endpoints: Mapping[str, Workload], tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each token reaches: the endpoints whose workload its user may see; a caller's those that it names, by their
    own name or that of their model."""
    reached: dict[tuple[str, str], list[str]] = {}
    for token in tokens:
        who = token["user"], token["role"]
        if who not in reached:
            permissions = Permissions(Person(*who), state.configuration)
            reached[who] = [name for name, workload in endpoints.items() if permissions.sees(workload)]
    return [
        {
            "id": token["id"],
            "sha256": token["sha256"],
            "models": reached[token["user"], token["role"]]
            if token["role"] != CALLER
            else [name for name, workload in endpoints.items() if {name, workload.name} & {*token["models"]}],
            "expires": token.get("expires"),
            "user": token["user"],
            **{name: token[name] for name in Terms._fields if token.get(name) is not None},
        }
        for token in tokens
    ]


def _has_failed(record: WorkloadState | None) -> bool:
    return record is not None and record.workload.kind == "serve" and record.outcome == "failed"


def endpoint_of(state: State, record: WorkloadState) -> Endpoint:
    """How to reach it."""
    workload, spec = record.workload, spec_of(record.workload)
    serve = spec.get("serve") or {}
    replicas = [gang for name in record.gangs if (gang := state.gangs[name]).status in ANSWERING]
    row = {
        "workload": workload.id,
        "name": workload.name,
        "task": serve.get("task") or "",
        "kind": "model" if serve.get("model") else "app",
        "routing": serve.get("routing") or "power-of-two",
        "max_ongoing": spec.get("max_ongoing_requests") or 32,
        "timeout_s": spec.get("request_timeout") or 600.0,
        "hold_s": spec.get("hold_timeout", 120.0),
        "replicas": [_replica(state, gang) for gang in replicas],
        **_adapters(state, workload.id, spec, replicas),
        **({"role": serve["role"]} if serve.get("role") else {}),
    }
    reads = any(is_result(each["source"]) for each in serve.get("adapters") or ())
    return Endpoint(model_id(workload), row, state.touched.since(workload.id), workload, reads)


def _with_prefill(found: Endpoint, endpoints: Mapping[str, Workload]) -> dict[str, Any]:
    partner = prefills.partner(found.workload, endpoints.values())
    return found.row | partner if partner else found.row


def _replica(state: State, gang: GangState) -> dict[str, Any]:
    """Where it answers, what makes its latencies those of others, and its keys and values."""
    model = (spec_of(gang.spec).get("serve") or {}).get("model") or {}
    return {
        "app": attempt_name(gang.id, gang.attempt),
        "model": gang.model or model.get("source") or "",
        "flavor": gang.flavor or "",
        **({"kv": kv} if (kv := kv_of(state, gang)) else {}),
    }


def _adapters(state: State, workload_id: str, spec: dict[str, Any], replicas: list[GangState]) -> dict[str, Any]:
    """Those that answer, and those that a replica has refused to load, with why: who asks for one is told."""
    try:
        wanted = adapters_of(state, state.workloads[workload_id].workload, spec)
    except RequestError:
        return {"adapters": {}}  # one comes from a run that has no result yet: nothing of it answers either
    refused = {name: why for gang in replicas for name, why in sorted(gang.adapter_errors.items()) if name in wanted}
    loads = {name: uri for name, uri in sorted(wanted.items()) if name not in refused}
    return {"adapters": loads, **({"refused": refused} if refused else {})}
