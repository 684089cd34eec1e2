"""What users ask, one by one: a spec or a name becomes a command, the core checks it, its fact is applied at once.

So the second of two requests sees what the first did. Nothing is answered from here: the loop commits first. A file of
several workloads is taken whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsched.control import adapters, calls, endpoint_names, outputs, prefills, reads, trials, vault
from llmsched.control.authorization import KnownNames, Permissions, Person, check_queue
from llmsched.control.drafts import (
    Draft,
    check_change,
    check_outside,
    check_permissions,
    differences,
    draft,
    is_in_place,
    is_same,
    sorted_by_need,
)
from llmsched.control.lookup import newest_run, spec_of
from llmsched.control.refusals import checked
from llmsched.control.roles import OPERATOR
from llmsched.control.turns import breathe
from llmsched.core import authorization, commands, node_commands, rollout
from llmsched.core.facts import CommandBegun, Fact, Published, RolledBack, Unlisted
from llmsched.core.render import Names
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import LlmschedError, RequestError
from llmsched.spec import http_models
from llmsched.spec.cluster import ClusterSpec, ReservationSpec
from llmsched.spec.compile import Compiled, compile_configuration, compile_reservation


class Torn(Exception):
    """A request was refused after part of it was applied: the state must be folded again. `error` is the answer."""

    def __init__(self, error: LlmschedError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Submission:
    """`fingerprint` tells requests under one Idempotency-Key apart. It is of the request as it was sent, which a newer
    model of the spec does not change; without one, of what the specs mean."""

    specs: Sequence[Compiled]
    person: Person
    again: bool = False
    key: str | None = None  # Idempotency-Key
    fingerprint: str | None = None
    only_new: bool = False  # refuse a name that was ever taken

    def digest(self) -> str:
        if self.fingerprint is not None:
            return self.fingerprint
        text = json.dumps([self.again, [each.workload.parcel for each in self.specs]])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Cancellation:
    name: str
    by: str
    by_parent: bool = False


@dataclass(frozen=True, slots=True)
class Rescale:
    name: str
    size: int
    by: str


@dataclass(frozen=True, slots=True)
class RollingBack:
    """`to`: a revision as people count, from 1. `adapter`: that one alone, to what was published before."""

    name: str
    person: Person
    to: int | None = None
    adapter: str = ""


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


@dataclass(frozen=True, slots=True)
class Unlisting:
    """Somebody takes a job that has ended off the list of Ray's Jobs API."""

    name: str
    by: str


@dataclass(frozen=True, slots=True)
class NodeDrain:
    """`within_s` from now, or `until`, a stamp; neither: without a deadline."""

    node: str
    by: str
    within_s: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class NodeUndrain:
    node: str
    by: str


UserRequest = (
    Submission
    | Cancellation
    | Rescale
    | RollingBack
    | Reconfiguration
    | NewReservation
    | EndReservation
    | NodeDrain
    | NodeUndrain
    | CommandNote
    | Unlisting
)


async def accept(state: State, request: UserRequest, at: float, secrets: vault.Secrets) -> tuple[Any, list[Fact]]:
    """(the answer, the facts, which are applied). Raises RequestError with the state as it was, or Torn."""
    match request:
        case Submission():
            return await _submit(state, request, at, secrets)
        case Cancellation():
            target = find(state, request.name).workload.id
            return None, _applied(
                state, commands.Cancel(at, target, request.by, request.by_parent), _names(state, request.by, target)
            )
        case Rescale():
            target = find(state, request.name).workload.id
            scale = commands.ScaleTo(at, target, request.size)
            return None, _applied(state, scale, _names(state, request.by, target))
        case RollingBack():
            if request.adapter:
                return None, adapters.rolled_back(state, find(state, request.name), request.adapter, request.person, at)
            return None, _rolled_back(state, request, at, secrets)
        case Reconfiguration():
            configuration = compile_configuration(request.spec, state.configuration.version + 1)
            return None, _applied(state, commands.Configure(at, configuration), _all_names(state, request.by))
        case NewReservation():
            reserve = commands.Reserve(at, compile_reservation(request.spec, request.by))
            return None, _applied(state, reserve, _all_names(state, request.by))
        case EndReservation():
            return None, _applied(state, commands.Unreserve(at, request.name), _all_names(state, request.by))
        case NodeDrain():
            deadline = request.until if request.within_s is None else at + request.within_s
            drain = node_commands.DrainNode(at, request.node, deadline, request.by)
            return None, _applied(state, drain, _all_names(state, request.by))
        case NodeUndrain():
            return None, _applied(
                state, node_commands.UndrainNode(at, request.node, request.by), _all_names(state, request.by)
            )
        case CommandNote():
            begun = CommandBegun(at, request.gang, request.attempt, request.rank, request.by, request.words)
            state.apply(begun)
            return None, [begun]
        case Unlisting():
            return None, _unlisted(state, request, at)


def _names(state: State, user: str, asked: str) -> Names:
    """For whoever was let handle the work that they named."""
    return KnownNames(state, Permissions(Person(user), state.configuration), asked)


def _all_names(state: State, user: str) -> Names:
    """For an operator: only they may ask for it."""
    return KnownNames(state, Permissions(Person(user, OPERATOR), state.configuration))


