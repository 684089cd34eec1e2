"""The ledgers of the state and how they are kept in step: what is held on nodes, in quota, by queue, and until when.

Every amount is put in and taken out by `charge`, which undoes itself exactly. Knows no facts and no rules.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterator
from copy import copy
from heapq import merge
from math import inf, log
from typing import Any, Self

from llmsched.core import facts
from llmsched.core.archive import Archive, MemoryArchive
from llmsched.core.capacity import Capacity, NodeState
from llmsched.core.configuration import Configuration
from llmsched.core.estimate import History
from llmsched.core.nodes import COMES_WITHIN_S, SHUNNED_S
from llmsched.core.open_work import OpenWork
from llmsched.core.outstanding import Outstanding
from llmsched.core.quota import QuotaTree
from llmsched.core.records import (
    GangState,
    HoldingGroup,
    QueueUse,
    WorkloadState,
    amount_of,
    expected_end,
    gpus_of,
)
from llmsched.core.resources import MILLI, Resources
from llmsched.core.waiting import Waiting
from llmsched.core.workload import Placement

NOTES_KEPT = 200


class Ledgers:
    """What a state is made of. Everything below the comment in `__init__` is derived and not part of the digest."""

    def __init__(self, configuration: Configuration | None = None, archive: Archive | None = None) -> None:
        self.now = 0.0
        self.configuration = configuration or Configuration()
        self.capacity = Capacity()
        self.nodes: dict[str, NodeState] = self.capacity.by_id
        self.workloads: dict[str, WorkloadState] = {}
        self.gangs: dict[str, GangState] = {}
        self.archive = MemoryArchive() if archive is None else archive  # of workloads that ended a while ago
        self.archived: Counter[tuple[str, str, str]] = Counter()  # of those: (user, queue, outcome) -> how many
        self.publications: dict[str, dict[tuple[str, str], facts.Published]] = {}  # target -> (user, name) -> the last
        self.requested: tuple[tuple[str, int], ...] = ()  # last RequestCapacity
        self.overdue_since: dict[str, float] = {}  # node type -> since when fewer have joined than were asked for
        self.shunned_until: dict[str, float] = {}  # node type that had no capacity -> when it may be tried first again
        self.releasing: dict[str, float] = {}  # nodes asked to go
        self.ranked_at = 0.0  # stamp of the last pass that may have ranked everybody, see stages/rank.py
        self.history = History()  # what the runs that succeeded took
        # What follows is derived from the above and kept in step; none of it is part of the digest.
        self.outstanding = Outstanding()  # of those that wait or run
        self.waiting = Waiting(self.outstanding)
        self.runs: dict[str, tuple[int, int]] = {}  # name -> its newest run, and how many of its runs are here
        self.ended: dict[str, None] = {}  # workloads that are over, the oldest end first
        self.holding: dict[str, None] = {}  # gangs that hold something, oldest launch first
        self.nominated: dict[str, None] = {}
        self.vacating: dict[str, None] = {}
        self.elastic: dict[str, None] = {}  # of the holding, those whose size may vary
        self.movable: dict[str, None] = {}  # of the holding, those that would be faster on another of their flavors
        self.serving: dict[str, None] = {}  # serve workloads that have not ended
        self.timed: dict[str, None] = {}  # active gangs with a run time, deadline or budget
        self.scheduled: dict[str, None] = {}  # workloads with a schedule
        self.open_work = OpenWork()
        self.troubled: dict[str, None] = {}  # gangs the `end` stage must look at
        self.exceeding: dict[str, None] = {}  # gangs whose attempt has taken more than they were given
        self.parked: dict[str, None] = {}
        self.groups: dict[tuple[str, int, bool], HoldingGroup] = {}  # by queue, priority, preemptible
        self.ends: list[tuple[float, str]] = []  # (expected end, gang) of the holding, soonest first
        self.dependents: dict[str, list[str]] = {}
        self.kinds: dict[Resources, int] = {}  # bundle shape -> groups of gangs that hold such bundles
        self.use: dict[str, QueueUse] = {}
        self.quota = QuotaTree(self.configuration, {})
        self.version = 0  # raised by everything but the passing of time
        self.causes = 0  # raised by whatever may turn a refusal into something else, see State.apply
        self.victims = 0  # raised by what matters only where somebody may be evicted or moved
        self.notes: deque[str] = deque(maxlen=NOTES_KEPT)
        self.memo: dict[str, Any] = {}  # of the scheduler: what the last pass found
        self._end_of: dict[str, float] = {}
        self._timers: list[tuple[float, str]] = []

    def find(self, name: str) -> WorkloadState | None:
        """The run of that id, in the state or put aside."""
        return self.workloads.get(name) or self.archive.find(name)

    def newest(self, name: str) -> WorkloadState | None:
        """ "name" is the run with the highest number, "name@2" exactly that one."""
        plain, _, run = name.partition("@")
        if not run:
            here = self.runs.get(plain)
            run = str(self.archive.newest_run(plain) if here is None else here[0])
        return self.find(plain if run == "1" else f"{plain}@{run}")

    def results(self, name: str) -> Iterator[WorkloadState]:
        """Runs of that name that left a result, the newest first."""
        here = [one for one in self.workloads.values() if one.workload.name == name and one.artifact is not None]
        here.sort(key=lambda one: -one.workload.run)
        return merge(here, self.archive.results(name), key=lambda one: -one.workload.run)

    def twin(self) -> Self:
        """The same world with ledgers of its own for nodes, quota and use; all else is shared and must not change."""
        other = copy(self)
        other.capacity = self.capacity.twin()
        other.nodes = other.capacity.by_id
        other.quota = self.quota.twin()
        other.use = {name: copy(use) for name, use in self.use.items()}
        return other

    def _rebuild_quota(self) -> None:
        cluster: dict[str, int] = {}
        for node in self.nodes.values():
            name = node.node.flavor or ""
            cluster[name] = cluster.get(name, 0) + node.total_gpus * MILLI
        self.quota = QuotaTree(self.configuration, cluster)
        for name in (*self.holding, *self.nominated):
            gang = self.gangs[name]
            held = gang.held or (gang.nomination.placement if gang.nomination else ())
            for flavor, amount in self._gpus_by_flavor(gang, held).items():
                self.quota.charge(gang.spec.queue, flavor, amount)

    def _count_nodes_to_come(self) -> None:
        """Since when each type owes nodes that were asked for. One that is given up on after COMES_WITHIN_S is shunned
        for a while."""
        if not self.configuration.node_types:
            return
        asked = dict(self.requested)
        for node in self.nodes.values():
            name = node.node.node_type
            if name in asked and not node.draining:
                asked[name] -= 1
        for name, since in [*self.overdue_since.items()]:
            if asked.get(name, 0) <= 0:
                del self.overdue_since[name]
                if self.now - since >= COMES_WITHIN_S:
                    self.shunned_until[name] = self.now + SHUNNED_S
        for name, missing in asked.items():
            if missing > 0:
                self.overdue_since.setdefault(name, self.now)

    def _expect_end(self, gang: GangState) -> None:
        self._forget_end(gang)
        self.outstanding.put(gang)
        end = expected_end(gang)
        if end < inf:
            self._end_of[gang.id] = end
            insort(self.ends, (end, gang.id))

    def _forget_end(self, gang: GangState) -> None:
        self.outstanding.drop(gang)
        end = self._end_of.pop(gang.id, None)
        if end is not None:
            del self.ends[bisect_left(self.ends, (end, gang.id))]

    def endless(self) -> Iterator[str]:
        """Who holds something and nobody knows until when, oldest launch first."""
        return (name for name in self.holding if name not in self._end_of)

    def _hold(self, gang: GangState, new: Placement) -> None:
        """Make the gang hold exactly `new` on nodes and in quota."""
        spec = gang.spec
        self._account(spec.queue)
        group = self.groups.setdefault((spec.queue, spec.priority, spec.preemptible), HoldingGroup())
        group.gpus_milli += gpus_of(spec, new) - gpus_of(spec, gang.held)
        if new:
            group.gangs[gang.id] = None
        else:
            group.gangs.pop(gang.id, None)
        if bool(new) != bool(gang.held):
            for each in spec.groups:
                shape = each.options[0].resources
                self.kinds[shape] = self.kinds.get(shape, 0) + (1 if new else -1)
                if not self.kinds[shape]:
                    del self.kinds[shape]
        if gang.held:
            self._change(gang, gang.held, -1)
            for placed in gang.held:
                self.nodes[placed.node].idle_since = self.now
        gang.held = new
        if new:
            self._change(gang, new, 1)

    def _account(self, queue: str) -> None:
        """Bring a queue's decayed past use up to now, before what it holds changes."""
        half_life = self.configuration.scheduling.usage_half_life_s
        use = self.use.setdefault(queue, QueueUse(decayed_at=self.now))
        if half_life > 0 and use.decayed_at < self.now:
            factor = 0.5 ** ((self.now - use.decayed_at) / half_life)
            use.decayed = use.decayed * factor + use.gpus_milli * half_life / log(2) * (1.0 - factor)
        use.decayed_at = self.now

    def _change(self, gang: GangState, placement: Placement, sign: int, promise: bool = False) -> None:
        charge(self, gang, placement, sign, promise)

    def _unpromise(self, gang: GangState) -> None:
        if gang.nomination is not None:
            self._change(gang, gang.nomination.placement, -1, promise=True)
            gang.nomination = None
            del self.nominated[gang.id]
            self.causes += 1

    def _gpus_by_flavor(self, gang: GangState, placement: Placement) -> dict[str | None, int]:
        amounts: dict[str | None, int] = {}
        for placed in placement:
            gpus = amount_of(gang.spec, placed).gpus_milli
            node = self.nodes.get(placed.node)
            if gpus and node is not None:
                flavor = node.node.flavor
                amounts[flavor] = amounts.get(flavor, 0) + gpus
        return amounts


