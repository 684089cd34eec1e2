"""The registry of models: each run of a train workload that succeeded with a result is a version of that name's model.

Version N is run N, so a version never changes and numbers have gaps where runs failed. Nothing is kept beside the
journal: what is listed here is read from the state, and what was deleted from the storage is still listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmsched.control.lookup import spec_of
from llmsched.core.facts import Published
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import RequestError
from llmsched.spec import http_models
from llmsched.spec.http_models import WORKDIR_PREFIX
from llmsched.spec.quantities import parse_model_source

Sees = Callable[[Workload], bool]


def everybodys(workload: Workload) -> bool:
    return True


def versions(state: State, name: str | None = None, sees: Sees = everybodys) -> list[http_models.ModelVersion]:
    """By name, the newest version first; of one model only when asked; of work that `sees` lets through."""
    records = [record for record in state.workloads.values() if _is_version(record, name) and sees(record.workload)]
    records.sort(key=lambda record: (record.workload.name, -record.workload.run))
    published: dict[str, list[Published]] = {}
    for by_name in state.publications.values():
        for publication in by_name.values():
            published.setdefault(publication.origin, []).append(publication)
    return [_view(record, published.get(record.workload.id, ())) for record in records]


def find(state: State, name: str, version: int | None = None, sees: Sees = everybodys) -> WorkloadState:
    """The newest version, or exactly that one. Raises RequestError (404) that names those there are."""
    models = [record for record in state.workloads.values() if _is_version(record, None) and sees(record.workload)]
    versions_of_it = [record for record in models if record.workload.name == name]
    chosen = [record for record in versions_of_it if version in (None, record.workload.run)]
    if chosen:
        return max(chosen, key=lambda record: record.workload.run)
    if versions_of_it:
        there = ", ".join(str(record.workload.run) for record in versions_of_it)
        raise RequestError(
            f'model "{name}" has no version {version}; it has: {there}.', code="unknown_model", http_status=404
        )
    known = sorted({record.workload.name for record in models})
    raise RequestError(
        f'there is no model "{name}".',
        code="unknown_model",
        hint=f"There are: {', '.join(known[:10])}." if known else "A train workload that succeeds makes one.",
        http_status=404,
    )


def read_by(state: State, sources: Iterable[str], sees: Sees = everybodys) -> list[str]:
    """The ids of the runs that made the models named with model://. Raises RequestError (404)."""
    asked = [model for model in map(parse_model_source, sources) if model]
    return [find(state, model.name, model.version, sees).workload.id for model in asked]


def _is_version(record: WorkloadState, name: str | None) -> bool:
    workload = record.workload
    succeeded = workload.kind == "train" and record.outcome == "succeeded" and record.artifact is not None
    return succeeded and name in (None, workload.name)


def _view(record: WorkloadState, published: Iterable[Published]) -> http_models.ModelVersion:
    workload = record.workload
    train: Mapping[str, Any] = spec_of(workload).get("train") or {}
    workdir = spec_of(workload).get("workdir") or ""
    return http_models.ModelVersion(
        name=workload.name,
        version=workload.run,
        source=f"model://{workload.name}@{workload.run}",
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
