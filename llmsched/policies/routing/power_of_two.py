"""The less busy of two replicas drawn at random: near the best balance, without looking at all of them.

Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from llmsched.policies.routing import Ask, C
from llmsched.policies.routing.work import tokens_of


class PowerOfTwo:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        count = len(candidates)
        if count == 1:
            return candidates[0], tokens_of(ask.text)
        first = int(self._random.random() * count)
        second = int(self._random.random() * (count - 1))
        second += second >= first  # never the same one twice
        a, b = candidates[first], candidates[second]
        return (a if a.ongoing <= b.ongoing else b), tokens_of(ask.text)
