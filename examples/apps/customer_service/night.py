"""A night of the desk: what was written in the day is known in the morning, by vectors that were made meanwhile. And a
morning: it opens."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from measuring import rows_of, same, until
from mishaps import client, document, heard
from prepare import DESK

HERE = Path(__file__).parent
NEW, SOON = HERE / "data" / "new.jsonl", timedelta(seconds=80)  # a minute of the clock that is not over yet


def begins() -> float:
    """It comes in the next minute. The share of what was written in the day that the desk knows already."""
    before = known()
    shutil.copy(NEW, DESK / "answers")
    night = yaml.safe_load((HERE / "nightly.yaml").read_text())
    client().apply({**night, "schedule": {"cron": f"{datetime.now(UTC) + SOON:%M %H * * *}"}})
    return before


def opens() -> None:
    """With the next minute, and it closed an hour ago: then two replicas of what it knows have to answer."""
    knowledge, opening = document("knowledge"), datetime.now(UTC) + SOON
    for bound, at in zip(knowledge["autoscaling"]["bounds"], (opening, opening - timedelta(hours=1)), strict=True):
        bound["cron"] = f"{at:%M %H} * * *"
    client().apply(knowledge)


def is_over() -> float:
    """The share that it knows when the vectors are there and taken in."""
    made = heard("Finished", of="nightly-vectors")
    if made.data["outcome"] != "succeeded":
        raise SystemExit(made.text)
    many = sum(len(rows_of(file)) for file in (DESK / "answers").iterdir())
    until(lambda: found("?")["of"] == many, "the vectors of the night are taken in")
    return known()


def known() -> float:
    new = [row["text"] for row in rows_of(NEW)]
    return same([found(text)["passages"][0]["text"] for text in new], new)


def found(text: str) -> Any:
    return client().chat("knowledge").post({"query": text, "k": 1})
