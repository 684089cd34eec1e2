"""The way back: the state is the journal folded, at a start and after every write that failed.

Nothing else is kept in memory that could not be lost. What still runs is adopted later, when the executor connects.
"""

from __future__ import annotations

import logging
from typing import Protocol

from llmsched import sanitize
from llmsched.core.state import State
from llmsched.errors import Bug
from llmsched.store.codec import Entry
from llmsched.store.journal import Written

log = logging.getLogger("llmsched.control")
CHUNK = 5_000  # entries read at a time
LEFT_OUT_AT_MOST = 100


class Journal(Protocol):
    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]: ...


class Unfit(Bug):
    """An entry of the journal that the state cannot take in."""

    def __init__(self, seq: int, entry: Entry, error: Exception) -> None:
        super().__init__(
            f"entry {seq} of the journal, {type(entry).__name__}, cannot be applied: {sanitize.first_line(error)}"
        )
        self.seq = seq


def fold(store: Journal, but: frozenset[int] = frozenset()) -> tuple[State, int]:
    """The state, without the entries `but`, and the number of its last entry. Raises StoreError (damaged), or Unfit."""
    state, seq = State(), 0
    while written := store.read(after=seq, limit=CHUNK):
        for seq, _, entry in written:
            try:
                if seq not in but:
                    state.apply(entry)
            except Exception as error:
                raise Unfit(seq, entry, error) from error
    return state, seq


def fold_all_that_can(store: Journal) -> tuple[State, int, list[Unfit]]:
    """The same, and what had to be left out: one entry that breaks the state must not stop every start for ever.

    Raises Unfit when that does not help."""
    unfit: list[Unfit] = []
    while True:
        try:
            return *fold(store, frozenset(each.seq for each in unfit)), unfit
        except Unfit as error:
            log.exception("left out: %s", error)
            if len(unfit) >= LEFT_OUT_AT_MOST:
                raise
            unfit.append(error)
