"""What keys have used of models: the books of gateways, in the store, added up for one reader.

A gateway sends a row again whenever it has grown, with all of its day, so a row that comes twice counts once. Rows are
written along with whatever is committed next; one that could not be written stays until it is.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from llmsched.executors.port import KeyUsageSeen
from llmsched.store.tables import KeyUsageRow

Key = tuple[int, str, str, str]


class Amounts(NamedTuple):
    """`cached`: of the tokens of prompts, those that were not read again."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(*(mine + more for mine, more in zip(self, other, strict=True)))


class Question(NamedTuple):
    """`by`: any of key, user, model and day. Days are counted since 1970, and both are included."""

    by: tuple[str, ...]
    since: int
    until: int


class Rows(Protocol):
    def rows(self, cls: type[KeyUsageRow], *key: object) -> list[KeyUsageRow]: ...


class KeyUsage:
    def __init__(self, store: Rows) -> None:
        self._store = store
        self._pending: dict[Key, KeyUsageRow] = {}
        self._offered: list[KeyUsageRow] = []

    def see(self, seen: KeyUsageSeen) -> None:
        for row in seen.rows:
            amounts = " ".join(map(str, (row.requests, row.prompt, row.completion, row.cached)))
            kept = KeyUsageRow(row.day, row.key, row.model, seen.gateway, row.user, amounts)
            self._pending[kept[:4]] = kept

    def unwritten(self) -> list[KeyUsageRow]:
        """What is to be written with the next commit; `written` says that it has been."""
        self._offered = list(self._pending.values())
        return self._offered

    def written(self) -> None:
        for row in self._offered:
            if self._pending.get(row[:4]) is row:
                del self._pending[row[:4]]
        self._offered = []

    def add_up(self, question: Question, user: str | None) -> dict[tuple[str, ...], Amounts]:
        """By the values of `by`. `user`: of that user's keys alone. Raises StoreError."""
        found: dict[tuple[str, ...], Amounts] = {}
        for day in range(question.since, question.until + 1):
            there = {row[:4]: row for row in self._store.rows(KeyUsageRow, day)}
            there |= {key: row for key, row in self._pending.items() if row.day == day}
            for row in there.values():
                if user is not None and row.user != user:
                    continue
                names = tuple(str(getattr(row, name)) for name in question.by)
                found[names] = found.get(names, Amounts()).plus(Amounts(*map(int, row.amounts.split())))
        return found
