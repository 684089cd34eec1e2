"""Five-field cron in UTC: when a schedule is next due, and whether a minute matches. Standard library only.

Fields: minute hour day-of-month month day-of-week (0 or 7 is Sunday); `*`, `a`, `a-b`, `a,b`, `*/n`, `a-b/n`. When both
day fields are given, one of them is enough, as cron has always had it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
NAMES = {
    name: number
    for names in (("sun mon tue wed thu fri sat", 0), ("jan feb mar apr may jun jul aug sep oct nov dec", 1))
    for number, name in enumerate(names[0].split(), names[1])
}


@lru_cache(maxsize=256)
def parse(text: str) -> tuple[frozenset[int], ...]:
    """The allowed numbers of each field. Raises ValueError saying which field is wrong."""
    parts = text.split()
    if len(parts) != 5:
        raise ValueError(f"a schedule has 5 fields (minute hour day month weekday), not {len(parts)}: {text!r}")
    fields = []
    for part, (name, low, high) in zip(parts, FIELDS, strict=True):
        allowed: set[int] = set()
        for piece in part.split(","):
            span, _, step = piece.partition("/")
            try:
                every = int(step) if step else 1
                if span == "*":
                    first, last = low, high
                else:
                    begin, _, end = span.partition("-")
                    first = _number(begin)
                    last = _number(end) if end else (high if step else first)
            except ValueError:
                raise ValueError(f"{piece!r} is not a {name} in schedule {text!r}") from None
            if not (low <= first <= last <= high and every > 0):
                raise ValueError(f"{piece!r} is out of range {low}..{high} for {name} in schedule {text!r}")
            allowed.update(range(first, last + 1, every))
        fields.append(frozenset(7 if n == 0 and name == "weekday" else n for n in allowed))
    return tuple(fields)


def _number(text: str) -> int:
    return NAMES[text.lower()] if text.lower() in NAMES else int(text)


def is_due(text: str, at: float) -> bool:
    """Whether the minute of stamp `at` matches."""
    return _matches(text, datetime.fromtimestamp(at, UTC))


def _matches(text: str, when: datetime) -> bool:
    minute, hour, day, month, weekday = parse(text)
    return (
        when.minute in minute and when.hour in hour and when.month in month and _day_matches(text, when, day, weekday)
    )


def _day_matches(text: str, when: datetime, day: frozenset[int], weekday: frozenset[int]) -> bool:
    by_day, by_weekday = when.day in day, when.isoweekday() in weekday
    _, _, day_text, _, weekday_text = text.split()
    if day_text == "*":
        return by_weekday
    return by_day if weekday_text == "*" else by_day or by_weekday


def next_due(text: str, after: float) -> float | None:
    """The first matching minute later than stamp `after`; None when there is none in the next five years."""
    minute, hour, day, month, weekday = parse(text)
    when = datetime.fromtimestamp(after, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    limit = when + timedelta(days=5 * 366)
    while when < limit:
        if when.month not in month or not _day_matches(text, when, day, weekday):
            when = when.replace(hour=0, minute=0) + timedelta(days=1)
        elif when.hour not in hour:
            when = when.replace(minute=0) + timedelta(hours=1)
        elif when.minute not in minute:
            when += timedelta(minutes=1)
        else:
            return when.timestamp()
    return None


def covers(text: str, duration_s: float, at: float) -> bool:
    """Whether `at` lies in a window of `duration_s` that began at a due minute."""
    start = next_due(text, at - duration_s)
    return start is not None and start <= at


def last_due(text: str, at: float) -> float | None:
    """The latest matching minute at or before `at`, at most eight days back (a weekly schedule is always found)."""
    minute, hour, day, month, weekday = parse(text)
    when = datetime.fromtimestamp(at, UTC).replace(second=0, microsecond=0)
    limit = when - timedelta(days=8)
    while when > limit:
        if when.month not in month or not _day_matches(text, when, day, weekday):
            when = when.replace(hour=0, minute=0) - timedelta(minutes=1)
        elif when.hour not in hour:
            when = when.replace(minute=0) - timedelta(minutes=1)
        elif when.minute not in minute:
            when -= timedelta(minutes=1)
        else:
            return when.timestamp()
    return None
