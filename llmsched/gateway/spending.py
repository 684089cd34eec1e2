"""What keys have used of models, and what one request adds to it: tokens as its replica counts them.

Rows grow from the start of this gateway on. Each has the version of the book at its last change, so that whoever reads
them asks for those after the last one read, and reads none twice or never.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from llmsched.gateway.keys import Key
from llmsched.gateway.rates import Rates

DAY_S = 86_400
KEPT_DAYS = 2  # for who was away when one ended


class Book:
    """`id` is of this gateway, and of no other at any time."""

    def __init__(self, id: str, clock: Callable[[], float] = time.time) -> None:
        self._id, self._clock = id, clock
        self._version = 0
        self._rows: dict[tuple[int, str, str, str], list[int]] = {}  # version, requests, prompt, completion, cached

    def add(self, key: Key, model: str, requests: int, prompt: int, completion: int, cached: int) -> None:
        self._version += 1
        day = int(self._clock() // DAY_S)
        row = self._rows.setdefault((day, key.id, key.user, model), [0] * 5)
        row[0] = self._version
        for place, more in enumerate((requests, prompt, completion, cached), 1):
            row[place] += more

    def after(self, version: int) -> dict[str, Any]:
        """{"gateway", "version", "rows": [[day since 1970, key, user, model, requests, tokens of prompts, of answers,
        of prompts that were not read again]]} of what has changed since that version."""
        today = int(self._clock() // DAY_S)
        self._rows = {names: row for names, row in self._rows.items() if names[0] > today - KEPT_DAYS}
        rows = [[*names, *row[1:]] for names, row in self._rows.items() if row[0] > version]
        return {"gateway": self._id, "version": self._version, "rows": rows}


class Spending:
    """Of one request. `prompt` and `answer`: tokens that it is thought to need. Raises Refused (429) where its key may
    not ask for so much now."""

    def __init__(self, book: Book, rates: Rates, key: Key, model: str, prompt: int, answer: int) -> None:
        rates.admit(key, prompt + answer)
        self._book, self._rates, self._key, self._model = book, rates, key, model
        self._thought, self._prompt = prompt + answer, prompt
        self._pieces = 0
        self._told: tuple[int, int, int] | None = None
        self._is_over = False

    @property
    def completion(self) -> int:
        """Tokens of the answer so far."""
        return self._told[1] if self._told is not None else self._pieces

    def said(self) -> None:
        """A piece of its answer has come: about a token."""
        self._pieces += 1

    def told(self, usage: Any) -> None:
        """The `usage` of an answer, whatever a replica has put there."""
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
            self._told = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached)

    def end(self) -> None:
        """Once, whatever became of it. One that was cut off counts as far as it came."""
        if self._is_over:
            return
        self._is_over = True
        cut_off = (self._prompt if self._pieces else 0, self._pieces, 0)
        prompt, completion, cached = self._told or cut_off
        self._rates.settle(self._key, self._thought, prompt + completion)
        self._book.add(self._key, self._model, 1, prompt, completion, cached)


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
