"""About how much work a request is, in tokens of a prompt: what its words will be is known to nobody beforehand.

A token of an answer takes a pass of the model of its own, shared with the others that decode, where those of a prompt
go through it together; so it weighs more. How long answers become is learnt from those that ended, for each size of the
limit that the request sets (`max_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHARACTERS = 4  # of text to a token, about
ANSWER_WEIGHT = 8
USUAL_ANSWER = 256  # tokens, while none has ended
NEWEST = 1 / 16  # weight of an answer that just ended


class AnswerLengths:
    """Tokens of answers, by the power of two of their limits."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def saw(self, limit: int | None, tokens: int) -> None:
        kind = _kind(limit)
        mean = self._means.get(kind)
        self._means[kind] = float(tokens) if mean is None else mean + NEWEST * (tokens - mean)

    def expect(self, limit: int | None) -> int:
        expected = self._means.get(_kind(limit), USUAL_ANSWER)
        return max(1, round(min(expected, limit or expected)))


def _kind(limit: int | None) -> int:
    return limit.bit_length() if limit else 0


def tokens_of(text: str) -> int:
    return -(-len(text) // CHARACTERS)


def limit_of(body: Mapping[str, Any]) -> int | None:
    """The most tokens that this request's answer may have, if it says so."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit if type(limit) is int and limit > 0 else None


def prompt_text(body: Mapping[str, Any]) -> str:
    """The words of a request in order, as far as they matter for sharing a beginning and for the time of reading."""
    for name in ("prompt", "input"):
        given = body.get(name)
        if isinstance(given, str):
            return given
        if isinstance(given, list):
            return " ".join(each if isinstance(each, str) else str(each) for each in given)  # numbers are of tokens
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ""
    return "\n".join(f"{m.get('role')}:{m.get('content')}" for m in messages if isinstance(m, dict))
