"""The replica with the least estimated work in hand: for requests of very unlike length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsched.policies.routing import C


class LeastTokens:
    def choose(self, candidates: Sequence[C], body: Mapping[str, Any]) -> C:
        return min(candidates, key=lambda replica: (replica.tokens, replica.ongoing, replica.name))
