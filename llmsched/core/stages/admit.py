"""Who is looked at, in which order. One head per class of equal gangs; a class that was refused is not asked again.

Without fair sharing there is one line, by the ordering policy's key. With it, the queue whose share would be smallest
after the start goes first, and the key orders inside each queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from llmsched.core.fair import Shares, total_of
from llmsched.core.policy import Ordering, View
from llmsched.core.records import GangState
from llmsched.core.trial import Trial
from llmsched.core.waiting import Key, Shape

BY_AGE = "by age"


class Head(NamedTuple):
    """The next gang of one class; compares by key, then by class."""

    key: Key
    serial: int
    at: int
    entries: list[tuple[Key, str]]
    shape: Shape


class Line:
    """The waiting gangs of one pass, best first. Say `refuse` or `block` about a gang before asking for the next."""

    def __init__(self, trial: Trial, ordering: Ordering, view: View, shares: Shares | None) -> None:
        waiting, self._gangs = trial.state.waiting, trial.state.gangs
        self._shares = shares
        if ordering.static:
            waiting.attach(ordering, lambda gang: ordering.key(gang, view), self._gangs)
        else:
            waiting.attach(BY_AGE, None, self._gangs)
        self._heaps: dict[str, list[Head]] = {}
        for shape in waiting.live.values():
            entries = list(shape.entries)
            if not ordering.static:
                keyed = ((*ordering.key(self._gangs[name], view), *age) for age, name in entries)
                entries = sorted(zip(keyed, (name for _, name in entries), strict=True))
            queue = shape.queue if shares is not None else ""
            self._heaps.setdefault(queue, []).append(Head(entries[0][0], shape.serial, 0, entries, shape))
        for heap in self._heaps.values():
            heapify(heap)
        self._blocked: list[tuple[str, tuple[str | None, ...] | None, str]] = []

    def __iter__(self) -> Iterator[tuple[GangState, Shape]]:
        while True:
            heap = self._next_heap()
            if heap is None:
                return
            head = heappop(heap)
            if self.blocker(head.shape):
                continue
            self._refused = False
            yield self._gangs[head.entries[head.at][1]], head.shape
            at = head.at + 1
            if not self._refused and at < len(head.entries):
                heappush(heap, head._replace(key=head.entries[at][0], at=at))

    def _next_heap(self) -> list[Head] | None:
        if self._shares is None:
            heap = self._heaps.get("")
            return heap if heap else None
        best: tuple[float, float, Key, int] | None = None
        chosen: list[Head] | None = None
        for heap in self._heaps.values():
            if not heap:
                continue
            sample = heap[0].shape.sample
            need = total_of(sample, sample.min_size)
            flavor = sample.groups[0].options[0].flavor
            share = self._shares.after(sample.queue, flavor, need)
            rank = (share, self._shares.item(need), heap[0].key, heap[0].serial)
            if best is None or rank < best:
                best, chosen = rank, heap
        return chosen

    def refuse(self) -> None:
        """Nobody of this gang's class is looked at any more in this pass."""
        self._refused = True

    def block(self, queue: str, flavors: tuple[str | None, ...] | None, by: str) -> None:
        """Nobody of the queue that asks for one of these flavors (None: any) is looked at any more in this pass."""
        self._refused = True
        self._blocked.append((queue, flavors, by))

    def blocker(self, shape: Shape) -> str:
        """Who stands before this class, if somebody does."""
        for queue, flavors, by in self._blocked:
            if queue != shape.queue:
                continue
            if flavors is None or None in flavors or None in shape.flavors or set(flavors) & set(shape.flavors):
                return by
        return ""
