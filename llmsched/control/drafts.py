"""What a spec would be here: which run, whose, what it reads, and what it changes of what is known. Changes nothing.

`draft` for `plan` and `apply` alike; the checks raise RequestError. What is compared is what two specs mean today, not
how they are written or were stored: see spec/parcel.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from llmsched import crossings
from llmsched.control import registry, vault, webhooks
from llmsched.control.authorization import KnownNames, Permissions, check_name, check_queue
from llmsched.control.lookup import newest_run, spec_of
from llmsched.control.refusals import error_of
from llmsched.control.turns import breathe
from llmsched.core import commands
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload, run_id, split_run
from llmsched.errors import RequestError, SpecError
from llmsched.spec import parcel
from llmsched.spec.compile import Compiled
from llmsched.spec.diff import diff_parcels


class Draft(NamedTuple):
    """A spec as the run it would be, and that run as it is known now (None: it would be new)."""

    workload: Workload
    known: WorkloadState | None


async def draft(
    state: State, specs: Sequence[Compiled], permissions: Permissions, *, again: bool = False
) -> list[Draft]:
    """One of each spec, in order. Raises RequestError for a name given twice.

    Work that the person may not change is as if it were not there: `check_permissions` refuses the name. A person who
    changes another's work, or runs it again, leaves it the other's."""
    runs: dict[str, int] = {}
    owners: dict[str, str] = {}
    for _, compiled in specs:
        await breathe()
        name = compiled.name
        if name in runs:
            raise RequestError(f'the file has two workloads named "{name}"', code="conflict")
        newest = newest_run(state, name)
        if newest is not None and not permissions.changes(newest.workload):
            newest = None
        owners[name] = permissions.person.user if newest is None else newest.workload.user
        runs[name] = 1 if newest is None else newest.workload.run + (again and not _serves(newest))
        if compiled.parent:
            runs[name] = int(split_run(compiled.parent)[1] or 1)  # a run's children are of the same number
    drafts = []
    for spec, compiled in specs:
        await breathe()
        name, run = compiled.name, runs[compiled.name]
        known = state.find(run_id(name, run))
        if known is not None and not permissions.changes(known.workload):
            known = None
        after = [_meant(state, name, runs, compiled.kind, permissions) for name in compiled.after]
        if sources := spec.sources():
            after += registry.read_by(state, sources, permissions.sees)
        workload = replace(
            compiled,
            id=run_id(name, run),
            run=run,
            user=owners[name],
            after=tuple(dict.fromkeys(after)),
        )
        drafts.append(Draft(workload, known))
    return drafts


def _serves(record: WorkloadState) -> bool:
    """An endpoint that lives: `--again` changes it, and never makes a second one beside it."""
    return record.workload.kind == "serve" and not record.outcome and not record.cancelled


def _meant(state: State, name: str, runs: dict[str, int], kind: str, permissions: Permissions) -> str:
    """`after: [prepare]` waits for the newest run, of this file or of before. An endpoint goes on with the newest that
    has not failed."""
    plain, number = split_run(name)
    if number:
        return run_id(plain, int(number))
    newest = newest_run(state, name)
    if newest is not None and not permissions.sees(newest.workload):
        newest = None
    run = runs.get(name) or (newest.workload.run if newest is not None else 1)
    if kind == "serve" and newest is not None:
        back = (one for one in range(run, 0, -1) if not _went_wrong(state, run_id(name, one)))
        run = next(back, run)
    return run_id(name, run)


def _went_wrong(state: State, name: str) -> bool:
    record = state.find(name)
    return record is not None and record.outcome in ("failed", "cancelled")


def check_permissions(state: State, workload: Workload, after: Sequence[str], permissions: Permissions) -> None:
    """Raises RequestError when the name is another's, the queue does not let one in, or what it comes after (and so may
    read) is not to be seen: in the words for what does not exist."""
    check_name(state, workload, permissions)
    if not workload.parent:  # which was let into the queue, and with it what it asks for
        check_queue(workload, permissions)
    for name in after:
        record = state.find(name)
        if record is None or not permissions.sees(record.workload):
            raise error_of(commands.unknown_dependency(workload, name), KnownNames(state, permissions))


def check_outside(workload: Workload, secrets: vault.Secrets, notify_hosts: Collection[str]) -> None:
    """Raises RequestError that names every secret that the workload's owner would have to set, or for an address to
    which no message may go."""
    spec = spec_of(workload)
    wanted = [*(spec.get("secrets") or ())]
    for target in spec.get("notify") or ():
        wanted += [name for name in (target["url_from"], target["sign_with"]) if name is not None]
        if target["url"] is not None:
            webhooks.check(target["url"], notify_hosts)
    if absent := [name for name in dict.fromkeys(wanted) if not secrets.has(workload.user, name)]:
        raise vault.missing(absent)


def is_same(draft: Draft) -> bool:
    """Whether it means what is known, today. An endpoint of a result is another one when that result is of a newer
    run."""
    workload, known = draft
    if known is None or not parcel.is_same(known.workload.parcel, workload.parcel):
        return False
    return workload.kind != "serve" or bool(known.outcome) or not _reads_others(workload, known)


def _reads_others(workload: Workload, known: WorkloadState) -> bool:
    return set(known.workload.after) != set(workload.after)


def differences(draft: Draft) -> list[str]:
    """What changes, in the words of the spec."""
    workload, known = draft
    if known is None:
        return []
    lines = diff_parcels(known.workload.parcel, workload.parcel)
    problem = parcel.read(known.workload.parcel).problem
    if problem:
        lines.insert(0, f"its spec of before is not one that this version reads: {problem}")
    for name in workload.after:
        before = [old for old in known.workload.after if split_run(old)[0] == split_run(name)[0]]
        if before and before[0] != name:
            lines.append(f"reads: {before[0]} -> {name}")
    return [*lines, *_compared_later(draft)]


def _compared_later(draft: Draft) -> list[str]:
    """What runs was started with the comparisons of before, and counts how often those begin to be met. Another one is
    met by what arrives here alone, until it is started anew."""
    workload, known = draft
    if known is None or not is_in_place(draft) or all(known.known[gang].attempt == 0 for gang in known.gangs):
        return []
    old = crossings.comparisons_of(parcel.read(known.workload.parcel).data)
    added = [each for each in dict.fromkeys(crossings.comparisons_of(spec_of(workload))) if each not in old]
    what = "its replicas are" if workload.kind == "serve" else "it is"
    return [
        f'notify: "{each}" holds from now on, of the newest value a second; of every value once {what} started anew'
        for each in added
    ]


# What an attempt computes. A checkpoint of one is no beginning for another.
_WORK = ("train", "task", "ray", "batch", "tune", "workdir", "environment")
# What nothing that runs is given.
_BESIDE = {"labels", "notify"}
# What no replica is given: how many there are, how they come and go, and what the gateway keeps to.
_SCALING = {
    *_BESIDE,
    "replicas",
    "autoscaling",
    "slo",
    "rollout",
    "replica_placement",
    "request_timeout",
    "hold_timeout",
}


def is_in_place(draft: Draft) -> bool:
    """Whether what runs goes on under the new spec: nothing that it was started with has changed. Other work that ends
    saves, leaves and goes on instead, for its size, its limits and its place in line are the attempt's own."""
    workload, known = draft
    if known is None or (workload.kind == "serve" and _reads_others(workload, known)):
        return False
    before = parcel.read(known.workload.parcel)
    if before.problem:
        return False
    stays = _SCALING if workload.kind == "serve" else _BESIDE
    return stays.issuperset(parcel.changed_keys(before.data, spec_of(workload)))


