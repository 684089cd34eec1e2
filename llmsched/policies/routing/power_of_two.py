"""The less busy of two replicas drawn at random: near the best balance, without looking at all of them.

Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from llmsched.policies.routing import C


class PowerOfTwo:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[C], body: Mapping[str, Any]) -> C:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(self._random.random() * count)
        second = int(self._random.random() * (count - 1))
        second += second >= first  # never the same one twice
        a, b = candidates[first], candidates[second]
        return a if a.ongoing <= b.ongoing else b
