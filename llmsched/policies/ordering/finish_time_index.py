"""The waiting gangs of one class in the order of `finish_time_fair`, without asking for the key of everybody.

Gangs of which the same is known (`GangView.alike`) keep their order for ever: the oldest first. They are one *kin*, and
only its head is asked for a key. Those of which nothing is known but a declared run time stand in three orders at once,
one for each tier, each by a bound that is no worse than the key:

    1 treated unfairly   by seconds waited / seconds declared, in buckets of like run times
    2 long poles         by the most that may be left
    3 the rest           by the least that may be left on average

A key is only asked for as long as the next bound is better than the best key known (branch and bound): those who have
not begun are close to their bounds, whatever history says, as that stretches all of them alike.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from heapq import heapify, heappop, heappush, heapreplace, merge
from math import exp, floor, inf, log
from typing import Any, NamedTuple, TypeVar

from llmsched.core.amounts import bundle_milli
from llmsched.core.estimate import BEYOND, Outlook
from llmsched.core.policy import GangView, Key
from llmsched.core.resources import MILLI

STEP = log(1.15)  # of one bucket of run times
CLOSE = 0.001  # keys are rounded to less,
FINE = 0.00001  # and those of the first tier to less than that
SLACK = 1.01  # the orders of tiers 2 and 3 are made anew when history says that much more or less

Age = tuple[float, str, int]
Entry = tuple[Age, str]
Bound = tuple[float, str]
KindT = TypeVar("KindT")
KeyOf = Callable[[str], Key]


class Limits(NamedTuple):
    """What the tiers of one queue go by in a pass, for gangs of which only a declared run time is known."""

    guard: float  # unfairness from which on somebody is in the first tier
    contention: float
    pole_s: float  # seconds that may be left from which on somebody is in the second
    least: float  # of real / declared run time: what unfairness goes by,
    mean: float  # what most go by,
    most: float  # and the largest there was
    late: float  # seconds waited / seconds declared from which on somebody may be in the first tier


def limits_of(guard: float, contention: float, pole_s: float, declared: Outlook) -> Limits:
    """`declared`: what a second that somebody declares comes to: at least, on average, at most."""
    late = declared.least_s * (guard * contention - 1.0) - CLOSE
    return Limits(guard, contention, pole_s, *declared, late)


class FinishTimeIndex:
    """Start reading at `first`."""

    def __init__(self, limits: Callable[[str], Limits]) -> None:
        self._limits = limits
        self._queue = ""
        self._rows: dict[str, tuple[tuple[object, ...], Entry]] = {}  # those that are in `_kins`
        self._kins: dict[tuple[object, ...], list[Entry]] = {}  # each oldest first
        self._declared: Declared | None = None

    def put(self, gang: GangView) -> None:
        self._queue = gang.spec.queue
        seconds = gang.declared_alone_s
        if seconds is None:
            kin, entry = gang.alike, ((gang.submitted_at, gang.workload_id, gang.index), gang.id)
            self._rows[gang.id] = kin, entry
            insort(self._kins.setdefault(kin, []), entry)
            return
        if self._declared is None:
            self._declared = Declared(gang)
        self._declared.put(Row(seconds, gang.served_s, gang.submitted_at + gang.served_s, gang.id))

    def drop(self, gang: str) -> None:
        found = self._rows.pop(gang, None)
        if found is not None:
            _take(self._kins, *found)
        elif self._declared is not None:
            self._declared.drop(gang)

    def bound(self, now: float) -> Key:
        """What nobody's own key is below; () where that is not known without asking for keys."""
        if self._kins or self._declared is None or not self._declared.rows:
            return ()
        return self._declared.bound(now, self._limits(self._queue))

    def first(self, now: float, key: KeyOf) -> Iterator[tuple[Key, str]]:
        """(key, gang), best first: (the policy's own, *age)."""
        ways = [_with_keys(members, key) for members in self._kins.values()]
        if self._declared is not None and self._declared.rows:
            ways.append(self._declared.first(now, key, self._limits(self._queue)))
        return merge(*ways) if len(ways) > 1 else ways[0]


