"""The replica with the least estimated work in hand: for requests of very unlike length."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.policies.routing import Ask, C
from llmsched.policies.routing.work import tokens_of


class LeastTokens:
    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        return min(candidates, key=lambda replica: (replica.tokens, replica.ongoing, replica.name)), tokens_of(ask.text)
