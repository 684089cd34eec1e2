"""Alarms over a feed that has passed, by the monitor's own windows and by a fixed threshold.

A surge is planted on every fifth day, each alone: that day and the next have three times as many events as the four
weeks before. The threshold is a number that no day of the first four weeks reaches times `k`; it is compared where it
raises as many alarms, and where it finds as many surges.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from workloads.apps.windows import ALL, Windows

AGAINST, LEVEL, EVERY, TIMES = 28, 0.005, 5, 3
DAY_S = 86400.0
Alarms = Callable[[Sequence[int]], set[int]]


def counts_of(days: Sequence[int]) -> list[int]:
    """Events of each day, from the first to the last."""
    seen = Counter(days)
    return [seen[day] for day in range(min(days), max(days) + 1)]


def shuffled(counts: Sequence[int], seed: int = 7) -> list[int]:
    """The same events at any time: what is an alarm now is a false one."""
    chance = random.Random(seed)
    return counts_of([*range(len(counts)), *(chance.randrange(len(counts)) for _ in range(sum(counts)))])


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
