"""Folds the journal of a real controller again, up to a moment, and thinks once more: an incident becomes a test.

The journal is only read; the controller may be running. History is re-read, not re-computed: what was decided then is
what is shown. Only the reasons of those who waited at the end come from one more pass over the state, decided anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsched.control import recovery
from llmsched.core import render
from llmsched.core.invariants import violations
from llmsched.core.scheduler import decide
from llmsched.core.state import State
from llmsched.errors import RequestError, SpecError
from llmsched.policies import registry
from llmsched.store.journal import Written, workload_of
from llmsched.store.reading import moment_of

MAGIC = b"SQLite format 3\x00"


@dataclass(slots=True)
class Replayed:
    state: State
    entries: int
    left: int  # entries after `until`
    about: str = ""  # workload id of `explain`
    written: list[Written] = field(default_factory=list)  # its entries


def replay(journal: Path, *, until: float | None = None, explain: str | None = None) -> Replayed:
    """The state as of `until` (default: the end). Raises SpecError for a file that is no journal, RequestError for an
    unknown name, StoreError for a damaged journal."""
    try:
        with journal.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}.", where=str(journal)) from None
    if head != MAGIC:
        raise SpecError("is not a journal.", where=str(journal), hint="Give a controller's state.sqlite.")
    kept: dict[str | None, list[Written]] = {}
    with moment_of(journal) as moment:
        state, seq = recovery.first(moment)
        if until is not None and until < state.now:
            raise RequestError(
                f"the journal is kept from {state.now:.0f} on (seconds since 1970); what was before is compacted.",
                code="compacted",
                hint="Choose a later --until.",
            )
        found = Replayed(state, 0, 0)
        for written in moment.read(after=seq):
            if until is not None and written.at > until:
                found.left += 1
                continue
            found.entries += 1
            found.state.apply(written.entry)
            if explain is not None:
                kept.setdefault(workload_of(written.entry), []).append(written)
    if explain is not None:
        found.about = _find(found.state, explain)
        found.written = kept.get(found.about, [])
    return found


def _find(state: State, name: str) -> str:
    """`name@2` is exact; a bare name is its newest run."""
    record = state.newest(name)
    if record is None:
        raise RequestError(f'the journal knows no workload "{name}" by then.', code="unknown_workload", http_status=404)
    return record.workload.id


def names_in(state: State) -> render.AllNames:
    """Whoever may read the journal sees everything."""
    return render.AllNames({name: node.node.name or name for name, node in state.nodes.items()})


def findings(found: Replayed) -> dict[str, Any]:
    """What the replay shows, as plain data: the state in numbers, who waits and why, what would be decided next."""
    state = found.state
    digest = state.digest()
    names = names_in(state)
    plan = decide(state, registry.load(state.configuration.policies))
    phases: dict[str, int] = {}
    for record in state.workloads.values():
        phases[record.phase] = phases.get(record.phase, 0) + 1
    for (_, _, outcome), count in state.archived.items():
        phases[outcome] = phases.get(outcome, 0) + count
    result: dict[str, Any] = {
        "at": state.now,
        "entries": found.entries,
        "later_entries": found.left,
        "digest": digest,
        "violations": violations(state),
        "nodes": len(state.nodes),
        "workloads": phases,
        "waiting": {
            gang: {
                "code": reason.code,
                "message": render.text(reason.message, names),
                "next_change": render.advice(reason.message, names),
                "eta": reason.eta,
            }
            for gang, reason in sorted(plan.reasons.items())
        },
        "next_decisions": [
            {
                "kind": type(each).__name__,
                "gang": getattr(each, "gang", ""),
                "why": render.text(getattr(each, "why", None), names),
            }
            for each in plan.decisions
        ],
    }
    if found.about:
        about = state.find(found.about)
        assert about is not None
        result["explain"] = {
            "workload": found.about,
            "phase": about.phase,
            "message": render.text(about.message, names),
            "waits": {name: result["waiting"][name]["message"] for name in about.gangs if name in result["waiting"]},
        }
    return result