def check_change(state: State, draft: Draft) -> None:
    """Raises RequestError when work that has begun would become other work. Where, when and at what size it goes on may
    change at any time: it saves, leaves, and goes on from there."""
    workload, known = draft
    if known is not None and workload.parent:
        raise RequestError(
            f"{workload.id} was asked for before, with another spec: {'; '.join(differences(draft)[:3])}.",
            code="conflict",
            hint="Ask for it under another name.",
        )
    if known is None or workload.kind == "serve" or known.outcome or known.cancelled:
        return
    if all(state.gangs[gang].attempt == 0 for gang in known.gangs):
        return
    hint = f"Run it as a new one: llmsched apply --again. To stop this one: llmsched cancel {workload.id}"
    before = parcel.read(known.workload.parcel)
    if before.problem:
        raise RequestError(
            f"{workload.id} has begun, with a spec that this version does not read ({before.problem}): whether the new "
            "one is the same work cannot be told. It goes on as it is.",
            code="conflict",
            hint=hint,
        )
    changed = [key for key in parcel.changed_keys(before.data, spec_of(workload)) if key in _WORK]
    if changed:
        raise RequestError(
            f'{workload.id} has begun, and "{changed[0]}" would make other work of it.', code="conflict", hint=hint
        )


def sorted_by_need(drafts: Sequence[Draft]) -> list[Draft]:
    """What others of the file wait for comes first, else as written. Raises SpecError for a circle."""
    by_id = {draft.workload.id: draft for draft in drafts}
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
