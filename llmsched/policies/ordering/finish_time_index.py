"""The waiting gangs of one class in the order of `finish_time_fair`, without asking for the key of everybody.

Gangs of which the same is known (`GangView.alike`) keep their order for ever: the oldest first. They are one *kin*, and
only its head is asked for a key. What most jobs of a trace differ in is the run time that they declare. Kins that
differ in nothing else stand in three orders at once, one for each tier:

    1 treated unfairly   in buckets of like run times, oldest first: how badly somebody of a bucket can be treated has
                         an upper bound, so few of them are looked at (branch and bound), and none while all of these
                         bounds are below what the tier begins at
    2 long poles         longest first
    3 the rest           shortest first

What history says of declared times stretches all of them alike, so these orders hold whatever it learns.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from heapq import merge
from itertools import groupby
from math import exp, floor, inf, log
from typing import Any, TypeVar

from llmsched.core.policy import GangView, Key

STEP = log(1.15)  # of one bucket of run times
CLOSE = 4e-6  # unfairness is rounded: who is so near the worst is compared by its key

Age = tuple[float, str, int]
Entry = tuple[Age, str]
KindT = TypeVar("KindT")
KeyOf = Callable[[str], Key]


class FinishTimeIndex:
    """Start reading at `first`. `first_tier`: of the gangs of a queue that only declare a run time, a bound below which
    waited / declared is not in the first tier."""

    def __init__(self, first_tier: Callable[[str], float] = lambda queue: 0.0) -> None:
        self._first_tier = first_tier
        self._queue = ""
        self._rows: dict[str, tuple[tuple[object, ...], float | None, Entry]] = {}
        self._kins: dict[tuple[object, ...], list[Entry]] = {}  # each oldest first
        self._declared: dict[float, list[Entry]] = {}  # the same of those that differ in their declared run time alone
        self._times: list[float] = []  # of those, shortest first
        self._buckets: dict[int, list[tuple[float, float, str]]] = {}  # (submitted at, run time, gang), oldest first
        self._edges: dict[int, float] = {}  # of those buckets: the shortest run time, and a little less

    def put(self, gang: GangView) -> None:
        kin, seconds = gang.alike, gang.declared_alone_s
        entry: Entry = ((gang.submitted_at, gang.workload_id, gang.index), gang.id)
        self._rows[gang.id] = kin, seconds, entry
        self._queue = gang.spec.queue
        if seconds is None:
            insort(self._kins.setdefault(kin, []), entry)
            return
        if seconds not in self._declared:
            self._declared[seconds] = []
            insort(self._times, seconds)
        insort(self._declared[seconds], entry)
        number = _bucket(seconds)
        self._edges[number] = exp(number * STEP) * (1 - 1e-9)
        insort(self._buckets.setdefault(number, []), (gang.submitted_at, seconds, gang.id))

    def drop(self, gang: str) -> None:
        kin, seconds, entry = self._rows.pop(gang)
        if seconds is None:
            _take(self._kins, kin, entry)
            return
        if _take(self._declared, seconds, entry):
            del self._times[bisect_left(self._times, seconds)]
        number = _bucket(seconds)
        if _take(self._buckets, number, (entry[0][0], seconds, gang)):
            del self._edges[number]

    def first(self, now: float, key: KeyOf) -> Iterator[tuple[Key, str]]:
        """(key, gang), best first: (the policy's own, *age)."""
        ways = [_with_keys(members, key) for members in self._kins.values()]
        if self._declared:
            ways.append(self._by_time(now, key))
        return merge(*ways) if len(ways) > 1 else ways[0]

    def _by_time(self, now: float, key: KeyOf) -> Iterator[tuple[Key, str]]:
        given: set[str] = set()
        while (worst := self._worst(now, given, key)) is not None:
            given.add(worst[1])
            yield worst
        if self._is_pole(given, key):
            for longest in self._runs(reversed(self._times), given, key):
                if _tier(longest) != 1:
                    break
                given.add(longest[1])
                yield longest
        yield from self._runs(iter(self._times), given, key)

    def _is_pole(self, given: set[str], key: KeyOf) -> bool:
        """Whether the longest of those that were not given yet is in the second tier."""
        head = next(filter(None, (self._head(seconds, given) for seconds in reversed(self._times))), None)
        return head is not None and _tier((key(head), head)) == 1

    def _worst(self, now: float, given: set[str], key: KeyOf) -> tuple[Key, str] | None:
        """Of those that were not given yet who has waited longest for its run time, if that is in the first tier."""
        edges, bounds = self._edges, []
        least = self._first_tier(self._queue)
        if all(now - bucket[0][0] < least * edges[number] for number, bucket in self._buckets.items()):
            return None
        for number, bucket in self._buckets.items():
            for at, _, name in bucket:
                if name not in given:
                    bounds.append(((now - at) / edges[number], number))
                    break
        least, near = -inf, [(0.0, "")][:0]
        while bounds:
            bound, number = max(bounds)
            edge = edges[number]
            for at, seconds, name in self._buckets[number]:
                if (now - at) / edge < least:
                    break
                ratio = (now - at) / seconds
                if ratio >= least and name not in given:
                    near.append((ratio, name))
                    least = max(least, ratio * (1 - CLOSE) - CLOSE)
            bounds = [row for row in bounds if row[0] >= least and row != (bound, number)]
        if not near or _tier((key(max(near)[1]), "")) != 0:
            return None
        return min((key(name), name) for ratio, name in near if ratio >= least)

    def _runs(self, times: Iterator[float], given: set[str], key: KeyOf) -> Iterator[tuple[Key, str]]:
        """By run time, those that were not given yet; of rounded equals the oldest first."""
        heads = ((key(head), seconds) for seconds in times if (head := self._head(seconds, given)) is not None)
        for _, like in groupby(heads, key=lambda head: head[0][0]):
            ways = [_with_keys(self._declared[seconds], key, given) for _, seconds in like]
            yield from merge(*ways) if len(ways) > 1 else ways[0]

    def _head(self, seconds: float, given: set[str]) -> str | None:
        """The oldest of that run time of those that were not given yet."""
        for _, name in self._declared[seconds]:
            if name not in given:
                return name
        return None


def _tier(found: tuple[Key, str]) -> object:
    return found[0][0][1]


def _take(lists: dict[KindT, list[Any]], kind: KindT, row: Any) -> bool:
    """Out of the list of that kind; whether it was the last one there."""
    rows = lists[kind]
    del rows[bisect_left(rows, row)]
    if not rows:
        del lists[kind]
    return not rows


def _with_keys(members: list[Entry], key: KeyOf, given: Collection[str] = ()) -> Iterator[tuple[Key, str]]:
    return ((key(name), name) for _, name in members if name not in given)


def _bucket(seconds: float) -> int:
    return floor(log(max(seconds, 1e-9)) / STEP)
