"""Workloads that ended a while ago leave the state, so that it does not grow with history. `Archived` says which; what
each was is put into an `Archive`, and can be asked for as before: see `State.find`.

A fold only ever puts into the archive and asks it nothing, so it stays a function of its journal. Whoever checks a
request or shows something asks. What was put aside never changes. Where an archive keeps it is not the core's to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from llmsched.core.records import GangState, WorkloadState
from llmsched.core.status import Status

if TYPE_CHECKING:
    from llmsched.core.state import State

ENDED_KEPT = 200  # workloads that have ended stay so many,
KEPT_S = 3600.0  # and so long at most
REPLICAS_KEPT = 20  # of an endpoint's replicas that are gone
AT_ONCE = 50  # workloads of one Archived


class Archive(Protocol):
    """`WorkloadState.known` of what it gives holds the workload's gangs."""

    def put(self, record: WorkloadState) -> None: ...

    def find(self, workload: str) -> WorkloadState | None: ...

    def newest_run(self, name: str) -> int:
        """Number of the last run of that name that was put aside; 0 when there is none."""

    def results(self, name: str) -> Iterator[WorkloadState]:
        """Runs of that name that left a result, the newest first."""


class MemoryArchive:
    """Forgets with the process: for the simulator and for tests."""

    def __init__(self) -> None:
        self.records: dict[str, WorkloadState] = {}
        self._newest: dict[str, int] = {}

    def put(self, record: WorkloadState) -> None:
        it = record.workload
        self.records[it.id] = record
        self._newest[it.name] = max(it.run, self._newest.get(it.name, 0))

    def find(self, workload: str) -> WorkloadState | None:
        return self.records.get(workload)

    def newest_run(self, name: str) -> int:
        return self._newest.get(name, 0)

    def results(self, name: str) -> Iterator[WorkloadState]:
        made = [one for one in self.records.values() if one.workload.name == name and one.artifact is not None]
        return iter(sorted(made, key=lambda one: -one.workload.run))


def due(state: State, at: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(workloads, replicas of endpoints that live on) to put aside now, the oldest first, and not too many at once."""
    return tuple(_workloads(state, at)), tuple(_replicas(state))


def _workloads(state: State, at: float) -> Iterator[str]:
    """Many together, so that it is seldom said: half of KEPT_S will do for the others once one has had all of it."""
    if len(state.ended) < ENDED_KEPT + AT_ONCE and _age(state, next(iter(state.ended), None), at) < KEPT_S:
        return
    movable = [*islice((name for name in state.ended if not is_needed(state, name)), AT_ONCE)]
    if len(state.ended) - len(state.scheduled) >= ENDED_KEPT + AT_ONCE:
        yield from movable
    elif movable and _age(state, movable[0], at) >= KEPT_S:
        yield from (name for name in movable if _age(state, name, at) >= KEPT_S / 2)


def is_needed(state: State, workload: str) -> bool:
    """It runs again by its schedule, somebody waits for what became of it, or what it asked for is still there."""
    waiting = (state.workloads[name] for name in state.dependents.get(workload, ()))
    if workload in state.scheduled or workload in state.children:
        return True
    return any(not record.outcome for record in waiting)


def _age(state: State, workload: str | None, at: float) -> float:
    return at - (state.workloads[workload].finished_at or 0.0) if workload is not None else 0.0


def _replicas(state: State) -> Iterator[str]:
    for name in state.serving:
        record = state.workloads[name]
        if len(record.gangs) - record.wanted_replicas < 2 * REPLICAS_KEPT:
            continue
        gone = [gang for gang in record.gangs if is_gone(state.gangs[gang])]
        yield from gone[: len(gone) - REPLICAS_KEPT] if len(gone) > REPLICAS_KEPT else []


def is_gone(gang: GangState) -> bool:
    """A replica nobody counts any more: one that failed still stands for one that is wanted."""
    return gang.status in (Status.CANCELLED, Status.FINISHED)
