"""The load of a week, and what is expected of the next minutes."""

from __future__ import annotations

from math import pi, sin

import pytest

from llmsched.core.season import JUDGED, KEPT, SLOT_S, UNKNOWN, Season, expected, passed

DAY_S = 86_400.0


def load_of(at: float, scale: float = 1.0) -> float:
    return scale * (30 + 20 * sin(2 * pi * at / DAY_S))


def lived(days: float, scale: float = 1.0) -> Season:
    """An endpoint that was asked as the day has it, told every ten minutes."""
    season, at = None, 0.0
    while at < days * DAY_S:
        season = passed(season, load_of(at, scale), at, at + 600.0)
        at += 600.0
    assert season is not None
    return season


def test_before_a_day_has_passed_nothing_is_expected() -> None:
    assert expected(lived(0.9), 0.9 * DAY_S, 300.0) is None


@pytest.mark.parametrize("ahead_s", [60.0, 1800.0])
def test_a_day_like_the_one_before_is_expected_as_it_comes(ahead_s: float) -> None:
    now = 2.1 * DAY_S
    found = expected(lived(2.1), now, ahead_s)
    assert found is not None and found.counts and found.error < 0.05
    most = max(load_of(now + part * ahead_s / 10) for part in range(11))
    assert found.load == pytest.approx(most, rel=0.05) and found.low <= found.load <= found.high


def test_a_day_with_half_as_much_again_is_expected_from_its_level() -> None:
    season, at = lived(2.0), 2 * DAY_S
    while at < 2.2 * DAY_S:
        season = passed(season, load_of(at, 1.5), at, at + 600.0)
        at += 600.0
    found = expected(season, at, 300.0)
    assert found is not None and found.load == pytest.approx(load_of(at, 1.5), rel=0.08)


def test_an_endpoint_whose_days_have_nothing_in_common_gets_no_forecast_that_counts() -> None:
    season, at, number = None, 0.0, 0
    while at < 2 * DAY_S:
        number = (number * 1103515245 + 12345) % 2**31
        season = passed(season, 0.0 if number % 3 else 90.0, at, at + 1200.0)
        at += 1200.0
    found = expected(season, at, 300.0)
    assert found is not None and not found.counts and found.error > 0.5


def test_a_weekend_is_compared_with_the_one_before_too() -> None:
    season, at = None, 0.0
    while at < 14 * DAY_S:
        is_free = at // DAY_S % 7 >= 5
        season = passed(season, 5.0 if is_free else 40.0, at, at + 1800.0)
        at += 1800.0
    monday = expected(season, at, 300.0)
    assert monday is not None and monday.high > 20.0, "the Monday before is half of what is thought"


def test_the_memory_is_bounded_however_long_nobody_reports() -> None:
    season = passed(lived(1.5), 3.0, 1.5 * DAY_S, 400 * DAY_S + 7.0)
    assert len(season.means) == KEPT and len(season.ratios) <= JUDGED
    assert season.slot == int((400 * DAY_S + 7) // SLOT_S) and season.covered_s == pytest.approx(7.0)
    assert UNKNOWN not in season.means[: season.slot % KEPT][-100:]


def test_a_slot_of_which_less_than_half_was_seen_is_not_known() -> None:
    season = passed(None, 5.0, 200.0, 301.0)
    assert season.means[0] == UNKNOWN
    assert passed(season, 5.0, 301.0, 601.0).means[1] == 5.0
