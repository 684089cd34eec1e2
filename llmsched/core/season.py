"""The load of an endpoint over the last week, and what it will be by the same hours of yesterday and a week ago.

Means of five minutes in a ring of a week and an hour. What is expected of a slot is the mean of what was there a day
and a week before, times how much more (or less) the last half hour had than the same half hours had: a seasonal naive
forecast with a level (Hyndman and Athanasopoulos, Forecasting, 5.2). How far off it is is no guess: each slot that ends
is compared with what would have been said of it two slots before, and the interval is what those comparisons of the
last day came to. Part of what the journal determines: fed by LoadObserved through `State.apply`, bounded, no clock.
Knows no policy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

SLOT_S = 300.0
DAY, WEEK = 288, 2016  # slots
KEPT = WEEK + 12  # so that a week before the last half hour is there too
UNKNOWN = -1.0
RECENT = 6  # slots that tell the level
LEVEL_MOST = 2.0  # how many times as much, or as little, today may be
PRIOR = 1.0  # requests: by how much near nothing twice as much is no other level
JUDGED = DAY  # comparisons kept
ENOUGH = 12  # comparisons before it counts
WRONG = 0.5  # mean error from which nobody goes by it
INSIDE = 0.8  # part of the comparisons that the interval holds


class Season(NamedTuple):
    """`slot`: the number of the present one since 1970, with `area` (requests x seconds) of `covered_s` seconds so far.
    `means[slot % KEPT]`; `ratios`: what was over what had been expected, oldest first."""

    slot: int
    area: float = 0.0
    covered_s: float = 0.0
    means: tuple[float, ...] = (UNKNOWN,) * KEPT
    ratios: tuple[float, ...] = ()


class Expected(NamedTuple):
    """Requests in flight and waiting: the most expected until a moment, and between what it will probably be.
    `error`: how far off such forecasts were in the mean, as a part of what was expected."""

    load: float
    low: float
    high: float
    error: float

    @property
    def counts(self) -> bool:
        return self.error <= WRONG


def passed(season: Season | None, load: float, since: float, now: float) -> Season:
    """`load` was there from `since` to `now`."""
    season = season or Season(_slot(since))
    if _slot(now) - season.slot > WEEK:
        since = (_slot(now) - WEEK) * SLOT_S
        season = Season(_slot(since))
    if _slot(now) == season.slot:
        return season._replace(area=season.area + load * (now - since), covered_s=season.covered_s + now - since)
    means, ratios = [*season.means], [*season.ratios]
    slot, area, covered_s = season.slot, season.area, season.covered_s
    while slot < _slot(now):
        ends = (slot + 1) * SLOT_S
        area, covered_s = area + load * (ends - since), covered_s + ends - since
        mean = round(area / covered_s, 3) if covered_s >= SLOT_S / 2 else UNKNOWN
        before = _expected(means, slot, known_before=slot - 1)
        if mean != UNKNOWN and before is not None:
            ratios.append(round((mean + PRIOR) / (before + PRIOR), 3))
        means[slot % KEPT] = mean
        slot, area, covered_s, since = slot + 1, 0.0, 0.0, ends
    return Season(slot, load * (now - since), now - since, tuple(means), tuple(ratios[-JUDGED:]))


def expected(season: Season | None, now: float, ahead_s: float) -> Expected | None:
    """Of the next `ahead_s` seconds. None: too little is known yet."""
    if season is None or len(season.ratios) < ENOUGH:
        return None
    slots = range(_slot(now), _slot(now + ahead_s) + 1)
    found = [load for slot in slots if (load := _expected(season.means, slot, season.slot)) is not None]
    if not found:
        return None
    most, (error, *inside) = max(found), _judged(season.ratios)
    low, high = (max((most + PRIOR) * ratio - PRIOR, 0.0) for ratio in inside)
    return Expected(round(most, 3), round(low, 3), round(high, 3), round(error, 3))


@lru_cache(maxsize=256)
def _judged(ratios: tuple[float, ...]) -> tuple[float, float, float]:
    """The mean error, and between which ratios the middle of them lies."""
    by_size = sorted(ratios)
    cut = int(len(by_size) * (1 - INSIDE) / 2)
    return sum(abs(ratio - 1) for ratio in by_size) / len(by_size), by_size[cut], by_size[-1 - cut]


def next_change(now: float, ahead_s: float) -> float:
    """When what is expected of the next `ahead_s` seconds includes another slot."""
    return (_slot(now + ahead_s) + 1) * SLOT_S - ahead_s


def _expected(means: tuple[float, ...] | list[float], slot: int, known_before: int) -> float | None:
    """Of one slot, by the slots before `known_before`."""
    base = _base(means, slot)
    if base is None:
        return None
    was = should = 0.0
    for recent in range(known_before - RECENT, known_before):
        there, usual = means[recent % KEPT], _base(means, recent)
        if there != UNKNOWN and usual is not None:
            was, should = was + there, should + usual
    level = (was + PRIOR * RECENT) / (should + PRIOR * RECENT)
    return base * min(max(level, 1 / LEVEL_MOST), LEVEL_MOST)


def _base(means: tuple[float, ...] | list[float], slot: int) -> float | None:
    """What was there a day and a week before."""
    known = [mean for back in (DAY, WEEK) if (mean := means[(slot - back) % KEPT]) != UNKNOWN]
    return sum(known) / len(known) if known else None


def _slot(at: float) -> int:
    return int(at // SLOT_S)
