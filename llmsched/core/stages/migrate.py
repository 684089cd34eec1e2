"""Running work moves to a faster kind of GPU, where one is free and the move pays.

Only gangs that accept several flavors, of which it is known (from their options, or from what history says of their
model) how fast each is. A move costs a restart, so it must end the gang sooner by more than that. Nobody who waits is
delayed: nobody moves to GPUs for which one waits who comes before it, though too few are free for that one by now.
Nobody is evicted for it, and every move raises the speed of the gang that moves, so that it moves at most once for each
of its flavors until something else evicts it.

An elastic gang moves to the fastest pair of size and flavor, last of all: by then who waits and who grows has been
asked, and what waiting work of fixed size starts on, or others of that flavor are to grow by, is not for it, nor any
GPU of a flavor that somebody waits for. So it has there what nobody else wants. And it moves only to nodes on which
nobody has let go of anything for as long as it takes to gain what the move costs: where short work comes and goes it
would lose two restarts for each of them. Whoever rents until the rent has come to the price, and then buys, pays at
most twice the least (ski rental: Karlin, Manasse, Rudolph and Sleator, 1988).

Its new place is kept for it while it leaves, and then promised to it (`Preempt.goes_to`): it begins there, or where it
is faster still, or waits by its rank and age as anybody does.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Any

from llmsched.core.amounts import bundle_milli, flavor_of, need_milli
from llmsched.core.message import FLAVOR, Ref, say
from llmsched.core.possible import able_options
from llmsched.core.records import GangState, allowed_sizes
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict, place
from llmsched.core.stages.backfill import Calendar, right
from llmsched.core.status import Status
from llmsched.core.workload import Placement

LOOKED_AT = 256  # gangs a pass looks at
MOVED_AT_MOST = 16  # gangs a pass moves
SOONER = 1.1  # by this factor must what is left take less time, beside what the restart costs
UNKNOWN_S = 900.0  # seconds of work left, at least, where nobody knows: else as long again as it has worked


class Moves:
    """Who could move in this pass, best in line first."""

    def __init__(self, this: Pass, calendar: Calendar) -> None:
        self._this, self._calendar = this, calendar
        self._count = 0
        self._rows: list[tuple[tuple[Any, ...], GangState]] = []
        state = this.state
        if not state.movable or not state.configuration.scheduling.migration:
            return
        self._free = self._free_flavors()
        self._find(is_elastic=False)

    def _find(self, *, is_elastic: bool) -> None:
        state = self._this.state
        for name in islice(state.movable, LOOKED_AT) if self._free else ():
            gang = state.gangs[name]
            if gang.spec.is_elastic() is is_elastic and self._may(gang) and self._pays(gang):
                self._rows.append((self._rank(gang), gang))
        self._rows.sort(key=lambda row: row[0])

    def before(self, waiting: GangState) -> None:
        """Move those that stand in line before who waits."""
        if self._rows:
            rank = self._rank(waiting)
            while self._rows and self._rows[0][0] < rank:
                self._move(self._rows.pop(0)[1])

    def rest(self) -> None:
        """Move all others: nobody who waits could take what is left."""
        first = self._waited_for(self._free) if self._rows else {}
        for _, gang in self._rows:
            self._move(gang, [flavor for flavor, best in first.items() if best < self._turn(gang)])
        self._rows = []
        state = self._this.state
        may_move = state.configuration.scheduling.migration
        if may_move and any(state.gangs[name].spec.is_elastic() for name in state.movable):
            self._free = self._left_over()
            self._find(is_elastic=True)
            for _, gang in self._rows:
                self._move(gang)

    def _rank(self, gang: GangState) -> tuple[Any, ...]:
        key = self._this.policies.ordering.key(gang, self._this.view)
        return (*key, gang.submitted_at, gang.workload_id, gang.index)

    def _turn(self, gang: GangState) -> tuple[Any, ...]:
        """By rank its rank; else a priority, and of equals who came first, as a hold has it."""
        by_rank = self._this.state.configuration.scheduling.preemption.within_queue == "by_rank"
        return self._rank(gang) if by_rank else right(gang)

    def _free_flavors(self) -> dict[str | None, int]:
        """Thousandths of GPUs, by the number."""
        capacity = self._this.state.capacity
        counts = {flavor: capacity.free_gpus(mask & capacity.open) for flavor, mask in capacity.by_flavor.items()}
        return {flavor: count * MILLI for flavor, count in counts.items() if count}

    def _left_over(self) -> dict[str | None, int]:
        """The same without what others are to have."""
        this = self._this
        found = self._free_flavors()
        for flavor in found:
            found[flavor] -= this.plan.kept_free.get(flavor, 0)
        for flavor in self._waited_for(found):
            found[flavor] = 0
        for name, size in this.plan.sizes.items():
            gang = this.state.gangs[name]
            if gang.is_active() and gang.flavor in found:
                found[gang.flavor] -= max(0, size - gang.size) * bundle_milli(gang.spec, gang.option)
        return {flavor: amount for flavor, amount in found.items() if amount > 0}

    def _waited_for(self, flavors: Collection[str | None]) -> dict[str | None, tuple[Any, ...]]:
        """Those of which somebody waits for more than is free, and the first in turn of those who do: who moves has
        run where it is, and takes none that one waits for who comes before it; an elastic gang none at all."""
        state, trial, found = self._this.state, self._this.trial, dict[str | None, tuple[Any, ...]]()
        for shape in state.waiting.live.values():
            spec, turn = shape.sample, self._turn(state.gangs[shape.entries[0][1]])
            for option in able_options(state, shape):
                flavor, need = flavor_of(spec, option), need_milli(spec, spec.min_size, option)
                may_have = state.quota.flavors_for(spec.queue, flavor) if need else ()
                if any(place.quota_refusal(trial, spec, each, need) is None for each in may_have):
                    for each in (flavor,) if flavor is not None else flavors:
                        found[each] = min(found.get(each, turn), turn)
        return {flavor: turn for flavor, turn in found.items() if flavor in flavors}

    def _may(self, gang: GangState) -> bool:
        this, spec = self._this, gang.spec
        if gang.status is not Status.RUNNING or not spec.preemptible or gang.lost_members:
            return False
        if gang.id in this.trial.leaving or gang.id in this.trial.shrinking or not this.plan.sizes.get(gang.id, 1):
            return False
        scheduling = this.state.configuration.scheduling
        rests = max(scheduling.quantum_s, spec.min_runtime_s, 2.0 * scheduling.restart_cost_s)
        return this.has_held(gang, rests)

    def _is_free(self, gang: GangState, size: int, option: int) -> bool:
        """Whether enough GPUs are free on its flavor, by the number."""
        flavor = gang.spec.groups[0].options[option].flavor
        return self._free.get(flavor, 0) >= need_milli(gang.spec, size, option)

    def _faster(self, gang: GangState) -> list[tuple[float, int, int]]:
        """(speed, size, option) for which there are free GPUs, the fastest first, of equals the smallest."""
        rows = [(speed, gang.size, option) for speed, option in gang.faster]
        if gang.spec.is_elastic():
            most, history = gang.wanted_size or gang.spec.max_size, self._this.state.history
            sizes = [size for size in allowed_sizes(gang.spec) if size <= most]
            pace = gang.pace(gang.size)
            rows = [(each[0], n, each[1]) for n in sizes for each in history.faster(gang.spec, n, gang.option, pace)]
            rows.sort(key=lambda row: (-row[0], row[1], row[2]))
        return [row for row in rows if self._is_free(gang, row[1], row[2])]

    def _pays(self, gang: GangState) -> list[tuple[float, int, int]]:
        """(speed, size, option) with free GPUs with which it would end sooner, restart included, the fastest first."""
        now, cost = gang.pace(gang.size), self._this.state.configuration.scheduling.restart_cost_s
        left = self._this.view.work_left(gang)
        if left is None:
            left = max(UNKNOWN_S, self._this.view.worked_s(gang))
        return [row for row in self._faster(gang) if left / row[0] * SOONER + cost < left / max(now, 1e-9)]

    def _is_at_rest(self, gang: GangState, speed: float, placement: Placement) -> bool:
        """Whether these nodes have had so much to spare for as long as it takes to gain what a move to them costs."""
        state, now = self._this.state, gang.pace(gang.size)
        gained_in_s = state.configuration.scheduling.restart_cost_s * now / max(speed - now, 1e-9)
        let_go_at = max(state.nodes[placed.node].idle_since for placed in placement)
        return self._this.plan.has_come(let_go_at + gained_in_s)

    def _move(self, gang: GangState, but: Collection[str | None] = ()) -> None:
        this = self._this
        if self._count >= MOVED_AT_MOST:
            return
        for speed, size, option in self._pays(gang):
            if gang.spec.groups[0].options[option].flavor in but:
                continue
            found = _try(this, gang, size, option, ~self._calendar.closed(gang, size))
            if found is None or not self._calendar.allows(gang, found):
                continue
            if gang.spec.is_elastic() and not self._is_at_rest(gang, speed, found):
                continue
            flavor = gang.spec.groups[0].options[option].flavor or ""
            why = say("preempt.faster_flavor", flavor=Ref(FLAVOR, flavor))
            evict.evict(this, gang, evict.FASTER, why, goes_to=found)
            self._count += 1
            this.plan.asks_again = this.plan.asks_again or bool(this.state.waiting.count)  # for what it leaves
            self._free = self._left_over() if gang.spec.is_elastic() else self._free_flavors()
            return


def _try(this: Pass, gang: GangState, size: int, option: int, only: int) -> Placement | None:
    """A place for it with that option, beside what it holds; its quota as if it had let go."""
    trial = this.trial
    mark = trial.mark()
    trial.hold(gang, ())
    found = place.find(this, gang, size, only, explain=False, option=option)
    trial.rollback(mark)
    return None if isinstance(found, place.Refused) else found
