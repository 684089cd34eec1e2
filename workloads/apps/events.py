"""From rows of people's data to events: a key that is counted, and a time. What a row lacks is said of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llmsched import sanitize
from llmsched.data.rows import Bad
from llmsched.errors import RequestError
from llmsched.runtime import calls
from workloads.apps.asking import is_refused

AT_ONCE = 64  # texts in one request for labels
KEY_AT_MOST = 200  # characters
AHEAD_S = 86_400.0  # a time that is later than this lies in the future


class Event(NamedTuple):
    key: str
    at: float  # Unix time


class Events:
    """`key`: the column, or several; `at`: the one with the time (ISO 8601, UTC where it says nothing, or Unix
    seconds). `model`: the endpoint that labels the `text` of rows that have no key, where there is one."""

    def __init__(self, key: str | Sequence[str], at: str, text: str, model: str) -> None:
        self._columns = [key] if isinstance(key, str) else [*key]
        self._at, self._text, self._model = at, text, model

    def of(self, rows: Sequence[Any]) -> list[Event | Bad]:
        """One for each row. Raises as `calls.classify`, but not for a text that the model refuses."""
        keys: list[str | Bad | None] = [self._key(row) for row in rows]
        bare = [at for at, row in enumerate(rows) if self._model and keys[at] is None and self._has_text(row)]
        for begin in range(0, len(bare), AT_ONCE):
            some = bare[begin : begin + AT_ONCE]
            for at, label in zip(some, self._labels([rows[at][self._text] for at in some]), strict=True):
                keys[at] = label
        return [self._event(row, key) for row, key in zip(rows, keys, strict=True)]

    def _labels(self, texts: list[str]) -> list[str | Bad]:
        """Of texts that are refused together each half is asked, until it is known which one it is."""
        try:
            return [str(one["label"]) for one in calls.classify(self._model, texts)]
        except RequestError as error:
            if not is_refused(error):
                raise
            if len(texts) == 1:
                return [Bad(f"has a text that is refused: {sanitize.line(str(error), 200)}")]
            half = len(texts) // 2
            return self._labels(texts[:half]) + self._labels(texts[half:])

    def _key(self, row: Any) -> str | None:
        values = [row.get(column) for column in self._columns] if isinstance(row, dict) else [None]
        if all(isinstance(value, str | int) and str(value) for value in values):
            return sanitize.line("/".join(map(str, values)), KEY_AT_MOST)
        return None

    def _has_text(self, row: Any) -> bool:
        return isinstance(row, dict) and isinstance(row.get(self._text), str) and bool(row[self._text].strip())

    def _event(self, row: Any, key: str | Bad | None) -> Event | Bad:
        if isinstance(row, Bad):
            return row
        if isinstance(key, Bad):
            return key
        if not isinstance(row, dict):
            return Bad("is not an object with named fields")
        if key is None:
            return Bad(f"has no {', '.join(map(repr, self._columns))}")
        at = unix_time(row.get(self._at))
        if at is None or at > time.time() + AHEAD_S:
            shown = sanitize.line(repr(row.get(self._at)), 50)
            return Bad(f"has no {self._at!r} that is a time until now: {shown}")
        return Event(key, at)


def unix_time(value: Any) -> float | None:
    """None for what is no time."""
    if isinstance(value, datetime | str):
        try:
            at = datetime.fromisoformat(value) if isinstance(value, str) else value
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e11 else None  # a whole number may be longer than any float
