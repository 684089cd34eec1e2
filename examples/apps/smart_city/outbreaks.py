"""An outbreak of cholera in what a registry counts, as a monitor tells it, and a control chart.

Of both it is the day of the third alarm in a row, as one alarm may be chance. What was told before spring was none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from statistics import mean, stdev
from typing import Any

IN_A_ROW, LEARNT, SIGMAS, AT_ONCE = 3, 56, 3.0, 5000
CAUSE, SPRING = "Cholera", date(1849, 5, 1)


def compare(monitor: Any, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """(part, the monitor's number, the chart's)"""
    for begin in range(0, len(rows), AT_ONCE):
        monitor.post({"rows": rows[begin : begin + AT_ONCE]})
    alerts = monitor.post({"alerts": 500})["alerts"]
    days = [date.fromisoformat(one["begins"][:10]) for one in alerts if one["key"] == CAUSE]
    plain = chart([row for row in rows if row["cause"] == CAUSE])
    yield "outbreak", told(days, SPRING), told(plain, SPRING)
    yield "mistaken", sum(day < SPRING for day in days), sum(day < SPRING for day in plain)


def told(days: Iterable[date], since: date) -> float:
    """Days from `since` to the first day that is the third alarm in a row; infinite where there is none."""
    alarms = {day.toordinal() for day in days}
    found = [day for day in sorted(alarms) if day >= since.toordinal() and {*range(day - IN_A_ROW + 1, day)} <= alarms]
    return found[0] - since.toordinal() if found else math.inf


def chart(rows: Sequence[dict[str, Any]]) -> list[date]:
    """Days with more than the mean of the first eight weeks and three times their spread."""
    counts = Counter(row["day"] for row in rows)
    days = sorted(counts)
    usual = [counts[day] for day in days[:LEARNT]]
    bound = mean(usual) + SIGMAS * stdev(usual)
    return [date.fromisoformat(day) for day in days[LEARNT:] if counts[day] > bound]
