"""The replica that will have read the prompt first: what waits there, and what of the prompt it has yet to read.

A replica that saw the same beginning has its keys and values still, perhaps. Work ahead and tokens to read are in one
unit, so affinity yields to balance by itself: where so many want one beginning that waiting for the replica that knows
it takes longer than reading it anew, another one reads it, and from then on there are two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from llmsched.policies.routing import Ask, C
from llmsched.policies.routing.text_tree import TextTree
from llmsched.policies.routing.work import CHARACTERS, tokens_of

LEAST_KNOWN = 64  # tokens: to read fewer than that takes no less time
REMEMBERED = 4 << 20  # characters, of every replica together


class PrefixCache:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._tree = TextTree(REMEMBERED)

    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        seen = self._tree.seen(ask.text)
        begin = int(self._random.random() * len(candidates))  # of equal ones not always the same

        def cost(place: int) -> tuple[int, int]:
            replica = candidates[place - begin]
            known = seen.get(replica.name, 0) // CHARACTERS
            return replica.tokens - (known if known >= LEAST_KNOWN else 0), replica.ongoing

        chosen = candidates[min(range(len(candidates)), key=cost) - begin]
        if ask.text:
            self._tree.saw(chosen.name, ask.text, {replica.name for replica in candidates})
        return chosen, tokens_of(ask.text) - tokens_of(ask.text[: seen.get(chosen.name, 0)])
