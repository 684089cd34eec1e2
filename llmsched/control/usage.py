"""Who held how much: the books of the state as of now, and those of what has left it, added up for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from llmsched.control.archive import StoreArchive
from llmsched.control.authorization import Permissions
from llmsched.control.turns import breathe
from llmsched.core.state import State
from llmsched.core.usage import Amounts, day_of
from llmsched.store.tables import UsageQuery, UsageRow

AT_ONCE = 5_000  # rows of the store


class Question(NamedTuple):
    """`by`: any of user, queue, workload, day and flavor. Days are counted since 1970, and both are included."""

    by: tuple[str, ...]
    since: int
    until: int


async def add_up(
    state: State, archive: StoreArchive, permissions: Permissions, question: Question, now: float
) -> dict[tuple[str, ...], Amounts]:
    """By the values of `by`, as of `now`, of all work that the reader may see. Raises StoreError."""
    sums = _Sums(question, permissions)
    rows = [*_open(state, now), *archive.unwritten_books()]
    counted = {row.workload for row in rows}  # one that leaves the state meanwhile is not counted twice
    for start in range(0, len(rows), AT_ONCE):
        await breathe()
        sums.add(rows[start : start + AT_ONCE])
    query = UsageQuery(question.since, question.until, AT_ONCE)
    while page := await asyncio.to_thread(archive.usage, query):
        sums.add([row for row in page if row.workload not in counted] if counted else page)
        query = query._replace(after=page[-1][:4])
        await breathe()
    return await asyncio.to_thread(sums.found)


def _open(state: State, now: float) -> Iterator[UsageRow]:
    for workload, book in state.ledgers.meter.until(now).items():
        it = state.workloads[workload].workload
        for (day, queue, flavor), amounts in book.items():
            yield UsageRow(day, workload, queue, flavor, it.user, " ".join(map(str, amounts)))


class _Sums:
    """By raw keys: of a hundred thousand rows each step counts."""

    def __init__(self, question: Question, permissions: Permissions) -> None:
        self._question, self._permissions = question, permissions
        self._found: dict[Any, list[int]] = {}
        self._key: Callable[[UsageRow], Any] = itemgetter(*map(UsageRow._fields.index, question.by))
        self._sees: dict[tuple[str, str], bool] = {}

    def add(self, rows: Iterable[UsageRow]) -> None:
        (_, since, until), found, key_of, sees = self._question, self._found, self._key, self._sees
        for row in rows:
            day, _, queue, _, user, amounts = row
            seen = sees.get((user, queue))
            if seen is None:
                seen = sees[user, queue] = self._permissions.sees_work_of(user, queue)
            if not seen or day < since or day > until:
                continue
            own, borrowed, starting, lost, cost = map(int, amounts.split())
            key = key_of(row)
            sums = found.get(key)
            if sums is None:
                found[key] = [own, borrowed, starting, lost, cost]
            else:
                sums[0] += own
                sums[1] += borrowed
                sums[2] += starting
                sums[3] += lost
                sums[4] += cost

    def found(self) -> dict[tuple[str, ...], Amounts]:
        """By names as people have them: all runs of a workload together."""
        many, shown = len(self._question.by) > 1, [_SHOWN.get(name, str) for name in self._question.by]
        merged: dict[tuple[str, ...], list[int]] = {}
        for key, sums in self._found.items():
            names = tuple(show(value) for show, value in zip(shown, key if many else (key,), strict=True))
            there = merged.get(names)
            merged[names] = sums if there is None else [one + more for one, more in zip(there, sums, strict=True)]
        return {names: Amounts._make(sums) for names, sums in merged.items()}


def _name_of_run(run: str) -> str:
    return run.partition("@")[0]


_SHOWN: dict[str, Callable[[Any], str]] = {"workload": _name_of_run, "day": cache(day_of)}
