"""Whether what a spec reads of other runs can be what it takes it for: a model, of the task that it is served for.

Asked before anything runs: else it would show when the other run has ended, hours of GPUs later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmsched.control.authorization import Permissions
from llmsched.control.lookup import newest_run, spec_of
from llmsched.core.state import State
from llmsched.core.workload import Workload, named_run
from llmsched.errors import RequestError
from llmsched.spec.quantities import RunSource, parse_model_source, parse_run_source

# What any of these has learnt lies in a body that makes vectors of texts.
_OF_TEXTS = ("masked-lm", "sequence-classification", "token-classification", "question-answering")


def check(state: State, workload: Workload, file: Sequence[Workload], permissions: Permissions) -> None:
    """Raises RequestError for a result that never comes, is no model, or is one of another task. What is not known, or
    may not be seen, is refused elsewhere."""
    spec = spec_of(workload)
    for where, source, task in _read(spec):
        asked = _asked(source)
        if asked is None:
            continue
        maker = _maker(state, asked, file, permissions)
        if maker is None or maker.id == workload.id:
            continue
        _check_it_ends(workload, where, source, maker)
        _check_best(workload, source, asked, maker)
        if where.endswith("input.path") or ".datasets" in where:
            _check_rows(workload, where, source, maker)
        else:
            _check_model(workload, where, source, maker, task)


def _read(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """(field, source, the task that the model there is to answer; None: any)."""
    serve, batch, tune = spec.get("serve") or {}, spec.get("batch") or {}, spec.get("tune") or {}
    if serve.get("model"):
        yield "serve.model.source", serve["model"]["source"], serve["task"]
    for place, each in enumerate(serve.get("adapters") or ()):
        yield f"serve.adapters.{place}.source", each["source"], serve["task"]
    if batch:
        yield "batch.input.path", batch["input"]["path"], None
        if batch.get("model"):
            yield "batch.model", batch["model"], batch["task"]
    for before, train in (("train", spec.get("train") or {}), ("tune.train", tune.get("train") or {})):
        for name in ("base_model", "teacher"):
            if train.get(name):
                yield f"{before}.{name}", train[name], None
        for place, each in enumerate(train.get("datasets") or ()):
            yield f"{before}.datasets.{place}.path", each["path"], None


def _asked(source: str) -> RunSource | None:
    model = parse_model_source(source)
    return RunSource(model.name, model.version, False) if model else parse_run_source(source)


def _maker(state: State, asked: RunSource, file: Sequence[Workload], permissions: Permissions) -> Workload | None:
    """Whose result it is: of the file, or of before."""
    mine = next((one for one in file if one.name == asked.name and asked.run in (None, one.run)), None)
    record = newest_run(state, asked.name if asked.run is None else named_run(asked.name, asked.run))
    there = record.workload if record is not None and permissions.sees(record.workload) else None
    return mine or there


def _check_it_ends(workload: Workload, where: str, source: str, maker: Workload) -> None:
    if maker.kind == "serve" or (spec_of(maker).get("batch") or {}).get("follow"):
        what = "an endpoint" if maker.kind == "serve" else "a batch that follows its input"
        raise RequestError(
            f"{where}: {maker.name} is {what}, which has no result: {workload.name} would wait for {source} for ever.",
            code="wrong_result",
            hint="Name the run that made the model."
            if maker.kind == "serve"
            else f"Name the folder that {maker.name} writes (batch.output).",
        )


def _check_best(workload: Workload, source: str, asked: RunSource, maker: Workload) -> None:
    if asked.best and maker.kind != "tune":
        raise RequestError(
            f"{workload.name} reads {source}, and {asked.name} is no search: it has no trials to choose from.",
            code="no_trials",
            hint=f"Its result is run://{asked.name}; train.evaluation.best makes that its best evaluation's.",
        )


def _check_rows(workload: Workload, where: str, source: str, maker: Workload) -> None:
    if _trained(maker):
        raise RequestError(
            f"{where}: {source} is the model that {maker.name} trains, and no rows.",
            code="wrong_result",
            hint="Name a data set, or the result of a batch or a task.",
        )


def _check_model(workload: Workload, where: str, source: str, maker: Workload, task: str | None) -> None:
    if maker.kind == "batch":
        raise RequestError(
            f"{where}: {source} is the answers of a batch, {maker.name}, and no model.",
            code="wrong_result",
            hint="Name the run that trained the model.",
        )
    learnt = _trained(maker)
    if not task or not learnt or learnt == task or (task == "feature-extraction" and learnt in _OF_TEXTS):
        return
    raise RequestError(
        f"{where}: {maker.name} trains {learnt}, and {workload.name} would ask its model for {task}.",
        code="wrong_result",
        hint=f"Write task: {learnt} in {workload.name}, or train: {{task: {task}}} in {maker.name}.",
    )


def _trained(maker: Workload) -> str | None:
    """The task that our own training teaches a model; None: nobody can say, or it is no such training."""
    spec = spec_of(maker)
    tune = spec.get("tune") or {}
    train = spec.get("train") or tune.get("train") or {}
    known = train.get("base_model") and "train.task" not in (tune.get("space") or {})
    return str(train["task"]) if known else None
