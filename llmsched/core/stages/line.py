"""Who is looked at, in which order. One head per class of equal gangs; a class that was refused is not asked again.

The ordering policy's key orders all, but a gang inside its queue's own quota comes before one that would borrow. With
fair sharing the queue whose share would be smallest after the start goes first, and the key orders inside each queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from llmsched.core.fair import BORROWED, Shares, total_of
from llmsched.core.policy import Ordering, View
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.stages.place import need_milli
from llmsched.core.trial import Trial
from llmsched.core.waiting import Key, Shape

BY_AGE = "by age"
UNBOUNDED = 1 << 60


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
        self._quota = trial.state.quota
        self._by_queue = shares is not None or (self._quota.enforced and len(self._quota.queues) > 1)
        if ordering.static:
            waiting.attach(ordering, lambda gang: ordering.key(gang, view), self._gangs)
        else:
            waiting.attach(BY_AGE, None, self._gangs)
        self._deep = shares is not None and shares.mode == BORROWED and bool(trial.state.configuration.cohorts)
        self._heaps: dict[str, list[Head]] = {}
        # By rank nobody is evicted here, nobody blocks anybody, and what is free only shrinks during a pass: who needs
        # more than that is not looked at, which spares a cluster that is full most of the work of ordering its queue.
        free = UNBOUNDED
        if trial.state.configuration.scheduling.preemption.within_queue == "by_rank":
            free = trial.state.capacity.free_gpus(trial.state.capacity.open) * MILLI
        shapes = [s for s in waiting.live.values() if s.least_total <= free or s.reason is None]
        alone = len(shapes) == 1 and len(shapes[0].entries) == 1  # then there is nothing to order
        for shape in shapes:
            entries = shape.entries  # stands still during a pass
            if not ordering.static and not alone:
                keyed = ((*ordering.key(self._gangs[name], view), *age) for age, name in entries)
                entries = sorted(zip(keyed, (name for _, name in entries), strict=True))
            queue = shape.queue if self._by_queue else ""
            self._heaps.setdefault(queue, []).append(Head(entries[0][0], shape.serial, 0, entries, shape))
        for heap in self._heaps.values():
            heapify(heap)
        self._queues = [(self._rank(heap[0]), queue) for queue, heap in self._heaps.items()]
        heapify(self._queues)
        self._blocked: list[tuple[str, tuple[str | None, ...] | None, str]] = []

    def _rank(self, head: Head) -> tuple[tuple[float, ...], float, Key, int]:
        """Of a queue by its head: a queue's rank changes only with the use of its own branch and its own head."""
        if not self._by_queue:
            return ((), 0.0, (), 0)
        sample = head.shape.sample
        flavor = sample.groups[0].options[0].flavor
        if self._shares is None:  # inside its own quota before those that would borrow
            branch = self._quota.branch(sample.queue, flavor)
            borrows = branch is None or branch.used + need_milli(sample, sample.min_size, 0) > branch.subtree
            return ((float(borrows),), 0.0, head.key, head.serial)
        need = total_of(sample, sample.min_size)
        standing = self._shares.standing(sample.queue, flavor, need)
        return (standing, self._shares.item(need), head.key, head.serial)

    def __iter__(self) -> Iterator[tuple[GangState, Shape]]:
        while self._queues:
            rank, queue = heappop(self._queues)
            heap = self._heaps[queue]
            if self._deep and (now := self._rank(heap[0])) > rank:  # a queue beside it in its cohort has taken more
                heappush(self._queues, (now, queue))
                continue
            head = heappop(heap)
            if not self.blocker(head.shape):
                self._refused = False
                yield self._gangs[head.entries[head.at][1]], head.shape
                at = head.at + 1
                if not self._refused and at < len(head.entries):
                    heappush(heap, head._replace(key=head.entries[at][0], at=at))
            if heap:
                heappush(self._queues, (self._rank(heap[0]), queue))

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
