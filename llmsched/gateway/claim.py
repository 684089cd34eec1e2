"""What one request in flight counts on its replica: once, and given back once, whatever becomes of it."""

from __future__ import annotations

from typing import Protocol

from llmsched.policies.routing.work import ANSWER_WEIGHT


class Counts(Protocol):
    """Of a replica: requests in flight, and their estimated work, in tokens of a prompt."""

    ongoing: int
    tokens: int


class Claim:
    def __init__(self, on: Counts, unread: int, answer: int) -> None:
        """`unread`: tokens of the prompt that are read; `answer`: tokens that are expected of the answer."""
        self._on, self._unread, self._to_come = on, unread, answer * ANSWER_WEIGHT
        self._is_over = False
        on.ongoing += 1
        on.tokens += self._unread + self._to_come

    def said(self) -> None:
        """A piece of the answer has come: about a token. One that goes on for longer than expected still counts."""
        if self._is_over:
            return
        left = max(ANSWER_WEIGHT, self._to_come - ANSWER_WEIGHT)
        self._on.tokens += left - self._to_come - self._unread
        self._to_come, self._unread = left, 0

    def end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._on.ongoing -= 1
        self._on.tokens -= self._unread + self._to_come
