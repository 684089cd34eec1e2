"""What a sequence is likely to say next, because it came after the same words before: drafts for one pass to check.

An answer that quotes, edits or repeats says again what stands in the prompt or further up in itself. The model reads a
draft in one pass, and what it would have said itself stays: speculative decoding (Leviathan et al. 2023), with n-grams
of the sequence in place of a second model (prompt lookup). Every token is drawn as it would have been: a draft costs
time where it is wrong, never another answer. How long drafts are follows from how much of them stayed.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 8  # tokens of a draft
GRAMS = (3, 2)  # words of so many tokens are looked up, the longest first
LONGEST_PAUSE = 32  # tokens without a draft, after drafts of which nothing stayed


class Drafts:
    """Of one sequence, which grows by `add`. `most`: tokens of one draft."""

    def __init__(self, prompt: Sequence[int], most: int = MOST) -> None:
        self._most, self._long = most, min(2, most)
        self._tokens: list[int] = []
        self._ends: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in GRAMS)  # gram -> where its newest ended
        self._pause, self._resting = 1, 0
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Words are known from the token after them on: the last one would only find itself."""
        for size, ends in zip(GRAMS, self._ends, strict=True):
            if len(self._tokens) >= size:
                ends[(*self._tokens[-size:],)] = len(self._tokens)
        self._tokens.append(token)

    def next(self) -> list[int]:
        """What may come after the last token; empty: nothing is known, or drafts have been wrong lately."""
        if self._resting:
            self._resting -= 1
            return []
        for size, ends in zip(GRAMS, self._ends, strict=True):
            end = ends.get((*self._tokens[-size:],))
            if end is not None:
                return self._tokens[end : end + self._long]
        return []

    def told(self, drafted: int, stayed: int) -> None:
        """So much of the last draft was right."""
        if stayed == drafted:
            self._long = min(2 * self._long, self._most)
        else:
            self._long = max(2, stayed)
        if stayed:
            self._pause = 1
        else:
            self._resting, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
