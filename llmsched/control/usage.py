"""Who held how much: the books of the state as of now, and those of what has left it, added up for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import add, itemgetter
from typing import Any, NamedTuple

from llmsched.control import garbage
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
    with garbage.paused():
        return await _added_up(state, archive, _Sums(question, permissions), question, now)


async def _added_up(
    state: State, archive: StoreArchive, sums: _Sums, question: Question, now: float
) -> dict[tuple[str, ...], Amounts]:
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
        self._found: dict[Any, tuple[int, ...]] = {}  # plain tuples: the garbage collector lets them be
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
            key, more = key_of(row), (*map(int, amounts.split()),)
            sums = found.get(key)
            found[key] = more if sums is None else (*map(add, sums, more),)

    def found(self) -> dict[tuple[str, ...], Amounts]:
        """By names as people have them: all runs of a workload together."""
        keys: Iterable[Any] = self._found if len(self._question.by) > 1 else zip(self._found, strict=True)
        columns = zip(self._question.by, zip(*keys, strict=True), strict=False)  # one after the other: it is fast
        shown = [map(_SHOWN[name], values) if name in _SHOWN else values for name, values in columns]
        merged: dict[tuple[str, ...], Amounts] = {}
        for names, sums in zip(zip(*shown, strict=True), self._found.values(), strict=True):
            amounts, there = Amounts._make(sums), merged.get(names)
            merged[names] = amounts if there is None else there.plus(amounts)
        return merged


def _name_of_run(run: str) -> str:
    return run.partition("@")[0]


_SHOWN: dict[str, Callable[[Any], str]] = {"workload": _name_of_run, "day": cache(day_of)}
