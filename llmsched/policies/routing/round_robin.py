"""Each replica in turn: for requests that all cost the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsched.policies.routing import C


class RoundRobin:
    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[C], body: Mapping[str, Any]) -> C:
        self._turn += 1
        return candidates[self._turn % len(candidates)]
