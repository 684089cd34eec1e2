"""The waiting gangs of one class in the order of `finish_time_fair`, without asking for the key of everybody.

Gangs of which the same is known (`GangView.alike`) keep their order for ever: the oldest first. They are one *kin*, and
only its head is asked for a key. What most jobs of a trace differ in is the run time that they declare. Kins that
differ in nothing else stand in three orders at once, one for each tier:

    1 treated unfairly   in buckets of like run times, oldest first: who of a bucket can be treated worst has an upper
                         bound, so few of them are looked at (branch and bound)
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
    """Start reading at `first`."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[tuple[object, ...], float | None, Entry]] = {}
        self._kins: dict[tuple[object, ...], list[Entry]] = {}  # each oldest first
        self._declared: dict[float, list[Entry]] = {}  # the same of those that differ in their declared run time alone
        self._times: list[float] = []  # of those, shortest first
        self._buckets: dict[int, list[tuple[float, float, str]]] = {}  # (submitted at, run time, gang), oldest first

    def put(self, gang: GangView) -> None:
        kin, seconds = gang.alike, gang.declared_alone_s
        entry: Entry = ((gang.submitted_at, gang.workload_id, gang.index), gang.id)
        self._rows[gang.id] = kin, seconds, entry
        if seconds is None:
            insort(self._kins.setdefault(kin, []), entry)
            return
        if seconds not in self._declared:
            self._declared[seconds] = []
            insort(self._times, seconds)
        insort(self._declared[seconds], entry)
        insort(self._buckets.setdefault(_bucket(seconds), []), (gang.submitted_at, seconds, gang.id))

    def drop(self, gang: str) -> None:
        kin, seconds, entry = self._rows.pop(gang)
        if seconds is None:
            _take(self._kins, kin, entry)
            return
        if _take(self._declared, seconds, entry):
            del self._times[bisect_left(self._times, seconds)]
        _take(self._buckets, _bucket(seconds), (entry[0][0], seconds, gang))

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
        for longest in self._runs(reversed(self._times), given, key):
            if _tier(longest) != 1:
                break
            given.add(longest[1])
            yield longest
        yield from self._runs(iter(self._times), given, key)

    def _worst(self, now: float, given: set[str], key: KeyOf) -> tuple[Key, str] | None:
        """Of those that were not given yet who has waited longest for its run time, if that is in the first tier."""
        bounds = []
        for number, bucket in self._buckets.items():
            oldest = next((at for at, _, name in bucket if name not in given), None)
            if oldest is not None:
                bounds.append(((now - oldest) / _edge(number), number))
        bounds.sort(reverse=True)
        least, near = -inf, [(0.0, "")][:0]
        for bound, number in bounds:
            if bound < least:
                break
            edge = _edge(number)
            for at, seconds, name in self._buckets[number]:
                if (now - at) / edge < least:
                    break
                ratio = (now - at) / seconds
                if ratio >= least and name not in given:
                    near.append((ratio, name))
                    least = max(least, ratio * (1 - CLOSE) - CLOSE)
        if not near or _tier((key(max(near)[1]), "")) != 0:
            return None
        return min((key(name), name) for ratio, name in near if ratio >= least)

    def _runs(self, times: Iterator[float], given: set[str], key: KeyOf) -> Iterator[tuple[Key, str]]:
        """By run time, those that were not given yet; of rounded equals the oldest first."""
        heads = (
            (key(head), seconds)
            for seconds in times
            if (head := next((name for _, name in self._declared[seconds] if name not in given), None)) is not None
        )
        for _, like in groupby(heads, key=lambda head: head[0][0]):
            ways = [_with_keys(self._declared[seconds], key, given) for _, seconds in like]
            yield from merge(*ways) if len(ways) > 1 else ways[0]


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


def _edge(number: int) -> float:
    """The shortest run time of a bucket, and a little less."""
    return exp(number * STEP) * (1 - 1e-9)
