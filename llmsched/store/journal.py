"""The port of the store: an append-only journal with query tables beside it, behind a fence.

`sqlite` keeps it, `memory` only holds it. Whoever writes has first raised the epoch (`take_over`); a write under an
older epoch raises `StaleEpoch` and leaves nothing behind. What a finished `commit` returned survives a power cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from llmsched.errors import StoreError
from llmsched.store.codec import Entry
from llmsched.store.tables import AnyRow, ArchiveQuery, ArchiveRow, Row, UsageQuery, UsageRow

QUIET = ("LoadObserved", "Estimated")  # kinds that only measure, often: not part of a workload's story


class StaleEpoch(StoreError):
    """Another controller has taken over. Nothing was written; this one must stop."""

    default_code = "stale_epoch"


class Written(NamedTuple):
    """An entry where it stands in the journal. `at` is the stamp of the turn that wrote it, in seconds."""

    seq: int
    at: float
    entry: Entry


class Lease(NamedTuple):
    """Who writes. `renewals` counts up while the owner lives; "" owns a store that was closed in good order."""

    epoch: int
    owner: str
    renewals: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes durable together, or not at all."""

    at: float
    entries: Sequence[Entry] = ()
    rows: Sequence[Row] = ()


class Store(Protocol):
    """Every method may raise StoreError. `commit`, `remove` and `compact` may be called from any thread."""

    def open(self) -> None:
        """Create or migrate. Raises when the store is newer, damaged, or holds less than once was written to it."""

    def close(self) -> None:
        """Give the lease back and close."""

    def lease(self) -> Lease: ...

    def take_over(self, owner: str, seen: Lease) -> int:
        """Raise the epoch if the lease is still as `seen`; the new epoch. Raises StaleEpoch when it is not."""

    def commit(self, batch: Batch) -> Future[list[Written]]:
        """Append and replace in one transaction; done when it is on disk. Sequence numbers have no gap.

        Each commit renews the lease; an empty one does only that, and tells whether a store that failed is well again.
        """

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
        """Entries with seq > `after` (and < `before`) in order, at most `limit`; or the last `limit` of them (`last`).

        Those of the story of one workload, or of some kinds, only when asked. Verifies checksums. Raises StoreError
        (`compacted`) when all are asked for and some are not kept any more.
        """

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None: ...

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        """In order of their keys; those whose key begins with `key`."""

    def archived(self, query: ArchiveQuery) -> list[ArchiveRow]: ...

    def usage(self, query: UsageQuery) -> list[UsageRow]: ...

    def older(self, cls: type[Row], before: float, limit: int = 1_000) -> list[tuple[Any, ...]]:
        """Keys of rows from before that time, the oldest first."""

    def remove(self, cls: type[Row], keys: Sequence[tuple[Any, ...]]) -> Future[None]: ...

    def compact(self, floor: int, limit: int) -> Future[int]:
        """Remove entries up to `floor`, at most `limit` of them; how many. Some snapshot must hold what they made."""

    def floor(self) -> int:
        """Entries up to this one are not kept any more."""


def workload_of(entry: Entry) -> str | None:
    """The workload whose story an entry belongs to. Of a publication that is where the artifact came from."""
    gang = getattr(entry, "gang", None)
    if gang is not None:
        return str(gang).rpartition("/")[0]
    named = getattr(entry, "workload", None) or getattr(entry, "origin", None)
    return named if named is None or isinstance(named, str) else named.id
