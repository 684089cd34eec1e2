"""What reading gives: rows that know where they come from, and what was noticed on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Row = dict[str, Any]
OnBadRow = Literal["refuse", "skip"]
NAMED = 3  # bad rows that a message names; the others are counted


class DataError(ValueError):
    """A data set that cannot be used. The message is for whoever wrote it or named it."""


class Changed(DataError):
    """Rows that were read are not what they were."""


class NothingThere(DataError):
    """No file yet that is meant."""


class Bad(NamedTuple):
    """In the place of a row that cannot be read."""

    why: str


class Counted(str):
    """A note that counts rows: true of those that were read, not of the whole data set."""

    __slots__ = ()


class Place(NamedTuple):
    """Where a row stands. Rows count from 1 in their file; those of a table without its header."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"row {self.number:,} of {self.file}"


class Rows(list[Row]):
    """Rows in order. `places` are as many; `notes` are sentences for people; `class_names` are the names of labels that
    the file itself keeps, by column."""

    def __init__(self, rows: Iterable[Row] = (), places: Iterable[Place] = ()) -> None:
        super().__init__(rows)
        self.places: list[Place] = list(places)
        self.notes: list[str] = []
        self.class_names: dict[str, list[str]] = {}

    def add(self, row: Row, place: Place) -> None:
        self.append(row)
        self.places.append(place)


class BadRows:
    """Collects the rows of one data set that cannot be used; they are refused together, or left out and counted."""

    def __init__(self, path: str, on_bad_row: OnBadRow = "refuse") -> None:
        self.path, self.on_bad_row = path, on_bad_row
        self.count = 0
        self._first: list[str] = []

    def add(self, place: Place, why: str) -> None:
        self.count += 1
        if len(self._first) < NAMED:
            self._first.append(f"{place} {why}")

    def settle(self, kept: int) -> list[str]:
        """Notes of what is left out; forgets it. Raises DataError when rows are refused, or none is left."""
        if not self.count:
            return []
        named = "; ".join(self._first)
        more = f"; and {self.count - len(self._first):,} more such rows" if self.count > len(self._first) else ""
        count, self.count, self._first = self.count, 0, []
        if self.on_bad_row == "refuse":
            hint = " (on_bad_row: skip leaves such rows out)" if kept else ""
            raise DataError(f"data set {self.path}: {named}{more}{hint}")
        if not kept:
            raise DataError(f"data set {self.path}: no row is left: {named}{more}")
        return [Counted(f"{self.path}: {count:,} of {count + kept:,} rows left out: {named}{more}")]
