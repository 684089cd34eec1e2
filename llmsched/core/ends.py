"""Until when those who hold something are expected to hold it, soonest first. Kept in step; not in the digest."""

from __future__ import annotations

from bisect import bisect_left, insort
from math import inf

from llmsched.core.records import GangState, expected_end


class Ends:
    def __init__(self) -> None:
        self.soonest: list[tuple[float, str]] = []  # (expected end, gang); of whom nobody knows it is not in it
        self.of: dict[str, float] = {}

    def put(self, gang: GangState) -> None:
        """As it is expected now, in place of what was expected of it."""
        self.drop(gang)
        end = expected_end(gang)
        if end < inf:
            self.of[gang.id] = end
            insort(self.soonest, (end, gang.id))

    def drop(self, gang: GangState) -> None:
        end = self.of.pop(gang.id, None)
        if end is not None:
            del self.soonest[bisect_left(self.soonest, (end, gang.id))]
