"""Each replica in turn: for requests that all cost the same."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.policies.routing import Ask, C
from llmsched.policies.routing.work import tokens_of


class RoundRobin:
    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        self._turn += 1
        return candidates[self._turn % len(candidates)], tokens_of(ask.text)
