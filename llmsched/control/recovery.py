"""The way back: the state is the journal folded, at a start and after every write that failed.

Nothing else is kept in memory that could not be lost. What still runs is adopted later, when the executor connects.
"""

from __future__ import annotations

from typing import Protocol

from llmsched.core.state import State
from llmsched.errors import Bug
from llmsched.store.journal import Written

CHUNK = 5_000  # entries read at a time


class Journal(Protocol):
    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]: ...


def fold(store: Journal) -> tuple[State, int]:
    """The state, and the number of its last entry. Raises StoreError (damaged), or Bug for history that breaks it."""
    state, seq = State(), 0
    while written := store.read(after=seq, limit=CHUNK):
        for seq, _, entry in written:
            try:
                state.apply(entry)
            except Exception as error:
                what = f"entry {seq} of the journal, {type(entry).__name__}"
                raise Bug(f"{what}, cannot be applied: {error!r}") from error
    return state, seq
