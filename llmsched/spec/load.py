"""A spec file, or the JSON of one workload -> models. Everything that is wrong is said at once, in one SpecError.

documents -> kind -> model -> what does not work yet -> rules over the whole file
"""

from __future__ import annotations

from typing import Any

from llmsched.errors import Problem, SpecError
from llmsched.spec import document as documents
from llmsched.spec import other_words, support, validation
from llmsched.spec.batch import BatchSpec
from llmsched.spec.document import Document
from llmsched.spec.ray import RaySpec
from llmsched.spec.serve import ServeSpec
from llmsched.spec.task import TaskSpec
from llmsched.spec.train import TrainSpec
from llmsched.spec.tune import TuneSpec
from llmsched.spec.workload import WorkloadSpec

KINDS: dict[str, type[WorkloadSpec]] = {
    "train": TrainSpec,
    "serve": ServeSpec,
    "batch": BatchSpec,
    "tune": TuneSpec,
    "task": TaskSpec,
    "ray": RaySpec,
}


_SKYPILOT_HINT = (
    "This reads like a task of SkyPilot; llmsched's own words are near. Write kind: task, and what follows."
)


def load(text: str | bytes, filename: str = "spec.yaml") -> list[WorkloadSpec]:
    """The workloads of a YAML (or JSON) text, in order. Raises SpecError with every problem, each with its place."""
    parsed, problems = documents.parse(text, filename)
    specs: list[WorkloadSpec] = []
    first: dict[str, str] = {}
    for each in parsed:
        if len(problems) >= validation.MOST:
            problems.append(Problem(each.where(()), f"not looked at, after {len(problems)} problems before it"))
            break
        spec, its_problems = _workload(each)
        problems += its_problems
        specs += [spec] if spec else []
        name = each.data.get("name") if isinstance(each.data, dict) else None
        if isinstance(name, str):
            if name in first:
                problems.append(Problem(each.where(("name",)), f'the name "{name}" stands at {first[name]} already'))
            first.setdefault(name, each.where(("name",)))
    if not parsed and not problems:
        problems.append(Problem(f"{filename}:1:1", "there is no workload in it", "`llmsched init train` shows one."))
    if problems:
        raise SpecError.of(problems)
    return specs


def load_json(data: Any, where: str = "$") -> WorkloadSpec:
    """One workload from JSON data, such as `spec.dump()`. Raises SpecError; its places are JSON paths."""
    document, problems = documents.from_json(data, where)
    if not problems:
        spec, problems = _workload(document)
        if spec and not problems:
            return spec
    raise SpecError.of(problems)


def _workload(document: Document) -> tuple[WorkloadSpec | None, list[Problem]]:
    if not isinstance(document.data, dict):
        return validation.validate(WorkloadSpec, "a workload", document)
    kind = document.data.get("kind")
    if kind is None and other_words.is_skypilot(document.data):
        _, problems = validation.validate(TaskSpec, "a task workload", document)
        return None, [_unknown_kind(document, kind), *(one for one in problems if one.code != "missing_key")]
    if not isinstance(kind, str) or kind not in KINDS:
        return None, [_unknown_kind(document, kind)]
    spec, problems = validation.validate(KINDS[kind], f"a {kind} workload", document)
    return spec, validation.in_order(problems, support.not_yet(kind, document))


def _unknown_kind(document: Document, kind: Any) -> Problem:
    kinds = ", ".join(KINDS)
    if kind is None:
        sections = [name for name in KINDS if name in document.data]
        if other_words.is_skypilot(document.data):
            return Problem(document.where(()), '"kind" is missing', _SKYPILOT_HINT, "missing_key")
        hint = f'Add "kind: {sections[0]}".' if len(sections) == 1 else f"One of: {kinds}."
        return Problem(document.where(()), '"kind" is missing', hint, "missing_key")
    close = validation.nearest(kind, KINDS) if isinstance(kind, str) else None
    message = f'"kind": expected one of {kinds}, got "{str(kind)[:40]}"'
    return Problem(document.where(("kind",)), message, f'Did you mean "{close}"?' if close else "")
