"""Who is looked at, in which order. One head per class of equal gangs; a class that was refused is not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from llmsched.core.policy import Ordering, View
from llmsched.core.records import GangState
from llmsched.core.trial import Trial
from llmsched.core.waiting import Key, Shape


class Line:
    """The waiting gangs of one pass. After each gang say `started`, `skip` (this one only) or `refuse` (its class)."""

    def __init__(self, trial: Trial, ordering: Ordering, view: View) -> None:
        self._gangs = trial.state.gangs
        self._ordering = ordering
        self._view = view
        if ordering.static:
            trial.state.waiting.attach(ordering, lambda gang: ordering.key(gang, view), self._gangs)
        else:
            trial.state.waiting.attach(self, None, self._gangs)
        self._heap: list[tuple[Key, int, int, Shape, list[tuple[Key, str]]]] = []
        for shape in trial.state.waiting.shapes.values():
            if shape.entries:
                entries = shape.entries if ordering.static else self._sorted(shape)
                self._heap.append((entries[0][0], shape.serial, 0, shape, entries))
        heapify(self._heap)

    def _sorted(self, shape: Shape) -> list[tuple[Key, str]]:
        return sorted(((*self._ordering.key(self._gangs[name], self._view), *key), name) for key, name in shape.entries)

    def __iter__(self) -> Iterator[tuple[GangState, Shape]]:
        while self._heap:
            key, serial, at, shape, entries = heappop(self._heap)
            self.refused = False
            yield self._gangs[entries[at][1]], shape
            if not self.refused and at + 1 < len(entries):
                heappush(self._heap, (entries[at + 1][0], serial, at + 1, shape, entries))

    def refuse(self) -> None:
        """Nobody of this gang's class is looked at any more in this pass."""
        self.refused = True
