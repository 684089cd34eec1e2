"""The registry of models: each run of a train workload that succeeded with a result is a version of that name's model.

Version N is run N, so a version never changes and numbers have gaps where runs failed. Nothing is kept beside the
journal: what is listed here is read from the state, and what was deleted from the storage is still listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from llmsched.control.lookup import spec_of
from llmsched.core import authorization
from llmsched.core.commands import NAMES_COMPARED
from llmsched.core.facts import Published, Submitted
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload, named_run
from llmsched.errors import RequestError
from llmsched.spec import http_models
from llmsched.spec.http_models import WORKDIR_PREFIX
from llmsched.spec.quantities import parse_model_source
from llmsched.store.tables import ArchiveQuery

Sees = Callable[[Workload], bool]
NEWEST = ArchiveQuery(200)
SHOWN = 10  # of the names or versions there are


def everybodys(workload: Workload) -> bool:
    return True


Ended = Callable[[ArchiveQuery], list[WorkloadState]]


def nothing(query: ArchiveQuery) -> list[WorkloadState]:
    return []


def versions(
    state: State, query: ArchiveQuery = NEWEST, ended: Ended = nothing, sees: Sees = everybodys
) -> list[http_models.ModelVersion]:
    """By name, the newest version first, as many as `query` asks for; of work that `sees` lets through. `ended` has
    those that have left the state."""
    here = [record for record in state.workloads.values() if _is_version(record, query.name) and sees(record.workload)]
    if query.after_run is not None:
        name, run = query.after_run
        here = [record for record in here if _place(record) > (name, -run)]
    records = sorted([*here, *ended(query._replace(models=True, parent=""))], key=_place)[: query.limit]
    published: dict[str, list[Published]] = {}
    for target in state.publications:
        endpoint = state.workloads.get(target)
        live = authorization.published_to(state, endpoint.workload) if endpoint and not endpoint.outcome else {}
        for publication in live.values():
            published.setdefault(publication.origin, []).append(publication)
    return [_view(record, published.get(record.workload.id, ())) for record in records]


def _place(record: WorkloadState) -> tuple[str, int]:
    return record.workload.name, -record.workload.run


def find(state: State, name: str, version: int | None = None, sees: Sees = everybodys) -> WorkloadState:
    """The newest version, or exactly that one. Raises RequestError (404) that names some of those there are."""
    made = (one for one in state.results(name) if _is_version(one, name) and sees(one.workload))
    found = []
    for record in made:
        if version in (None, record.workload.run):
            return record
        found.append(str(record.workload.run))
    if found:
        there = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise RequestError(
            f'model "{name}" has no version {version}; it has: {there}.', code="unknown_model", http_status=404
        )
    newest = islice(reversed(state.workloads.values()), NAMES_COMPARED)
    known = sorted({one.workload.name for one in newest if _is_version(one, None) and sees(one.workload)})
    raise RequestError(
        f'there is no model "{name}".',
        code="unknown_model",
        hint=f"There are: {', '.join(known[:SHOWN])}." if known else "A train workload that succeeds makes one.",
        http_status=404,
    )


def is_beginning(entry: object) -> bool:
    """Whether nothing of a workload's story was before it."""
    return isinstance(entry, Submitted) and not entry.replaces


def read_by(state: State, sources: Iterable[str], sees: Sees = everybodys) -> list[str]:
    """The ids of the runs that made the models named with model://. Raises RequestError (404)."""
    asked = [model for model in map(parse_model_source, sources) if model]
    return [find(state, model.name, model.version, sees).workload.id for model in asked]


def _is_version(record: WorkloadState, name: str | None) -> bool:
    workload = record.workload
    succeeded = (
        workload.kind == "train"
        and not workload.parent
        and record.outcome == "succeeded"
        and record.artifact is not None
    )
    return succeeded and name in (None, workload.name)


def _view(record: WorkloadState, published: Iterable[Published]) -> http_models.ModelVersion:
    workload = record.workload
    train: Mapping[str, Any] = spec_of(workload).get("train") or {}
    workdir = spec_of(workload).get("workdir") or ""
    return http_models.ModelVersion(
        name=workload.name,
        version=workload.run,
        source=f"model://{named_run(workload.name, workload.run)}",
        workload=workload.id,
        user=workload.user,
        made_at=record.finished_at or 0.0,
        artifact=record.artifact or "",
        metrics=dict(record.metrics),
        base_model=train.get("base_model"),
        loop=train.get("loop"),
        task=train.get("task") if train.get("base_model") else None,
        method=train.get("method") if train.get("base_model") else None,
        data=[dataset["path"] for dataset in train.get("datasets") or ()],
        made_from=list(workload.after),
        spec_sha256=hashlib.sha256(workload.parcel.encode()).hexdigest(),
        workdir_sha256=workdir.removeprefix(WORKDIR_PREFIX) if workdir.startswith(WORKDIR_PREFIX) else None,
        published=[
            http_models.PublishedView(to=each.target, kind=each.kind, name=each.name, at=each.at) for each in published
        ],
    )
