"""What the query tables must say after a turn, written in the same transaction as its decisions.

A reason is written when it changes: beside the journal, not in it, for it is a view of the state and no event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llmsched.core.explain import Reason
from llmsched.core.message import Message, to_data
from llmsched.core.state import State
from llmsched.store.codec import Entry
from llmsched.store.journal import workload_of
from llmsched.store.tables import ReasonRow, Row, WorkloadRow


class QueryTables:
    """Remembers the reasons it wrote last."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, Message]] = {}

    def rows(
        self, state: State, at: float, entries: Sequence[Entry], reasons: Mapping[str, Reason] | None
    ) -> list[Row]:
        """`reasons` are those of everyone who waits; None when nothing was decided."""
        touched = dict.fromkeys(workload_of(entry) for entry in entries)
        rows: list[Row] = [_row_of(state, name) for name in touched if name in state.workloads]
        if reasons is None:
            return rows
        for gang, reason in reasons.items():
            said = (reason.code, reason.message)
            if self._said.get(gang) != said:
                self._said[gang] = said
                rows.append(ReasonRow.of(gang, at, reason))
        for gang in [name for name in self._said if name not in reasons]:
            del self._said[gang]
            rows.append(ReasonRow.of(gang, at, None))
        return rows


def differences(rows: Iterable[WorkloadRow], state: State) -> Iterator[str]:
    """Where the table of workloads is not what the folded journal says."""
    known = {row.id: row for row in rows}
    for name in state.workloads:
        row, expected = known.pop(name, None), _row_of(state, name)
        if row is None:
            yield f"{name} has no row"
            continue
        for column in WorkloadRow._fields:
            said, right = getattr(row, column), getattr(expected, column)
            if said != right:
                yield f"{name}: {column} differs" + ("" if column == "spec" else f": {said!r}, expected {right!r}")
    for name in known:
        yield f"{name} has a row and is not in the journal"


def _told(message: Message | None) -> str:
    """As data: who reads it may not see every name that is in it."""
    return "" if message is None else json.dumps(to_data(message))


def _row_of(state: State, workload_id: str | None) -> WorkloadRow:
    record = state.workloads[workload_id or ""]
    it = record.workload
    return WorkloadRow(
        it.id, it.name, it.run, it.kind, it.queue, it.user, record.phase, _told(record.message), record.submitted_at,
        record.finished_at, it.parcel,
    )  # fmt: skip
