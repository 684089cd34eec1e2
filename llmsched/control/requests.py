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

from llmsched.control import registry, vault
from llmsched.control.authorization import OPERATOR, KnownNames, Person, Rights, check_name, check_queue
from llmsched.control.dispatch import newest_run, spec_of
from llmsched.core import commands
from llmsched.core.facts import CommandBegun, Fact, Published
from llmsched.core.render import Names, advice, text
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import LlmschedError, RequestError, SpecError
from llmsched.spec import http_models
from llmsched.spec.cluster import ClusterSpec, ReservationSpec
from llmsched.spec.compile import (
    compile_configuration,
    compile_reservation,
    compile_workload,
    parcel_of,
    workload_id,
)
from llmsched.spec.diff import diff_parcels
from llmsched.spec.workload import WorkloadSpec

_WHERE_CYCLES: dict[type, str] = {commands.Submit: "after", commands.Configure: "cohorts"}
STATUS_OF_CODE = {"unknown_workload": 404, "unknown_reservation": 404, "queue_full": 429}


class Torn(Exception):
    """A request was refused after part of it was applied: the state must be folded again. `error` is the answer."""

    def __init__(self, error: LlmschedError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Submission:
    specs: Sequence[WorkloadSpec]
    person: Person
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


@dataclass(frozen=True, slots=True)
class NewReservation:
    spec: ReservationSpec
    by: str


@dataclass(frozen=True, slots=True)
class EndReservation:
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class CommandNote:
    """Somebody is about to run a command beside a gang: kept before it runs."""

    gang: str
    attempt: int
    rank: int
    by: str
    words: str


Draft = tuple[Workload, WorkloadState | None]
UserRequest = Submission | Cancellation | Rescale | Reconfiguration | NewReservation | EndReservation | CommandNote


def accept(state: State, request: UserRequest, at: float, secrets: vault.Secrets) -> tuple[Any, list[Fact]]:
    """(the answer, the facts, which are applied). Raises RequestError with the state as it was, or Torn."""
    match request:
        case Submission():
            return _submit(state, request, at, secrets)
        case Cancellation():
            target = find(state, request.name).workload.id
            return None, _applied(state, commands.Cancel(at, target, request.by), _names(state, request.by, target))
        case Rescale():
            target = find(state, request.name).workload.id
            scale = commands.ScaleTo(at, target, request.size)
            return None, _applied(state, scale, _names(state, request.by, target))
        case Reconfiguration():
            configuration = compile_configuration(request.spec, state.configuration.version + 1)
            return None, _applied(state, commands.Configure(at, configuration), _all_names(state, request.by))
        case NewReservation():
            reserve = commands.Reserve(at, compile_reservation(request.spec, request.by))
            return None, _applied(state, reserve, _all_names(state, request.by))
        case EndReservation():
            return None, _applied(state, commands.Unreserve(at, request.name), _all_names(state, request.by))
        case CommandNote():
            begun = CommandBegun(at, request.gang, request.attempt, request.rank, request.by, request.words)
            state.apply(begun)
            return None, [begun]


def _names(state: State, user: str, asked: str) -> Names:
    """For whoever was let handle the work that they named."""
    return KnownNames(state, Rights(Person(user), state.configuration), asked)


def _all_names(state: State, user: str) -> Names:
    """For an operator: only they may ask for it."""
    return KnownNames(state, Rights(Person(user, OPERATOR), state.configuration))


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


def _submit(
    state: State, request: Submission, at: float, secrets: vault.Secrets
) -> tuple[list[http_models.Applied], list[Fact]]:
    rights = Rights(request.person, state.configuration)
    names = KnownNames(state, rights)
    drafts = draft(state, request.specs, rights, again=request.again)
    mine = {workload.id for workload, _ in drafts}
    changed = [(workload, known) for workload, known in drafts if not is_same(workload, known)]
    for workload, known in changed:  # all of them first, so that a file is refused before any of it is applied
        others = tuple(name for name in workload.after if name not in mine)
        check_rights(state, workload, others, rights)
        check_secrets(workload, secrets)
        check_change(state, workload, known)
        checked(state, commands.Submit(at, replace(workload, after=others)), names)
    facts: list[Fact] = []
    outcomes: dict[str, http_models.Applied] = {}
    # Equals of one file take their turns as they stand in it: a microsecond apart, which a float of today still holds.
    turn = {workload.id: at + place * 1e-6 for place, (workload, _) in enumerate(drafts)}
    for workload, known in sorted_by_need(changed):
        lines = differences(workload, known)
        old_source = _model_source(known.workload) if known else None
        try:
            facts += _applied(state, commands.Submit(turn[workload.id], workload), names)
        except RequestError as error:
            raise Torn(error) if facts else error from None
        if known is not None and _model_source(workload) != old_source:
            facts += _takes_back(state, workload, at)
        outcomes[workload.id] = _answer(state, workload, "changed" if known else "created", lines)
    return [outcomes.get(workload.id) or _answer(state, workload, "unchanged", []) for workload, _ in drafts], facts


def _answer(
    state: State, workload: Workload, outcome: Literal["created", "changed", "unchanged"], diff: list[str]
) -> http_models.Applied:
    phase: Any = state.workloads[workload.id].phase
    return http_models.Applied(
        id=workload.id,
        name=workload.name,
        run=workload.run,
        kind=workload.kind,
        outcome=outcome,
        phase=phase,
        diff=diff,
    )


def draft(state: State, specs: Sequence[WorkloadSpec], rights: Rights, *, again: bool = False) -> list[Draft]:
    """Each spec as the run it would be, and that run as it is known now. Raises RequestError for a name given twice.

    What one may not change is as if it were not there: `check_rights` refuses the name. Whoever changes another's work,
    or runs it again, leaves it the other's."""
    runs: dict[str, int] = {}
    owners: dict[str, str] = {}
    for spec in specs:
        if spec.name in runs:
            raise RequestError(f'the file has two workloads named "{spec.name}"', code="conflict")
        newest = newest_run(state, spec.name)
        if newest is not None and not rights.changes(newest.workload):
            newest = None
        owners[spec.name] = rights.person.user if newest is None else newest.workload.user
        runs[spec.name] = 1 if newest is None else newest.workload.run + (again and not _serves(newest))
    drafts = []
    for spec in specs:
        run = runs[spec.name]
        known = state.workloads.get(workload_id(spec.name, run))
        if known is not None and not rights.changes(known.workload):
            known = None
        workload = compile_workload(spec, run=run, user=owners[spec.name])
        after = [_meant(state, name, runs, workload.kind, rights) for name in workload.after]
        after += registry.read_by(state, spec.sources(), rights.sees)
        drafts.append((replace(workload, after=tuple(dict.fromkeys(after))), known))
    return drafts


def _serves(record: WorkloadState) -> bool:
    """An endpoint that lives: `--again` changes it, and never makes a second one beside it."""
    return record.workload.kind == "serve" and not record.outcome and not record.cancelled


def _meant(state: State, name: str, runs: dict[str, int], kind: str, rights: Rights) -> str:
    """`after: [prepare]` waits for the newest run, of this file or of before. An endpoint goes on with the newest that
    has not failed."""
    if "@" in name:
        return name.removesuffix("@1")
    newest = newest_run(state, name)
    if newest is not None and not rights.sees(newest.workload):
        newest = None
    run = runs.get(name) or (newest.workload.run if newest is not None else 1)
    if kind == "serve" and newest is not None:
        good = [one for one in range(run, 0, -1) if not _went_wrong(state, workload_id(name, one))]
        run = good[0] if good else run
    return workload_id(name, run)


def _went_wrong(state: State, name: str) -> bool:
    record = state.workloads.get(name)
    return record is not None and record.outcome in ("failed", "cancelled")


def check_rights(state: State, workload: Workload, after: Sequence[str], rights: Rights) -> None:
    """Raises RequestError when the name is another's, the queue does not let one in, or what it comes after (and so may
    read) is not to be seen: in the words for what does not exist."""
    check_name(state, workload, rights)
    check_queue(workload, rights)
    for name in after:
        record = state.workloads.get(name)
        if record is None or not rights.sees(record.workload):
            raise refusal(commands.unknown_dependency(workload, name), KnownNames(state, rights))


def check_secrets(workload: Workload, secrets: vault.Secrets) -> None:
    """Raises RequestError that names every secret that the workload's owner would have to set."""
    absent = [name for name in spec_of(workload).get("secrets") or () if not secrets.has(workload.user, name)]
    if absent:
        raise vault.missing(absent)


def is_same(workload: Workload, known: WorkloadState | None) -> bool:
    """An endpoint of a result is another one when that result is of a newer run."""
    if known is None or known.workload.parcel != workload.parcel:
        return False
    return workload.kind != "serve" or bool(known.outcome) or set(known.workload.after) == set(workload.after)


def differences(workload: Workload, known: WorkloadState | None) -> list[str]:
    """What changes, in the words of the spec."""
    if known is None:
        return []
    before, after = known.workload.after, workload.after
    news = [
        (name, next((old for old in before if old.partition("@")[0] == name.partition("@")[0]), "")) for name in after
    ]
    moved = [f"reads: {old} -> {name}" for name, old in news if old and old != name]
    return [*diff_parcels(known.workload.parcel, workload.parcel), *moved]


# What an attempt computes. A checkpoint of one is no beginning for another.
_WORK = ("train", "task", "batch", "tune", "workdir", "environment")


def check_change(state: State, workload: Workload, known: WorkloadState | None) -> None:
    """Raises RequestError when work that has begun would become other work. Where, when and at what size it goes on may
    change at any time: it saves, leaves, and goes on from there."""
    if known is None or workload.kind == "serve" or known.outcome or known.cancelled:
        return
    if all(state.gangs[gang].attempt == 0 for gang in known.gangs):
        return
    before, after = spec_of(known.workload), spec_of(workload)
    changed = [key for key in _WORK if before.get(key) != after.get(key)]
    if changed:
        raise RequestError(
            f'{workload.id} has begun, and "{changed[0]}" would make other work of it.',
            code="conflict",
            hint=f"Run it as a new one: llmsched apply --again. To stop this one: llmsched cancel {workload.id}",
        )


def _model_source(workload: Workload) -> str | None:
    serve = spec_of(workload).get("serve") or {}
    source: str | None = (serve.get("model") or {}).get("source")
    return source


def _takes_back(state: State, workload: Workload, at: float) -> list[Fact]:
    """A model that was published into an endpoint stays until another is published, or the spec names another one."""
    source = _model_source(workload)
    published = [one for one in state.publications.get(workload.id, {}).values() if one.kind == "model"]
    if source is None or not published:
        return []
    newest = max(published, key=lambda one: one.at)
    fact = Published(at, workload.id, "model", newest.name, source, workload.id)
    state.apply(fact)
    return [fact]


def sorted_by_need(drafts: Sequence[Draft]) -> list[Draft]:
    """What others of the file wait for comes first, else as written. Raises SpecError for a circle."""
    by_id = {workload.id: (workload, known) for workload, known in drafts}
    order: TopologicalSorter[str] = TopologicalSorter()
    for workload, _ in drafts:
        order.add(workload.id, *(name for name in workload.after if name in by_id))
    try:
        return [by_id[name] for name in order.static_order()]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise SpecError(
            f"these would wait for each other: {circle}.", code="cycle", hint="Break the circle in after:."
        ) from None


def checked(state: State, command: commands.Command, names: Names) -> Fact | None:
    """The fact it becomes, None when there is nothing to do. Raises RequestError with the core's refusal, in the words
    of `names`."""
    found = commands.check(state, command)
    if not isinstance(found, commands.Refusal):
        return found
    if found.code == "unchanged":
        return None
    raise refusal(found, names, _WHERE_CYCLES.get(type(command), ""))


def refusal(found: commands.Refusal, names: Names, where_cycles: str = "") -> LlmschedError:
    """What the core says, as an error of ours."""
    message, hint = text(found.message, names), advice(found.message, names)
    if found.code in ("overlap", "cycle"):  # waiting would not help: it is the file that must change
        where = "reservations" if found.code == "overlap" else where_cycles
        return SpecError(message, code=found.code, where=where, hint=hint)
    status = STATUS_OF_CODE.get(found.code)
    return RequestError(message, code=found.code, hint=hint, http_status=status)


def _applied(state: State, command: commands.Command, names: Names) -> list[Fact]:
    fact = checked(state, command, names)
    if fact is None:
        return []
    state.apply(fact)
    return [fact]
