"""By rank: who is owed a start, as it has waited long (lane.py), and what is kept for it until it has it.

The lane gives no more than it has: to the first of those that are behind, and to the next ones as long as there is no
debt but what it will have paid at the next ranking. Who could not start now, whoever of its priority made way, does not
stand before those that could: it waits for work that may not be evicted, and meanwhile nobody who came later and may
not be evicted takes its places. Who can never start is owed nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice

from llmsched.core.amounts import flavors_of, least_milli
from llmsched.core.kept_quota import Owners
from llmsched.core.lane import Pool, PoolKey, due, part_s
from llmsched.core.lane import Row as LaneRow
from llmsched.core.planned import Promise, earliest
from llmsched.core.possible import able_options
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.rules import rules_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place, rank
from llmsched.core.stages.backfill import Calendar, could_start, right

LOOKED_AT = 1024  # gangs of one pool that are behind
HOLDS_TRIED = 16  # that could not start now: for so many it is worked out when they could


def run(this: Pass, calendar: Calendar) -> None:
    state = this.state
    scheduling = state.configuration.scheduling
    if not rank.is_on(state) or not scheduling.hold_after_s:
        return
    chances = _Chances(this, calendar)
    if not (rank.is_due(this) or chances.are_doubtful or state.waiting.elastic):
        return
    with chances.worked_out():
        found = [(key, pool, behind) for key, pool in state.lanes.pools.items() if (behind := _behind(this, pool))]
        found.sort(key=lambda row: _order(this, row[2][0]))
        for key, pool, behind in found:
            _of_pool(this, key, pool, behind, chances)
    this.owed = {name: this.owed[name] for name in sorted(this.owed, key=lambda name: in_lane(this, state.gangs[name]))}


def in_lane(this: Pass, gang: GangState) -> tuple[float, float, str]:
    """The smaller, the sooner its turn of those that are owed a start, in whichever pool: by priority where that
    counts, and who is due first before the others."""
    return _order(this, (due(gang), gang.id, 0))


def _order(this: Pass, row: LaneRow) -> tuple[float, float, str]:
    priority = this.state.gangs[row[1]].spec.priority if this.policies.ordering.by_priority else 0
    return -priority, row[0], row[1]


def _moment(this: Pass) -> float:
    """As of when the lane is asked: of the last ranking there was to be, so that between two nothing is owed anew."""
    quantum = this.state.configuration.scheduling.quantum_s
    return this.plan.at // quantum * quantum if quantum else this.plan.at


def _behind(this: Pass, pool: Pool) -> list[LaneRow]:
    scheduling, at = this.state.configuration.scheduling, _moment(this)
    has_come = at.__ge__ if scheduling.quantum_s else this.plan.has_come
    rows = this.state.lanes.behind(pool, scheduling.hold_after_s, this.policies.ordering.by_priority, has_come)
    return [*islice(rows, LOOKED_AT)]


def _of_pool(this: Pass, key: PoolKey, pool: Pool, behind: list[LaneRow], chances: _Chances) -> None:
    state, scheduling = this.state, this.state.configuration.scheduling
    pays = state.lanes.pays(key, state.ledgers)
    debt, ahead = pool.debt_at(_moment(this), pays), pays * scheduling.quantum_s
    patience = scheduling.hold_after_s
    chances.tried = 0
    for _, name, milli in behind:
        gang = state.gangs[name]
        if gang.nomination is not None or not chances.has_any(gang):
            continue
        if debt > ahead:
            if pays and not scheduling.quantum_s:
                this.plan.wake(state.now + debt / pays)
            return
        seconds = part_s(gang, patience)
        if chances.has_now(gang):
            debt += seconds * milli
        elif chances.waits_for_an_end(gang):
            this.owed_later[name] = None
        else:
            continue
        this.owed[name] = seconds


def hold(this: Pass, calendar: Calendar) -> None:
    """By rank: keep the places of those that are owed from whoever may not be evicted and came later, and those that
    the highest priority waits for from whoever may not be and has a lower one."""
    state = this.state
    if not rank.is_on(state):
        return
    calendar.promises = [promise for promise in calendar.promises if not promise.evicts]
    fixed = [shape.sample.priority for shape in state.waiting.lasting.values()]
    if not fixed:
        return
    names = dict.fromkeys(this.owed)
    if this.policies.ordering.by_priority:
        first = min(state.waiting.live.values(), key=lambda shape: (-shape.sample.priority, shape.since[0]))
        names |= {first.since[0][1]: None} if first.sample.priority > min(fixed) else {}
    waits = [gang for name in names if this.trial.nomination(gang := state.gangs[name]) is None]
    waits = [gang for gang in waits if not this.trial.is_new(gang)]
    if not waits:
        return
    kept: dict[str | None, None] = {}
    with _Chances(this, calendar).worked_out() as chances:
        tried = Counter[str | None]()
        for gang in sorted(waits, key=right):
            flavors = flavors_of(gang.spec)
            if all(flavor in kept or tried[flavor] >= HOLDS_TRIED for flavor in flavors) or not chances.has_any(gang):
                continue
            tried.update(flavors)
            promise = chances.start_of(gang, calendar.promises)
            if promise is not None:
                promise.hold, promise.evicts, promise.is_owed = True, True, gang.id in this.owed
                promise.is_inside, promise.quota = calendar.is_inside(gang, promise.placement), None
                calendar.promises.append(promise)
                kept.update(dict.fromkeys(flavors))


class _Chances:
    """Whether gangs could start if all that may be evicted for them by rank made way."""

    def __init__(self, this: Pass, calendar: Calendar) -> None:
        self.this, self.state, self.calendar = this, this.state, calendar
        self.tried, self._owners = 0, Owners(this.trial)
        state = self.state
        self.is_one_line = not state.quota.enforced or len(state.quota.queues) <= 1
        self.are_doubtful = not self.is_one_line or any(
            group.gpus_milli and not preemptible for (_, _, preemptible), group in state.groups.items()
        )

    @cached_property
    def _most(self) -> int:
        """The highest priority of those that hold GPUs."""
        return max((priority for (_, priority, _), group in self.state.groups.items() if group.gpus_milli), default=0)

    @contextmanager
    def worked_out(self) -> Iterator[_Chances]:
        """What it asks of the trial is undone in the end."""
        mark = self.this.trial.mark()
        try:
            yield self
        finally:
            self.this.trial.rollback(mark)

    def has_any(self, gang: GangState) -> bool:
        """In an empty cluster."""
        shape = gang.shape
        return shape is not None and bool(able_options(self.state, shape))

    def has_now(self, gang: GangState) -> bool:
        stay = self._staying(gang)
        is_below = self.this.policies.ordering.by_priority and gang.spec.priority < self._most
        if self.are_doubtful or is_below or self.calendar.windows.rows:
            with self._gone(gang):
                return not isinstance(could_start(self.this, gang, self.calendar), place.Refused)
        if not stay:
            return True
        held = sum(one.gpus_milli() for one in stay)
        return least_milli(gang.spec, gang.spec.min_size) <= self.state.capacity.gpus_total * MILLI - held

    def waits_for_an_end(self, gang: GangState) -> bool:
        self.tried += 1
        return self.tried <= HOLDS_TRIED and self.start_of(gang, []) is not None

    def start_of(self, gang: GangState, promises: list[Promise]) -> Promise | None:
        with self._gone(gang):
            return earliest(self.this, gang, gang.spec.min_size, self.calendar.windows, promises)

    @contextmanager
    def _gone(self, gang: GangState) -> Iterator[None]:
        """While it lasts those hold nothing that might be evicted for it, nor those that leave."""
        trial, state = self.this.trial, self.state
        stay = self._staying(gang)
        mark = trial.mark()
        for name in state.holding:
            other = state.gangs[name]
            leaves = name in state.vacating or name in trial.leaving
            if trial.held(other) and (leaves or (self._makes_way(other, gang) and other not in stay)):
                trial.hold(other, ())
        try:
            yield
        finally:
            trial.rollback(mark)

    def _makes_way(self, other: GangState, gang: GangState) -> bool:
        if not other.spec.preemptible:
            return False
        if self.this.policies.ordering.by_priority and other.spec.priority > gang.spec.priority:
            return False
        if self.is_one_line or other.spec.queue == gang.spec.queue:
            return True
        is_any = all(rules_of(self.state, one.spec.queue).reclaim == "any" for one in (gang, other))
        return is_any and self._owners.allow(gang.spec)  # who borrows has no right to what another queue owns

    def _staying(self, gang: GangState) -> list[GangState]:
        """Those that have exchanged a place with it."""
        names = self.this.exchanged_with(gang)
        return [self.state.gangs[name] for name in names if name in self.state.holding]