def charge(state: Ledgers, gang: GangState, placement: Placement, sign: int, promise: bool = False) -> None:
    """Put a placement into the ledgers (sign 1) or take it out (-1). Exact: the two undo each other."""
    spec = gang.spec
    queue = spec.queue
    capacity = state.capacity
    by_flavor: dict[str | None, int] = {}
    cpus = memory = total = 0
    at, end = 0, len(placement)
    plain = len(spec.groups) == 1  # by far the most common: no need to look for the group of each bundle
    options = spec.groups[0].options
    while at < end:
        placed = placement[at]
        run = at + 1
        if plain:
            amount = options[placed.option if placed.option < len(options) else -1].resources
        else:
            amount = amount_of(spec, placed)
        if placed.gpu_index < 0:  # like bundles side by side are one change
            while run < end and placement[run] == placed:
                run += 1
        count = run - at
        at = run
        if count > 1:
            gpus, cpus_milli, memory_bytes, custom = amount
            if custom:
                amount = amount.times(count)
            else:
                amount = Resources(gpus * count, cpus_milli * count, memory_bytes * count)
        node = state.nodes[placed.node]
        capacity.change(placed.node, amount, placed.gpu_index, sign)
        gpus = amount.gpus_milli
        if gpus:
            if promise:
                node.promised += sign * gpus
            flavor = node.node.flavor
            by_flavor[flavor] = by_flavor.get(flavor, 0) + gpus
            total += gpus
        cpus += amount.cpus_milli
        memory += amount.memory_bytes
    for flavor, gpus in by_flavor.items():
        if sign > 0:
            state.quota.charge(queue, flavor, gpus)
        else:
            state.quota.release(queue, flavor, gpus)
    use = state.use.get(queue)
    if use is None:
        use = state.use[queue] = QueueUse()
    use.gpus_milli += sign * total
    use.cpus_milli += sign * cpus
    use.memory_bytes += sign * memory
    if not spec.preemptible:
        use.fixed_milli += sign * total
