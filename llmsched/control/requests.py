"""What users ask, one by one: a spec or a name becomes a command, the core checks it, its fact is applied at once.

So the second of two requests sees what the first did. Nothing is answered from here: the loop commits first. A file of
several workloads is taken whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from llmsched.control import vault
from llmsched.control.dispatch import newest_run
from llmsched.core import commands
from llmsched.core.facts import Fact
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import LlmschedError, NotAllowed, RequestError
from llmsched.spec import wire
from llmsched.spec.cluster import ClusterSpec
from llmsched.spec.compile import compile_configuration, compile_workload, parcel_of, workload_id
from llmsched.spec.diff import diff_parcels
from llmsched.spec.workload import WorkloadSpec

STATUS_OF_CODE = {"unknown_workload": 404, "over_limit": 429}


class Torn(Exception):
    """A request was refused after part of it was applied: the state must be folded again. `error` is the answer."""

    def __init__(self, error: LlmschedError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Submission:
    specs: Sequence[WorkloadSpec]
    user: str
    again: bool = False
    key: str | None = None  # Idempotency-Key

    def digest(self) -> str:
        """The same request again has the same; of any other it differs."""
        text = json.dumps([self.again, [parcel_of(spec) for spec in self.specs]])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Cancellation:
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class Rescale:
    name: str
    size: int
    by: str


@dataclass(frozen=True, slots=True)
class Reconfiguration:
    spec: ClusterSpec
    by: str


Draft = tuple[Workload, WorkloadState | None]
UserRequest = Submission | Cancellation | Rescale | Reconfiguration


def accept(state: State, request: UserRequest, at: float) -> tuple[Any, list[Fact]]:
    """(the answer, the facts, which are applied). Raises RequestError with the state as it was, or Torn."""
    match request:
        case Submission():
            return _submit(state, request, at)
        case Cancellation():
            target = find(state, request.name).workload.id
            return None, _applied(state, commands.Cancel(at, target, request.by))
        case Rescale():
            target = find(state, request.name).workload.id
            return None, _applied(state, commands.ScaleTo(at, target, request.size))
        case Reconfiguration():
            configuration = compile_configuration(request.spec, state.configuration.version + 1)
            return None, _applied(state, commands.Configure(at, configuration))


def find(state: State, name: str) -> WorkloadState:
    """The newest run of that name, or exactly the run that is named. Raises RequestError (404)."""
    found = newest_run(state, name)
    if found is None:
        raise RequestError(
            f'there is no workload "{name}".',
            code="unknown_workload",
            hint="llmsched status lists them.",
            http_status=404,
        )
    return found


def _submit(state: State, request: Submission, at: float) -> tuple[list[wire.Applied], list[Fact]]:
    drafts = draft(state, request.specs, request.user, again=request.again)
    mine = {workload.id for workload, _ in drafts}
    changed = [(workload, known) for workload, known in drafts if not is_same(workload, known)]
    for workload, _ in changed:  # all of them first, so that a file is refused before any of it is applied
        others = tuple(name for name in workload.after if name not in mine)
        checked(state, commands.Submit(at, replace(workload, after=others)))
    facts: list[Fact] = []
    outcomes: dict[str, wire.Applied] = {}
    for workload, known in sorted_by_need(changed):
        before = known.workload.parcel if known is not None else ""
        try:
            facts += _applied(state, commands.Submit(at, workload))
        except RequestError as error:
            raise Torn(error) if facts else error from None
        outcomes[workload.id] = _answer(
            state, workload, "changed" if known else "created", diff_parcels(before, workload.parcel) if known else []
        )
    return [outcomes.get(workload.id) or _answer(state, workload, "unchanged", []) for workload, _ in drafts], facts


def _answer(
    state: State, workload: Workload, outcome: Literal["created", "changed", "unchanged"], diff: list[str]
) -> wire.Applied:
    phase: Any = state.workloads[workload.id].phase
    return wire.Applied(
        id=workload.id,
        name=workload.name,
        run=workload.run,
        kind=workload.kind,
        outcome=outcome,
        phase=phase,
        diff=diff,
    )


def draft(state: State, specs: Sequence[WorkloadSpec], user: str, *, again: bool = False) -> list[Draft]:
    """Each spec as the run it would be, and that run as it is known now. Raises RequestError for a name given twice."""
    runs: dict[str, int] = {}
    for spec in specs:
        if spec.name in runs:
            raise RequestError(f'the file has two workloads named "{spec.name}"', code="conflict")
        newest = newest_run(state, spec.name)
        runs[spec.name] = 1 if newest is None else newest.workload.run + again
    drafts = []
    for spec in specs:
        run = runs[spec.name]
        known = state.workloads.get(workload_id(spec.name, run))
        owner = known.workload.user if known is not None else user
        workload = compile_workload(spec, run=run, user=owner)
        after = tuple(_newest_id(state, name, runs) for name in workload.after)
        drafts.append((replace(workload, after=after), known))
    return drafts


def _newest_id(state: State, name: str, runs: dict[str, int]) -> str:
    """`after: [prepare]` waits for the newest run, of this file or of before."""
    if "@" in name:
        return name.removesuffix("@1")
    if name in runs:
        return workload_id(name, runs[name])
    newest = newest_run(state, name)
    return name if newest is None else newest.workload.id


def check_secrets(specs: Sequence[WorkloadSpec], user: str, secrets: vault.Secrets) -> None:
    """Raises RequestError that names every secret that `user` would have to set."""
    named = dict.fromkeys(name for spec in specs for name in spec.secrets)
    absent = [name for name in named if not secrets.has(user, name)]
    if absent:
        raise vault.missing(absent)


def is_same(workload: Workload, known: WorkloadState | None) -> bool:
    return known is not None and known.workload.parcel == workload.parcel


def sorted_by_need(drafts: Sequence[Draft]) -> list[Draft]:
    """What others of the file wait for comes first, else as written. Raises RequestError for a circle."""
    by_id = {workload.id: (workload, known) for workload, known in drafts}
    order: TopologicalSorter[str] = TopologicalSorter()
    for workload, _ in drafts:
        order.add(workload.id, *(name for name in workload.after if name in by_id))
    try:
        return [by_id[name] for name in order.static_order()]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise RequestError(
            f"these would wait for each other: {circle}", code="cycle", hint="Break the circle in after:."
        ) from None


def checked(state: State, command: commands.Command) -> Fact | None:
    """The fact it becomes, None when there is nothing to do. Raises RequestError with the core's refusal."""
    found = commands.check(state, command)
    if not isinstance(found, commands.Refusal):
        return found
    if found.code == "unchanged":
        return None
    if found.code == "not_allowed":
        raise NotAllowed(found.message, hint=found.hint)
    status = STATUS_OF_CODE.get(found.code)
    raise RequestError(found.message, code=found.code, hint=found.hint, http_status=status)


def _applied(state: State, command: commands.Command) -> list[Fact]:
    fact = checked(state, command)
    if fact is None:
        return []
    state.apply(fact)
    return [fact]
