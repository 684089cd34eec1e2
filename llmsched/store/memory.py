"""The store's port in memory: for tests, for the simulator, and for looking at a journal that was read from elsewhere.

It fences and numbers like the real one, and forgets everything with the process.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from llmsched.store.journal import Batch, Lease, StaleEpoch, Written, workload_of
from llmsched.store.tables import TABLES, AnyRow, Row


class MemoryStore:
    """`failure`, when set, is what every write raises: a disk that is full."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._journal: list[Written] = []
        self._rows: dict[type, dict[tuple[Any, ...], Row]] = {cls: {} for cls in TABLES}
        self._lease = Lease(0, "", 0)
        self._epoch = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        if self._lease.epoch == self._epoch:
            self._lease = self._lease._replace(owner="")

    def lease(self) -> Lease:
        return self._lease

    def take_over(self, owner: str, seen: Lease) -> int:
        if self._lease != seen:
            raise StaleEpoch("another controller took over first")
        self._epoch = seen.epoch + 1
        self._lease = Lease(self._epoch, owner, 0)
        return self._epoch

    def commit(self, batch: Batch) -> Future[list[Written]]:
        future: Future[list[Written]] = Future()
        if self.failure is not None:
            future.set_exception(self.failure)
        elif self._lease.epoch != self._epoch or self._epoch == 0:
            future.set_exception(StaleEpoch(f"epoch {self._epoch} is over: {self._lease.epoch} writes now"))
        else:
            future.set_result(self._write(batch))
        return future

    def _write(self, batch: Batch) -> list[Written]:
        first = len(self._journal) + 1
        written = [Written(first + n, batch.at, entry) for n, entry in enumerate(batch.entries)]
        self._journal += written
        for row in batch.rows:
            self._rows[type(row)][row[: TABLES[type(row)].keys]] = row
        self._lease = self._lease._replace(renewals=self._lease.renewals + 1)
        return written

    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]:
        found = self._journal[after:]
        if workload is not None:
            found = [written for written in found if workload_of(written.entry) == workload]
        return found if limit is None else found[:limit]

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        return self._rows[cls].get(key)  # type: ignore[return-value]

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        held = self._rows[cls]
        return [held[known] for known in sorted(held) if known[: len(key)] == key]  # type: ignore[misc]
