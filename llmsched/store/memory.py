"""The store's port in memory: for tests, for the simulator, and for looking at a journal that was read from elsewhere.

It fences and numbers like the real one, and forgets everything with the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from llmsched.store.codec import ENTRIES
from llmsched.store.journal import QUIET, Batch, Lease, StaleEpoch, Written, workload_of
from llmsched.store.tables import AGE, TABLES, AnyRow, ArchiveQuery, ArchiveRow, Row, UsageQuery, UsageRow


class MemoryStore:
    """`failure`, when set, is what every write raises: a disk that is full."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._journal: list[Written] = []
        self._rows: dict[type, dict[tuple[Any, ...], Row]] = {cls: {} for cls in TABLES}
        self._lease = Lease(0, "", 0)
        self._epoch = 0
        self._floor = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        if self._lease.epoch == self._epoch:
            self._lease = self._lease._replace(owner="")

    def lease(self) -> Lease:
        return self._lease

    def take_over(self, owner: str, seen: Lease) -> int:
        if self.failure is not None:
            raise self.failure
        if self._lease != seen:
            raise StaleEpoch("another controller took over first")
        self._epoch = seen.epoch + 1
        self._lease = Lease(self._epoch, owner, 0)
        return self._epoch

    def commit(self, batch: Batch) -> Future[list[Written]]:
        return self._answer(lambda: self._write(batch))

    def _answer(self, write: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.failure is not None:
            future.set_exception(self.failure)
        elif self._lease.epoch != self._epoch or self._epoch == 0:
            future.set_exception(StaleEpoch(f"epoch {self._epoch} is over: {self._lease.epoch} writes now"))
        else:
            future.set_result(write())
        return future

    def _write(self, batch: Batch) -> list[Written]:
        first = self._floor + len(self._journal) + 1
        written = [Written(first + n, batch.at, entry) for n, entry in enumerate(batch.entries)]
        self._journal += written
        for row in batch.rows:
            self._rows[type(row)][row[: TABLES[type(row)].keys]] = row
        self._lease = self._lease._replace(renewals=self._lease.renewals + 1)
        return written

    def read(
        self,
        after: int = 0,
        workload: str | None = None,
        limit: int | None = None,
        *,
        kinds: Sequence[str] | None = None,
        before: int | None = None,
        last: bool = False,
    ) -> list[Written]:
        found = self._journal[max(after - self._floor, 0) :]
        if workload is not None:
            found = [written for written in found if _is_told(written, workload)]
        if kinds is not None:
            found = [written for written in found if ENTRIES.tag(written.entry) in kinds]
        if before is not None:
            found = [written for written in found if written.seq < before]
        if limit is None:
            return found
        return found[-limit:] if last else found[:limit]

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        return self._rows[cls].get(key)  # type: ignore[return-value]

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        held = self._rows[cls]
        return [held[known] for known in sorted(held) if known[: len(key)] == key]  # type: ignore[misc]

    def archived(self, query: ArchiveQuery) -> list[ArchiveRow]:
        rows: list[ArchiveRow] = self.rows(ArchiveRow)
        return sorted(filter(query.takes, rows), key=query.place)[: query.limit]

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        rows: list[UsageRow] = self.rows(UsageRow)
        found = [
            row for row in rows if query.since <= row.day <= query.until and (not query.after or row[:4] > query.after)
        ]
        return found[: query.limit]

    def older(self, cls: type[Row], before: float, limit: int = 1_000) -> list[tuple[Any, ...]]:
        age = AGE.get(cls, "at")
        old = sorted((getattr(row, age), key) for key, row in self._rows[cls].items() if getattr(row, age) < before)
        return [key for _, key in old[:limit]]

    def remove(self, cls: type[Row], keys: Sequence[tuple[Any, ...]]) -> Future[None]:
        def remove() -> None:
            for key in keys:
                self._rows[cls].pop(key, None)
                if cls is ArchiveRow:
                    for row in [row for row in self.rows(UsageRow) if row.workload == key[0]]:
                        del self._rows[UsageRow][row[:4]]

        return self._answer(remove)

    def compact(self, floor: int, limit: int) -> Future[int]:
        def remove() -> int:
            count = min(max(floor - self._floor, 0), limit)
            del self._journal[:count]
            self._floor += count
            return count

        return self._answer(remove)

    def floor(self) -> int:
        return self._floor


def _is_told(written: Written, workload: str) -> bool:
    return workload_of(written.entry) == workload and ENTRIES.tag(written.entry) not in QUIET
