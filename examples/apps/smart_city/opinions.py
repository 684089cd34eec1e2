"""What people say, as a trend: how many are cross on each day of four weeks, beside what people rated.

No package has dated tweets with ratings. The tweets and ratings are those of VADER's study, laid on days whose mood
falls and rises again. A tweet says what the likest of those with known ratings say; the monitor counts it by day.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from measuring import by_words, rows_of
from packaged import rated

LEARNT, DAYS, OF_A_DAY, FIRST = 200, 28, 12, date(2014, 11, 1)  # LEARNT: of each mood
CLEAR, NEAREST, MOODS, _SEED = 1.0, 9, ("cross", "glad"), 7


def write(folder: Path) -> None:
    """words/moods.jsonl, and opinions.jsonl: {"text", "day", "mood"}."""
    chance = random.Random(_SEED)
    tweets = [(text, rating) for text, rating in rated("tweets") if abs(rating) >= CLEAR]
    chance.shuffle(tweets)
    some = {mood: [text for text, rating in tweets if MOODS[rating > 0] == mood] for mood in MOODS}
    learnt = [{"text": some[mood].pop(), "means": mood} for _ in range(LEARNT) for mood in MOODS]
    said = []
    for day in range(DAYS):
        cross = 0.45 - 0.35 * math.cos(2 * math.pi * day / DAYS)
        for _ in range(OF_A_DAY):
            mood = MOODS[chance.random() >= cross]
            said.append({"text": some[mood].pop(), "day": str(FIRST + timedelta(days=day)), "mood": mood})
    for name, rows in (("words/moods", learnt), ("opinions", said)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def compare(reports: Any, monitor: Any, data: Path) -> Iterator[tuple[str, float, float]]:
    """(part, how far the monitor's trend goes with what people rated, and TF-IDF's)"""
    rows, learnt = rows_of(data / "opinions.jsonl"), rows_of(data / "words" / "moods.jsonl")
    monitor.post({"rows": [{"mood": mood_of(reports, row["text"]), "day": row["day"]} for row in rows]})
    trend = [one["count"] for one in monitor.post({"trend": MOODS[0], "windows": DAYS})["trend"]]
    plain = by_words([(row["text"], row["means"]) for row in learnt], [row["text"] for row in rows])
    true = by_day(rows, [row["mood"] for row in rows])
    yield "opinion", together(trend, true), together(by_day(rows, plain), true)


def mood_of(reports: Any, text: str) -> str:
    likest = [one for one in reports.post({"query": text, "k": 50})["passages"] if one["means"] in MOODS][:NEAREST]
    return MOODS[sum(one["score"] * (1 if one["means"] == MOODS[1] else -1) for one in likest) > 0]


def by_day(rows: list[dict[str, Any]], moods: list[str]) -> list[int]:
    """The cross ones of each day."""
    days = sorted({row["day"] for row in rows})
    return [sum(mood == MOODS[0] for row, mood in zip(rows, moods, strict=True) if row["day"] == day) for day in days]


def together(one: list[int], other: list[int]) -> float:
    """Their correlation: 1, where both rise and fall as one."""
    return float(np.corrcoef(one, other)[0, 1])