def find(state: State, name: str) -> WorkloadState:
    """The newest run of that name, or exactly the run that is named. Raises RequestError (404)."""
    record = newest_run(state, name)
    if record is None:
        raise RequestError(
            f'there is no workload "{name}".',
            code="unknown_workload",
            hint="llmsched status lists them.",
            http_status=404,
        )
    return record


def _rolled_back(state: State, request: RollingBack, at: float, secrets: vault.Secrets) -> list[Fact]:
    """What may have changed since that version was applied is asked again: whose its names are, what its secrets."""
    record = find(state, request.name)
    name = record.workload.id
    names = KnownNames(state, Permissions(request.person, state.configuration), name)
    command = commands.RollBack(at, name, request.person.user, None if request.to is None else request.to - 1)
    fact = checked(state, command, names)
    assert isinstance(fact, RolledBack)
    version = rollout.version_numbered(record, fact.revision)
    assert version is not None
    permissions = Permissions(request.person, state.configuration)
    check_queue(version.spec, permissions)
    endpoint_names.Taken(state, [version.spec]).check(version.spec, permissions)
    check_outside(version.spec, secrets, state.configuration.notify_hosts)
    calls.check(state, version.spec, [version.spec], permissions)
    state.apply(fact)
    return [fact]


def _unlisted(state: State, request: Unlisting, at: float) -> list[Fact]:
    record = find(state, request.name)
    name = record.workload.id
    if not record.outcome:
        raise RequestError(
            f"{name} has not ended.", code="not_ended", hint=f"Stop it first: ray job stop {name}, or llmsched cancel."
        )
    if name not in state.workloads:
        raise RequestError(f"{name} ended a while ago and is on no list any more.", code="not_listed")
    if record.unlisted:
        return []
    fact = Unlisted(at, name, request.by)
    state.apply(fact)
    return [fact]


async def _submit(
    state: State, request: Submission, at: float, secrets: vault.Secrets
) -> tuple[list[http_models.Applied], list[Fact]]:
    permissions = Permissions(request.person, state.configuration)
    names = KnownNames(state, permissions)
    drafts = await draft(state, request.specs, permissions, again=request.again)
    in_file = {workload.id for workload, _ in drafts}
    if request.only_new and (taken_by := [each.workload.name for each in drafts if each.known is not None]):
        raise RequestError(
            f'there is a workload "{taken_by[0]}" already.', code="name_taken", hint="Choose another name, or none."
        )
    changed = [each for each in drafts if not is_same(each)]
    file = [each.workload for each in drafts]
    taken = endpoint_names.Taken(state, file)
    for each in changed:  # all of them first, so that a file is refused before any of it is applied
        await breathe()
        others = tuple(name for name in each.workload.after if name not in in_file)
        check_permissions(state, each.workload, others, permissions)
        taken.check(each.workload, permissions)
        check_outside(each.workload, secrets, state.configuration.notify_hosts)
        calls.check(state, each.workload, file, permissions)
        prefills.check(state, each.workload, file)
        reads.check(state, each.workload, file, permissions)
        outputs.check(state, each.workload, file, permissions)
        check_change(state, each)
        trials.check(state, each.workload, names)
        checked(state, commands.Submit(at, replace(each.workload, after=others)), names)
    facts: list[Fact] = []
    answers = {each.workload.id: _answer(each) for each in drafts}  # of before: what changes is not known afterwards
    # Equals of one file take their turns as they stand in it: a microsecond apart, which a float of today still holds.
    turn = {workload.id: at + place * 1e-6 for place, (workload, _) in enumerate(drafts)}
    for each in sorted_by_need(changed):
        await breathe()
        workload, known = each
        old_source = _model_source(known.workload) if known else None
        try:
            facts += _applied(state, commands.Submit(turn[workload.id], workload, is_in_place(each)), names)
        except RequestError as error:
            raise Torn(error) if facts else error from None
        if known is not None and _model_source(workload) != old_source:
            facts += _takes_back(state, workload, at)
    for name, answer in answers.items():
        answer.phase = find(state, name).phase  # type: ignore[assignment]
    return list(answers.values()), facts


def _answer(each: Draft) -> http_models.Applied:
    workload, known = each
    same = is_same(each)
    return http_models.Applied(
        id=workload.id,
        name=workload.name,
        run=workload.run,
        kind=workload.kind,
        serves=_serves(workload),
        outcome="unchanged" if same else "created" if known is None else "changed",
        diff=[] if same else differences(each),
        rolls_out=not same and known is not None and workload.kind == "serve" and not is_in_place(each),
    )


def _serves(workload: Workload) -> str:
    serve = spec_of(workload).get("serve") or {}
    return "app" if serve.get("app") else str(serve.get("role") or serve.get("task") or "")


def _model_source(workload: Workload) -> str | None:
    serve = spec_of(workload).get("serve") or {}
    source: str | None = (serve.get("model") or {}).get("source")
    return source


def _takes_back(state: State, workload: Workload, at: float) -> list[Fact]:
    """A model that was published into an endpoint stays until another is published, or the spec names another one."""
    source = _model_source(workload)
    models = [each for each in authorization.published_to(state, workload).values() if each.kind == "model"]
    if source is None or not models:
        return []
    newest = max(models, key=lambda model: model.at)
    fact = Published(at, workload.id, "model", newest.name, source, workload.id)
    state.apply(fact)
    return [fact]


def _applied(state: State, command: commands.Command, names: Names) -> list[Fact]:
    fact = checked(state, command, names)
    if fact is None:
        return []
    state.apply(fact)
    return [fact]
