"""Where workloads lie that have left the state: rows of the store, written with the entry that put them aside.

Answers the core's questions (`core.archive.Archive`) and those of lists. What is asked often is kept a while; nothing
that was put aside ever changes, so what is kept is never old.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Protocol

from llmsched.core.records import WorkloadState
from llmsched.core.usage import day_of
from llmsched.errors import StoreError
from llmsched.store import snapshots
from llmsched.store.tables import TABLES, AnyRow, ArchiveQuery, ArchiveRow, UsageQuery, UsageRow, labels_of

RESULTS_AT_ONCE = 10
REMEMBERED = 2_000  # answers, also that there is none


class Rows(Protocol):
    """What is asked of the store."""

    def row(self, cls: type[AnyRow], *key: object) -> AnyRow | None: ...

    def archived(self, query: ArchiveQuery) -> list[ArchiveRow]: ...

    def usage(self, query: UsageQuery) -> list[UsageRow]: ...


class StoreArchive:
    """What was put aside is asked here until the store has it: `unwritten` are its rows, until they are `written`."""

    def __init__(self, store: Rows) -> None:
        self._store = store
        self._new: dict[str, WorkloadState] = {}
        self._known: OrderedDict[str, WorkloadState | None] = OrderedDict()

    def put(self, record: WorkloadState) -> None:
        self._new[record.workload.id] = record
        self._known.pop(record.workload.id, None)

    def unwritten(self) -> list[ArchiveRow | UsageRow]:
        return [*map(row_of, self._new.values()), *self.unwritten_books()]

    def written(self, rows: Iterable[ArchiveRow | UsageRow]) -> None:
        for row in rows:
            if isinstance(row, ArchiveRow):
                self._new.pop(row.id, None)

    def find(self, workload: str) -> WorkloadState | None:
        if workload in self._new:
            return self._new[workload]
        if workload in self._known:
            self._known.move_to_end(workload)
            return self._known[workload]
        row = self._store.row(ArchiveRow, workload)
        found = None if row is None else snapshots.load_ended(row.body)
        self._known[workload] = found
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def select(self, query: ArchiveQuery) -> list[WorkloadState]:
        new = [row for row in map(row_of, self._new.values()) if query.takes(row)]
        found = {row.id: row for row in (*self._store.archived(query), *new)}
        return [snapshots.load_ended(row.body) for row in sorted(found.values(), key=query.place)[: query.limit]]

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Of what the store has; see `unwritten_books`."""
        return self._store.usage(query)

    def unwritten_books(self) -> list[UsageRow]:
        return [row for record in self._new.values() for row in book_of(record)]

    def newest_run(self, name: str) -> int:
        rows = self._store.archived(ArchiveQuery(1, name=name))
        new = [record.workload.run for record in self._new.values() if record.workload.name == name]
        return max([row.run for row in rows] + new, default=0)

    def results(self, name: str) -> Iterator[WorkloadState]:
        new = [one for one in self._new.values() if one.workload.name == name and one.artifact is not None]
        return merge(
            sorted(new, key=lambda one: -one.workload.run), self._written(name), key=lambda one: -one.workload.run
        )

    def _written(self, name: str) -> Iterator[WorkloadState]:
        query = ArchiveQuery(RESULTS_AT_ONCE, name=name, results=True)
        while found := [snapshots.load_ended(row.body) for row in self._store.archived(query)]:
            yield from found
            query = query._replace(after_run=(name, found[-1].workload.run))


class VerifiedArchive(StoreArchive):
    """For a fold of all history: what is put aside must be what the store has of it. `differences` says where not."""

    def __init__(self, store: Rows) -> None:
        super().__init__(store)
        self.differences: list[str] = []
        self.count = 0

    def put(self, record: WorkloadState) -> None:
        self.count += 1
        name = record.workload.id
        try:
            row = self._store.row(ArchiveRow, name)
        except StoreError as error:
            self.differences.append(error.message)
            return
        expected = row_of(record)
        if row is None:
            self.differences.append(f"{name} has no row in archive")
        elif row != expected:
            wrong = [column for column, is_, right in zip(row._fields, row, expected, strict=True) if is_ != right]
            self.differences.append(
                f"{name}: {', '.join(wrong)} of its row in archive differs from what the journal says"
            )
        for line in book_of(record):
            try:
                if self._store.row(UsageRow, *line[: TABLES[UsageRow].keys]) != line:
                    self.differences.append(f"{name}: its usage on {day_of(line.day)} is not what the journal says")
            except StoreError as error:
                self.differences.append(error.message)


def row_of(record: WorkloadState) -> ArchiveRow:
    it = record.workload
    return ArchiveRow(
        it.id,
        it.name,
        it.run,
        it.kind,
        it.queue,
        it.user,
        record.outcome,
        record.submitted_at,
        record.finished_at or 0.0,
        record.artifact,
        labels_of(it.labels),
        snapshots.dump_ended(record),
    )


def book_of(record: WorkloadState) -> list[UsageRow]:
    it = record.workload
    return [
        UsageRow(used.day, it.id, used.queue, used.flavor, it.user, " ".join(map(str, used.amounts)))
        for used in record.usage
    ]
