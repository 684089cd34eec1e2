"""Who is refused before an endpoint is full, so that no key keeps the others out, and what can wait makes room.

An eighth of what all replicas together may have in hand is the *reserve*. None of it goes to a sheddable request, nor
to a key that has its equal share or more while other keys want some: those that have requests in hand, or were turned
away a moment ago. The last moment counts, so that a client that was told to come back finds the slot that became free.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llmsched.gateway.keys import SHEDDABLE
from llmsched.gateway.limits import RETRY_FULL_S
from llmsched.gateway.refusals import Refused
from llmsched.gateway.replicas import Pool

RESERVE = 8  # one part of so many
WANTS_S = 10.0  # after it was turned away


class Shares:
    def __init__(self, in_flight: Callable[[str], dict[str, int]], clock: Callable[[], float] = time.monotonic) -> None:
        """`in_flight`: of a workload, {key: requests that replicas have in hand}."""
        self._in_flight, self._clock = in_flight, clock
        self._turned_away: dict[str, dict[str, float]] = {}  # when, by workload and key

    def check(self, pool: Pool, key: str, priority: int) -> None:
        """Raises Refused (429)."""
        capacity, room = pool.capacity(), pool.room()
        if not 0 < room <= -(-capacity // RESERVE) or capacity == 1:
            return
        if priority == SHEDDABLE:
            raise _refused(pool, "what is left of it is not for requests that can wait")
        held = self._in_flight(pool.workload)
        wanting = {key, *held, *self._wanting(pool.workload)}
        if len(wanting) > 1 and held.get(key, 0) >= capacity / len(wanting):
            raise _refused(pool, f"this key has {held[key]} requests in hand, and others want some too")

    def turned_away(self, workload: str, key: str) -> None:
        self._turned_away.setdefault(workload, {})[key] = self._clock()

    def _wanting(self, workload: str) -> list[str]:
        since = self._clock() - WANTS_S
        there = {key: at for key, at in self._turned_away.get(workload, {}).items() if at >= since}
        self._turned_away[workload] = there
        return list(there)


def _refused(pool: Pool, why: str) -> Refused:
    return Refused(
        429, f"{pool.workload} is nearly full, and {why}. Try again shortly.", code="full", retry_after_s=RETRY_FULL_S
    )
