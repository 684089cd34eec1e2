"""The way back: the state is the newest snapshot with the entries after it, at a start and after a write that failed.

A snapshot is what folding gave, so both ways lead to the same state (`fold_all`, for fsck, goes the long one). Nothing
else is kept in memory that could not be lost. What still runs is adopted later, when the executor connects.
"""

from __future__ import annotations

import logging
from math import inf
from typing import Any, Protocol

from llmsched import sanitize
from llmsched.core.archive import Archive
from llmsched.core.snapshot import thaw
from llmsched.core.state import State
from llmsched.errors import Bug, StoreError
from llmsched.store import seal, snapshots
from llmsched.store.codec import Entry
from llmsched.store.journal import Written
from llmsched.store.tables import AnyRow, Row, SnapshotRow

log = logging.getLogger("llmsched.control")
CHUNK = 5_000  # entries read at a time
LEFT_OUT_AT_MOST = 100
NOTHING: frozenset[int] = frozenset()


class Journal(Protocol):
    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]: ...

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None: ...

    def older(self, cls: type[Row], before: float) -> list[tuple[Any, ...]]: ...

    def floor(self) -> int: ...


class Unfit(Bug):
    """An entry of the journal that the state cannot take in."""

    def __init__(self, seq: int, entry: Entry, error: Exception) -> None:
        super().__init__(
            f"entry {seq} of the journal, {type(entry).__name__}, cannot be applied: {sanitize.first_line(error)}"
        )
        self.seq = seq


def fold(
    store: Journal, archive: Archive | None = None, stop: int | None = None, but: frozenset[int] = NOTHING
) -> tuple[State, int]:
    """The state, up to entry `stop` and without the entries `but`, and the number of its last entry. Raises StoreError
    (damaged), or Unfit."""
    found = [seq for (seq,) in store.older(SnapshotRow, inf) if stop is None or seq <= stop]
    state, seq = restored(store, found[-1], archive) if found else (State(archive=archive), 0)
    return unfold(store, state, seq, stop, but)


def fold_all_that_can(
    store: Journal, archive: Archive | None = None, stop: int | None = None
) -> tuple[State, int, list[Unfit]]:
    """The same, and what had to be left out: one entry that breaks the state must not stop every start for ever.

    Raises Unfit when that does not help."""
    unfit: list[Unfit] = []
    while True:
        try:
            return *fold(store, archive, stop, frozenset(each.seq for each in unfit)), unfit
        except Unfit as error:
            log.exception("left out: %s", error)
            if len(unfit) >= LEFT_OUT_AT_MOST:
                raise
            unfit.append(error)


def fold_all(store: Journal, archive: Archive | None = None) -> tuple[State, int]:
    """The same from the first entry on that is kept. Raises StoreError when a snapshot on the way says otherwise."""
    state, seq = first(store, archive)
    at = [found for (found,) in store.older(SnapshotRow, inf) if found >= seq]
    for stop in [*at, None]:
        state, seq = unfold(store, state, seq, stop)
        if stop is not None and state.digest() != restored(store, stop, archive)[0].digest():
            raise StoreError(
                f"the snapshot of entry {stop} is not what its entries make", code="store_damaged", hint=seal.RESTORE
            )
    return state, seq


def first(store: Journal, archive: Archive | None = None) -> tuple[State, int]:
    """The state before the first entry that is kept, and the number of the last one that it holds."""
    floor = store.floor()
    if not floor:
        return State(archive=archive), 0
    held = [seq for (seq,) in store.older(SnapshotRow, inf) if seq >= floor]  # those before wait to be removed
    if not held:
        raise StoreError(f"no snapshot holds what was before entry {floor}", code="store_damaged", hint=seal.RESTORE)
    return restored(store, held[0], archive)


def unfold(
    store: Journal, state: State, seq: int, stop: int | None = None, but: frozenset[int] = NOTHING
) -> tuple[State, int]:
    """Apply what was written after entry `seq`, up to `stop`."""
    while seq != stop and (written := store.read(after=seq, limit=CHUNK if stop is None else min(CHUNK, stop - seq))):
        for seq, _, entry in written:
            try:
                if seq not in but:
                    state.apply(entry)
            except Exception as error:
                raise Unfit(seq, entry, error) from error
    return state, seq


def restored(store: Journal, seq: int, archive: Archive | None) -> tuple[State, int]:
    """The state as of a snapshot. Its digest was another one if it was made under an older model of the state."""
    row = store.row(SnapshotRow, seq)
    if row is None:
        raise StoreError(f"the snapshot of entry {seq} is gone", code="store_damaged", hint=seal.RESTORE)
    return thaw(snapshots.load(row.body), archive), seq