class Row(NamedTuple):
    """A gang that declares `seconds` and has run for `done_s`. `since`: now - since is how long it has waited."""

    seconds: float
    done_s: float
    since: float
    name: str


class Furthest(NamedTuple):
    """Who has waited longest for its run time: the same one from `at` on, before `until`."""

    since: float
    seconds: float
    at: float
    until: float


def furthest_behind(firsts: list[tuple[float, float]], now: float) -> Furthest:
    """Of (since, seconds): (now - since) / seconds only grows, the faster the shorter the run time is; so whoever comes
    to be ahead later is a shorter one, at a moment that is known."""
    since, seconds = max(firsts, key=lambda row: (now - row[0]) / row[1])
    overtaken = [
        (other * seconds - since * shorter) / (seconds - shorter) for other, shorter in firsts if shorter < seconds
    ]
    return Furthest(since, seconds, now, min(overtaken, default=inf))


class Declared:
    """Those of a class that declare a run time and tell nothing else, by bounds of their keys."""

    def __init__(self, gang: GangView) -> None:
        self.rows: dict[str, Row] = {}
        self.urgency = -gang.spec.priority
        self._root = float(gpus_of(gang) ** 0.5)
        self._buckets: dict[int, list[tuple[float, float, str]]] = {}  # (since, seconds, gang): longest waiting first
        self._furthest: Furthest | None = None  # of their first ones, until one of them is another
        self._fresh: list[Bound] = []  # (seconds, gang) of those that have not begun: in order whatever history says
        self._mean = self._most = 1.0  # what the others are ordered by:
        self._by_left: list[Bound] = []  # (the least that is left on average, gang)
        self._by_most: list[Bound] = []  # (-the most that may be left, gang)

    def put(self, row: Row) -> None:
        self.rows[row.name] = row
        bucket, entry = self._buckets.setdefault(_bucket(row.seconds), []), (row.since, row.seconds, row.name)
        insort(bucket, entry)
        if bucket[0] is entry:
            self._furthest = None
        for bounds, bound in self._bounds(row):
            insort(bounds, bound)

    def drop(self, name: str) -> None:
        row = self.rows.pop(name)
        if not _take(self._buckets, _bucket(row.seconds), (row.since, row.seconds, name)):
            self._furthest = None
        for bounds, bound in self._bounds(row):
            del bounds[bisect_left(bounds, bound)]

    def _bounds(self, row: Row) -> list[tuple[list[Bound], Bound]]:
        """Where it stands for the second and the third tier."""
        if not row.done_s:
            return [(self._fresh, (row.seconds, row.name))]
        return [(self._by_left, self._left(row)), (self._by_most, self._most_left(row))]

    def bound(self, now: float, limits: Limits) -> tuple[int, int, float]:
        """(urgency, tier, what is no worse than anybody's key in it)."""
        _, contention, pole_s, shortest, mean, longest, late = limits
        worst = self._worst(now)
        if worst >= late:
            return self.urgency, 0, -(worst / shortest + 1.0) / contention - FINE
        self._keep_to(limits)
        fresh, by_most, by_left = self._fresh, self._by_most, self._by_left
        pole = fresh[-1][0] * longest if fresh else 0.0
        if by_most and -by_most[0][0] > pole:
            pole = -by_most[0][0]
        if pole >= pole_s:
            return self.urgency, 1, -pole - CLOSE
        least = fresh[0][0] * mean if fresh else inf
        if by_left and by_left[0][0] < least:
            least = by_left[0][0]
        return self.urgency, 2, least * self._root - CLOSE

    def _worst(self, now: float) -> float:
        """What nobody has waited for longer than, in units of its run time."""
        furthest = self._furthest
        if furthest is None or not furthest.at <= now < furthest.until:
            firsts = [(bucket[0][0], _edge(number)) for number, bucket in self._buckets.items()]
            furthest = self._furthest = furthest_behind(firsts, now)
        since, seconds, _, _ = furthest
        return (now - since) / seconds

    def first(self, now: float, key: KeyOf, limits: Limits) -> Iterator[tuple[Key, str]]:
        self._keep_to(limits)
        given: set[str] = set()
        for tier, bounds in enumerate((self._late(now, limits), self._poles(limits), self._rest(limits))):
            for found in _by_bound(tier, bounds, key, given):
                given.add(found[1])
                yield found

    def _late(self, now: float, limits: Limits) -> Iterator[Bound]:
        """Of the first tier: bounds of -unfairness, the worst first."""
        _, contention, _, shortest, _, _, late = limits
        if self._worst(now) < late:
            return

        def bound(waited: float, seconds: float) -> float:
            return -(waited / (seconds * shortest) + 1.0) / contention - FINE

        ahead: list[tuple[float, int, int]] = []  # (what nobody of a bucket from there on is below, bucket, place)
        for number, bucket in self._buckets.items():
            waited, edge = now - bucket[0][0], _edge(number)
            if waited >= late * edge:
                ahead.append((bound(waited, edge), number, 0))
        heapify(ahead)
        known: list[Bound] = []
        while ahead:
            least, number, place = ahead[0]
            while known and known[0][0] < least:
                yield heappop(known)
            bucket, edge = self._buckets[number], _edge(number)
            since, seconds, name = bucket[place]
            heappush(known, (bound(now - since, seconds), name))
            waited = now - bucket[place + 1][0] if place + 1 < len(bucket) else -inf
            if waited >= late * edge:
                heapreplace(ahead, (bound(waited, edge), number, place + 1))
            else:
                heappop(ahead)
        while known:
            yield heappop(known)

    def _poles(self, limits: Limits) -> Iterator[Bound]:
        """Of the second tier: bounds of -seconds, the longest first."""
        fresh = ((-seconds * limits.most, name) for seconds, name in reversed(self._fresh))
        for bound, name in merge(fresh, self._by_most) if self._by_most else fresh:
            if -bound < limits.pole_s:
                return
            yield bound - CLOSE, name

    def _rest(self, limits: Limits) -> Iterator[Bound]:
        fresh = ((seconds * limits.mean, name) for seconds, name in self._fresh)
        every = merge(fresh, self._by_left) if self._by_left else fresh
        return ((left * self._root - CLOSE, name) for left, name in every)

    def _left(self, row: Row) -> Bound:
        return row.seconds * self._mean - row.done_s, row.name

    def _most_left(self, row: Row) -> Bound:
        return -max(row.seconds * self._most - row.done_s, row.done_s * BEYOND), row.name

    def _keep_to(self, limits: Limits) -> None:
        """Order anew where history has learnt so much that the bounds are none any more, or far off."""
        if self._mean <= limits.mean <= self._mean * SLACK**2 and self._most / SLACK**2 <= limits.most <= self._most:
            return
        begun = [self.rows[name] for _, name in self._by_left]
        self._mean, self._most = limits.mean / SLACK, limits.most * SLACK
        self._by_left = sorted(map(self._left, begun))
        self._by_most = sorted(map(self._most_left, begun))


