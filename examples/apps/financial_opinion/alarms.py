"""Alarms over a feed that has passed, by the monitor's own windows and by a fixed threshold.

A surge is planted on every fifth day, each alone: that day and the next have three times as many events as the four
weeks before. The threshold is a number of events a day; it is compared where it raises as many alarms, and where it
finds as many surges.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date

from workloads.apps.windows import ALL, Windows

AGAINST, LEVEL, EVERY, TIMES = 28, 0.005, 5, 3
DAY_S = 86400.0
Alarms = Callable[[Sequence[int]], set[int]]


def counts_of(dates: Sequence[date]) -> list[int]:
    """Events of each day, from the first to the last."""
    seen = Counter(one.toordinal() for one in dates)
    return [seen[day] for day in range(min(seen), max(seen) + 1)]


def shuffled(counts: Sequence[int], seed: int = 7) -> list[int]:
    """The same events at any time: what is an alarm now is a false one."""
    chance = random.Random(seed)
    seen = Counter(chance.randrange(len(counts)) for _ in range(sum(counts)))
    return [seen[day] for day in range(len(counts))]


def by_monitor(counts: Sequence[int]) -> set[int]:
    windows = Windows(DAY_S, AGAINST, LEVEL, max(len(counts), 3 * AGAINST))
    for day, count in enumerate(counts):
        for _ in range(count):
            windows.add("feed", day * DAY_S)
    return {*windows.surges(ALL)}


def above(threshold: float) -> Alarms:
    return lambda counts: {day for day, count in enumerate(counts) if count >= threshold}


def per_1000(alarms: Alarms, counts: Sequence[int]) -> float:
    days = range(2 * AGAINST, len(counts))
    return 1000 * len(alarms(counts) & {*days}) / len(days)


def share_found(alarms: Alarms, counts: Sequence[int]) -> float:
    """Of the planted surges, those that one of their two days shows."""
    places = range(2 * AGAINST, len(counts), EVERY)
    hits = 0
    for day in places:
        usual = sum(counts[day - AGAINST : day]) / AGAINST
        some = [*counts[max(0, day - 3 * AGAINST) : day], *[round(TIMES * usual)] * 2]
        hits += bool(alarms(some) & {len(some) - 1, len(some) - 2})
    return hits / len(places)


def compare(real: Sequence[int]) -> Iterator[tuple[str, float, float]]:
    """(part, the monitor's number, the threshold's)"""
    thresholds = [above(number) for number in range(1, 101)]
    found, raised, chance = share_found(by_monitor, real), per_1000(by_monitor, real), shuffled(real)
    as_good = [one for one in thresholds if share_found(one, real) >= found][-1]
    as_loud = next(one for one in thresholds if per_1000(one, real) <= raised)
    yield "found", found, share_found(as_loud, real)
    yield "alarms", raised, per_1000(as_good, real)
    yield "mistaken", per_1000(by_monitor, chance), per_1000(as_good, chance)
