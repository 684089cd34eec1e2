"""Schedules, in UTC: due when they say, refused when they never are."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.core import cron


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def shown(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("text", "after", "due"),
    [
        ("* * * * *", "2026-11-26 12:00:30", "2026-11-26 12:01"),
        ("*/15 * * * *", "2026-11-26 12:45", "2026-11-26 13:00"),
        ("30 9-17/4 * * *", "2026-11-26 09:30", "2026-11-26 13:30"),
        ("0 0 29 2 *", "2026-11-26", "2028-02-29 00:00"),
        ("0 0 29 2 *", "2096-03-01", "2104-02-29 00:00"),  # 2100 is no leap year
        ("0 0 31 * *", "2026-11-26", "2026-12-31 00:00"),
        ("0 8 * * mon-fri", "2026-11-27 08:00", "2026-11-30 08:00"),
        ("0 8 * * 0", "2026-11-26", "2026-11-29 08:00"),
        ("0 8 * * 7", "2026-11-26", "2026-11-29 08:00"),
        ("0 0 13 * fri", "2026-11-26", "2026-11-27 00:00"),  # either day field is enough
        ("0 0 30 2 fri", "2026-11-26", "2027-02-05 00:00"),  # so this one is due, on Fridays
        ("59 23 31 dec *", "2026-12-31 23:59", "2027-12-31 23:59"),
    ],
)
def test_the_next_due_minute(text: str, after: str, due: str) -> None:
    cron.check(text)
    assert shown(cron.next_due(text, stamp(after))) == due


@pytest.mark.parametrize(
    ("text", "at", "due"),
    [
        ("* * * * *", "2026-11-26 12:00:30", "2026-11-26 12:00"),
        ("0 8 * * 1-5", "2026-11-26 07:59", "2026-11-25 08:00"),
        ("0 0 1 * *", "2026-11-26", "2026-11-01 00:00"),
        ("0 0 1 1 *", "2026-11-26", "2026-01-01 00:00"),
        ("0 0 29 2 *", "2026-11-26", "2024-02-29 00:00"),
    ],
)
def test_the_last_due_minute_however_long_ago(text: str, at: str, due: str) -> None:
    assert shown(cron.last_due(text, stamp(at))) == due


@pytest.mark.parametrize("text", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * 31 feb *"])
def test_a_day_that_never_comes_is_refused_with_the_reason_and_never_due(text: str) -> None:
    with pytest.raises(ValueError, match=r"is never due: it asks for day 3\d, and the longest of its months has"):
        cron.check(text)
    assert cron.next_due(text, 0.0) is None
    assert cron.last_due(text, stamp("2026-11-26")) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0 0 * *", "has 5 fields"),
        ("60 * * * *", "'60' is out of range 0..59 for minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "weekday"),
        ("*/0 * * * *", "out of range"),
        ("9-5 * * * *", "out of range"),
        ("x * * * *", "'x' is not a minute"),
        ("1,,2 * * * *", "is not a minute"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_field(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        cron.check(text)


def test_daylight_saving_neither_skips_nor_doubles_anything() -> None:
    """The days on which Europe's and America's clocks lose an hour, and have one twice."""
    for day in ("2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01"):
        due, at = [], stamp(day)
        while (following := cron.next_due("30 * * * *", at)) is not None and following < stamp(day) + 86_400:
            due.append(following)
            at = following
        assert [later - earlier for earlier, later in itertools.pairwise(due)] == [3600.0] * 23


FIELDS = [
    st.sampled_from(choices)
    for choices in (
        ("*", "0", "*/7", "13,59", "20-40/10"),
        ("*", "0", "*/6", "2-4", "23"),
        ("*", "1", "31", "*/10", "28-30"),
        ("*", "2", "2-3", "*/5", "nov"),
        ("*", "0", "7", "mon", "5-7"),
    )
]


@given(st.tuples(*FIELDS).map(" ".join), st.integers(int(stamp("2024-01-01")), int(stamp("2028-12-31"))))
def test_next_and_last_agree_with_going_through_the_minutes(text: str, at: int) -> None:
    schedule = cron.parse(text)

    def is_due(when: datetime) -> bool:
        fits = when.minute in schedule.minutes and when.hour in schedule.hours and when.month in schedule.months
        return fits and schedule.has(when.date())

    begin = datetime.fromtimestamp(at // 60 * 60, UTC)
    following = cron.next_due(text, at)
    for minutes in range(1, 2000):
        when = begin + timedelta(minutes=minutes)
        if is_due(when):
            assert following == when.timestamp()
            break
        assert following is None or following > when.timestamp()
    if following is not None:
        assert is_due(datetime.fromtimestamp(following, UTC))
        assert cron.last_due(text, following) == cron.last_due(text, following + 59) == following
        before = cron.last_due(text, following - 1)
        assert before is None or before <= at
