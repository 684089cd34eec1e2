"""Five-field cron: when a schedule is next due, when it was last, and whether two ever meet. Standard library only.

Fields: minute hour day-of-month month day-of-week (0 or 7 is Sunday); `*`, `a`, `a-b`, `a,b`, `*/n`, `a-b/n`, names of
months and weekdays. When neither day field is `*`, one of them is enough, as cron has always had it.

All of it is UTC. Local time skips an hour in spring and has one twice in autumn; UTC has every minute once, so a
schedule is due exactly as often as it says, and everywhere at the same time.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
NAMES = {
    name: number
    for names in (("sun mon tue wed thu fri sat", 0), ("jan feb mar apr may jun jul aug sep oct nov dec", 1))
    for number, name in enumerate(names[0].split(), names[1])
}
_A_LEAP_YEAR = 2024
DAY = 24 * 60  # minutes
CYCLE_DAYS = 28 * 365 + 7
_HORIZON_DAYS = 8 * 366 + 31  # 29 February comes again after eight years at most


class Schedule(NamedTuple):
    """The allowed numbers of each field, ascending. `weekdays` are 1 (Monday) to 7."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    any_day: bool  # the field is `*`
    any_weekday: bool

    def has(self, day: date) -> bool:
        by_day, by_weekday = day.day in self.days, day.isoweekday() in self.weekdays
        if self.any_day:
            return by_weekday
        return by_day if self.any_weekday else by_day or by_weekday


@lru_cache(maxsize=256)
def parse(text: str) -> Schedule:
    """Raises ValueError saying which field is wrong."""
    parts = text.split()
    if len(parts) != 5:
        raise ValueError(f"a schedule has 5 fields (minute hour day month weekday), not {len(parts)}: {text!r}")
    minutes, hours, days, months, weekdays = (
        _numbers(part, *field, text) for part, field in zip(parts, FIELDS, strict=True)
    )
    weekdays = tuple(sorted({number or 7 for number in weekdays}))
    return Schedule(minutes, hours, days, months, weekdays, parts[2] == "*", parts[4] == "*")


def _numbers(part: str, name: str, low: int, high: int, text: str) -> tuple[int, ...]:
    numbers: set[int] = set()
    for piece in part.split(","):
        span, _, step = piece.partition("/")
        try:
            every = int(step) if step else 1
            first, last = (low, high) if span == "*" else _span(span, high if step else None)
        except ValueError:
            raise ValueError(f"{piece!r} is not a {name} in schedule {text!r}") from None
        if not (low <= first <= last <= high and every > 0):
            raise ValueError(f"{piece!r} is out of range {low}..{high} for {name} in schedule {text!r}")
        numbers.update(range(first, last + 1, every))
    return tuple(sorted(numbers))


def _span(span: str, open_end: int | None) -> tuple[int, int]:
    begin, _, end = span.partition("-")
    first = _number(begin)
    if end:
        return first, _number(end)
    return first, first if open_end is None else open_end


def _number(text: str) -> int:
    return NAMES[text.lower()] if text.lower() in NAMES else int(text)


def check(text: str) -> None:
    """Raises ValueError for what is no schedule, and for one of a day that never comes."""
    schedule = parse(text)
    longest = max(monthrange(_A_LEAP_YEAR, month)[1] for month in schedule.months)
    if schedule.any_weekday and schedule.days[0] > longest:
        day, most = schedule.days[0], f"the longest of its months has {longest} days"
        raise ValueError(f"schedule {text!r} is never due: it asks for day {day}, and {most}")


def next_due(text: str, after: float) -> float | None:
    """The first due minute later than stamp `after`; None for a schedule that is never due."""
    return _due_since(text, after // 60 + 1)


@lru_cache(maxsize=4096)
def _due_since(text: str, minutes: float) -> float | None:
    """`minutes`: since the epoch. Asked for again and again in the same minute."""
    schedule = parse(text)
    since = datetime.fromtimestamp(minutes * 60.0, UTC)
    for day in _days(schedule, since.date(), 1):
        for hour in schedule.hours:
            for minute in schedule.minutes:
                due = datetime.combine(day, time(hour, minute), UTC)
                if due >= since:
                    return due.timestamp()
    return None


@lru_cache(maxsize=4096)
def ever_meet(one: str, lasts_s: float, other: str, other_lasts_s: float) -> bool:
    """Whether something that begins whenever the first schedule is due, and something of the second, are ever there at
    once."""
    first, second = parse(one), parse(other)
    days, other_days = _mask_of_days(one), _mask_of_days(other)
    begins = [60 * hour + minute for hour in first.hours for minute in first.minutes]
    others = [60 * hour + minute for hour in second.hours for minute in second.minutes]
    lasts, other_lasts = lasts_s / 60, other_lasts_s / 60
    for later in range(-int(other_lasts // DAY) - 1, int(lasts // DAY) + 2):  # days from one to the other
        if days & (other_days >> later) if later >= 0 else (days >> -later) & other_days:
            for (
                minute
            ) in begins:  # the other begins after the end of what began `other_lasts` before, and before its end
                at = bisect_right(others, minute - later * DAY - other_lasts)
                if at < len(others) and others[at] < minute - later * DAY + lasts:
                    return True
    return False


@lru_cache(maxsize=256)
def _mask_of_days(text: str) -> int:
    """On which days a schedule is due, of a cycle of 28 years, in which every date has had every weekday."""
    schedule, first = parse(text), date(2000, 1, 1).toordinal()
    if schedule.any_day and schedule.any_weekday and len(schedule.months) == 12:
        return (1 << CYCLE_DAYS) - 1
    mask = 0
    for number in range(CYCLE_DAYS):
        day = date.fromordinal(first + number)
        if day.month in schedule.months and schedule.has(day):
            mask |= 1 << number
    return mask


def last_due(text: str, at: float) -> float | None:
    """The latest due minute at or before stamp `at`; None for a schedule that is never due."""
    schedule = parse(text)
    until = datetime.fromtimestamp(at, UTC)
    for day in _days(schedule, until.date(), -1):
        for hour in reversed(schedule.hours):
            for minute in reversed(schedule.minutes):
                due = datetime.combine(day, time(hour, minute), UTC)
                if due <= until:
                    return due.timestamp()
    return None


def _days(schedule: Schedule, begin: date, direction: int) -> Iterator[date]:
    """The days that the schedule has, from `begin` on, forwards or backwards; months it does not have are skipped."""
    day = begin
    while abs((day - begin).days) <= _HORIZON_DAYS:
        if day.month in schedule.months:
            if schedule.has(day):
                yield day
            day += timedelta(days=direction)
        elif direction > 0:
            day = day.replace(day=1) + timedelta(days=monthrange(day.year, day.month)[1])
        else:
            day = day.replace(day=1) - timedelta(days=1)