def gpus_of(gang: GangView) -> float:
    """What it has or, while it waits, gets at least."""
    spec = gang.spec
    return (gang.size or spec.min_size) * bundle_milli(spec, gang.option) / MILLI


def _by_bound(tier: int, bounds: Iterable[Bound], key: KeyOf, given: Collection[str]) -> Iterator[tuple[Key, str]]:
    """Those of a tier by their keys, best first, asking for as few as can be."""
    known: list[tuple[Key, str]] = []
    for bound, name in bounds:
        while known and known[0][0][0][2] < bound:
            yield heappop(known)
        if name not in given and (found := key(name))[0][1] == tier:
            heappush(known, (found, name))
    while known:
        yield heappop(known)


def _take(lists: dict[KindT, list[Any]], kind: KindT, row: Any) -> int:
    """Out of the list of that kind; where it stood there."""
    rows = lists[kind]
    at = bisect_left(rows, row)
    del rows[at]
    if not rows:
        del lists[kind]
    return at


def _with_keys(members: list[Entry], key: KeyOf) -> Iterator[tuple[Key, str]]:
    return ((key(name), name) for _, name in members)


def _bucket(seconds: float) -> int:
    return floor(log(max(seconds, 1e-9)) / STEP)


@cache
def _edge(number: int) -> float:
    """The shortest run time of a bucket, and a little less."""
    return exp(number * STEP) * (1 - 1e-9)
