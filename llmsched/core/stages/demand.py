"""What waiting gangs would start on if elastic ones made way, and what is there for those that cannot have everything.

Of work of fixed size that waits only what could start counts, so that a share is kept for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from math import inf
from typing import NamedTuple

from llmsched.core.amounts import bundle_milli, flavor_of, need_milli, options_of
from llmsched.core.exact_fit import fits
from llmsched.core.kept_quota import Owners
from llmsched.core.lane import due
from llmsched.core.possible import able_options, option_of
from llmsched.core.records import GangState, amount_of, size_of
from llmsched.core.resources import MILLI
from llmsched.core.room import OPEN, Closed, Room
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Key, Shape
from llmsched.core.stages import place
from llmsched.core.stages.backfill import Calendar, could_start
from llmsched.core.stages.lesser import Giver, keeps, room, room_elsewhere
from llmsched.core.stages.line import rank_of
from llmsched.core.stages.place import Refused
from llmsched.core.state import State
from llmsched.core.workload import Placement, Workload

MOVED_IN_VAIN = 8  # starts one pass looks for by moving what elastic gangs keep, and does not find
STARTS_TRIED = 128  # waiting gangs of fixed size one pass looks for room for; the others are taken to find some


@dataclass(slots=True)
class Limit:
    """Gangs that the same reservations keep out, or that are of one flavor or queue, and the thousandths of GPUs that
    are there for them in all; besides, by priority, those that fixed work would start on and that are counted out."""

    names: dict[str, None]
    left: int
    rigid: dict[int, int]

    def of(self, gangs: list[GangState]) -> list[GangState]:
        return [gang for gang in gangs if gang.id in self.names]

    def most(self, below: float) -> int:
        """For a priority, by rank: with what fixed work of a lower one would have."""
        return max(0, self.left + sum(amount for priority, amount in self.rigid.items() if priority < below))


class _Fixed(NamedTuple):
    """Waiting work of fixed size that could start: of a flavor so many thousandths of GPUs, on a placement, unless so
    many were tried before it that it is taken to find one."""

    flavor: str | None
    amount: int
    spec: Workload
    placement: Placement
    closed: Closed
    gang: str = ""


class Demand:
    """What waiting gangs would start on if elastic ones held no more than they must and who leaves were gone. One for
    which that would not be enough, or that a reservation keeps out, is no reason to stay small."""

    def __init__(self, this: Pass, calendar: Calendar, running: list[GangState], by_rank: bool) -> None:
        self._fixed: list[_Fixed] = []
        self._ranked: list[tuple[Key, Giver]] = []  # by rank, who runs and may be evicted, and holds nothing by now
        self._owners = Owners(this.trial)
        self._rigid: dict[tuple[str | None, int], int] = {}  # of those, by flavor and priority
        self._able: dict[int, list[GangState]] = {}  # of each elastic class those that could start
        self._free: list[Giver] = []  # those that run and may keep what they must on one node or another
        self._never: set[int] = set()  # classes whose first could not start even if these held nothing
        self._in_vain, self._by_rank = 0, by_rank
        self._this, self._calendar, self._running, self._tried = this, calendar, running, 0
        state, trial = this.state, this.trial
        waits = [shape for shape in state.waiting.live.values() if not shape.sample.is_elastic()]
        elastic = [*state.waiting.elastic.values()]
        if not waits and not elastic:
            return
        mark = trial.mark()
        least: dict[str, Giver] = {}
        for gang in running:
            if trial.held(gang) and gang.id not in trial.shrinking and not gang.lost_members:
                if by_rank and gang.spec.preemptible:
                    trial.hold(gang, ())
                    self._ranked.append((rank_of(this, gang), _giver(gang)))
                else:
                    least[gang.id] = _giver(gang)
        self._free = [giver for giver in least.values() if giver.has_choice()]
        for giver in least.values():
            trial.hold(giver.gang, () if giver.has_choice() else keeps(*giver))
        trial.let_them_go()
        if self._free:
            waits.sort(key=self._turn)
            self._never = {
                shape.serial for shape in (*waits[:STARTS_TRIED], *elastic[:STARTS_TRIED]) if self._is_never(shape)
            }
            for giver in self._free:
                trial.hold(giver.gang, keeps(*giver))
        for shape in elastic:
            self._able[shape.serial] = self._that_could_start(shape)
        if self._ranked:
            self._ranked.sort(key=lambda row: row[0], reverse=True)
            waits.sort(key=self._rank)
        for shape in waits:
            with self._beside_who_stays(shape):
                self._count(shape)
        trial.rollback(mark)

    def _rank(self, shape: Shape) -> Key:
        return rank_of(self._this, self._this.state.gangs[shape.entries[0][1]])

    @contextmanager
    def _beside_who_stays(self, shape: Shape) -> Iterator[None]:
        """By rank these go on with their least: who runs and comes before it, has exchanged a place with it, or is of
        another queue, from which it may take nothing."""
        first = self._this.state.gangs[shape.entries[0][1]]
        key = rank_of(self._this, first) if self._ranked else ()
        while self._ranked and self._ranked[-1][0] < key:
            self._keep(self._ranked.pop()[1])
        exchanged, mine = self._this.exchanged_with(first) if self._ranked else (), first.spec.queue
        others = self._this.state.quota.enforced and not self._owners.allow(first.spec)
        stay = [row[1] for row in self._ranked if row[1].gang.id in exchanged]
        stay += [row[1] for row in self._ranked if row[1].gang.spec.queue != mine] if others else []
        for giver in stay:
            self._keep(giver)
        yield
        for giver in stay:
            self._this.trial.hold(giver.gang, ())

    def _keep(self, giver: Giver) -> None:
        kept = keeps(*giver)
        if not self._this.trial.held(giver.gang) and fits(self._this.trial, giver.gang.spec, kept):
            self._this.trial.hold(giver.gang, kept)

    def able(self, shape: Shape) -> list[GangState]:
        return self._able[shape.serial]

    def _that_could_start(self, shape: Shape) -> list[GangState]:
        """Of an elastic class, each by itself: who else could is for the policy to compare."""
        able: dict[Closed, bool] = {}
        found, gangs = list[GangState](), self._this.state.gangs
        for _, name in shape.entries:
            gang = gangs[name]
            closed = self._calendar.closed_to(gang)
            if closed not in able:
                is_taken = len(self._able) >= STARTS_TRIED and not self._is_out(shape)
                able[closed] = gang.nomination is not None or is_taken or self._could_start(shape, gang)
                if not self._calendar.windows.rows:  # no reservation keeps any of them out
                    return [gangs[name] for _, name in shape.entries] if able[closed] else []
            if able[closed]:
                found.append(gang)
        return found

    def _turn(self, shape: Shape) -> tuple[int, float]:
        """The highest priority first, and of equals who has waited longest: one may be in the way of another."""
        return -shape.sample.priority, self._this.state.gangs[shape.entries[0][1]].submitted_at

    def _is_never(self, shape: Shape) -> bool:
        gang = self._this.state.gangs[shape.entries[0][1]]
        return not self._calendar.closed_to(gang) and isinstance(could_start(self._this, gang, self._calendar), Refused)

    def _is_out(self, shape: Shape) -> bool:
        """Whether quota alone, or what there is in all, keeps a class out: that is asked of any number of them."""
        return place.lacks_quota(self._this.trial, shape.sample, able_options(self._this.state, shape))

    def _could_start(self, shape: Shape, gang: GangState) -> bool:
        mark = self._this.trial.mark()
        found = self._start(shape, gang)
        self._this.trial.rollback(mark)
        return found is not None

    def _start(self, shape: Shape, gang: GangState) -> Placement | None:
        """Where it would start; elastic gangs keep what they must beside that from then on."""
        if shape.serial in self._never:
            return None
        found = could_start(self._this, gang, self._calendar)
        there = None if isinstance(found, Refused) else found
        if there is None and self._free and self._in_vain < MOVED_IN_VAIN:

            def ask(nodes: int) -> Placement | Refused:
                return could_start(self._this, gang, self._calendar, nodes)

            there = room_elsewhere(self._this.trial, gang, self._free, ask)
            self._in_vain += there is None
        if there is not None:
            self._this.plan.beside_least[gang.id] = None
        return there

    def _count(self, shape: Shape) -> None:
        state, trial = self._this.state, self._this.trial
        refused: dict[Closed, None] = {}
        for number, (_, name) in enumerate(shape.entries):
            gang = state.gangs[name]
            if gang.nomination is not None:
                continue  # its places are taken in the ledgers already
            closed = self._calendar.closed_to(gang)
            if closed in refused:
                continue
            if self._tried >= STARTS_TRIED:
                if self._is_out(shape):
                    return
                option = option_of(state, gang)
                need = need_milli(gang.spec, gang.spec.min_size, option) * (len(shape.entries) - number)
                self._add(_Fixed(flavor_of(gang.spec, option), need, gang.spec, (), closed))
                return
            self._tried += 1
            found = self._start(shape, gang)
            if found is None:
                if not closed:
                    return  # nor would the next of its class
                refused[closed] = None
                continue
            trial.hold(gang, found)
            self._this.plan.would_start[gang.id] = found
            for placed in found:
                flavor = state.nodes[placed.node].node.flavor
                self._add(_Fixed(flavor, amount_of(gang.spec, placed).gpus_milli, gang.spec, (placed,), closed, name))

    def _add(self, row: _Fixed) -> None:
        self._fixed.append(row)
        key = (row.flavor, row.spec.priority)
        self._rigid[key] = self._rigid.get(key, 0) + row.amount

    def forget_who_finds_none(self, waiting: list[GangState]) -> tuple[dict[str, None], dict[str, GangState]]:
        """By rank: those that find no place beside what the sizes leave, for whom nothing is kept then. Elastic ones of
        a higher priority may have more than their least, on what others were to start on; those that have a share are
        ranked before others of their priority; and one that may have either of two flavors counts for both together.
        `waiting`: elastic ones. Beside them those that rest no longer, as work of fixed size that comes after them
        stands back: see `_come_first`."""
        this, trial, sizes = self._this, self._this.trial, self._this.plan.sizes
        sized = [gang for gang in waiting if sizes.get(gang.id) and gang.nomination is None][:STARTS_TRIED]
        if not self._by_rank or not (this.plan.would_start or sized):
            return {}, {}
        mark, free = trial.mark(), list[Giver]()
        for gang in self._running:
            held, size = trial.held(gang), sizes.get(gang.id)
            if not held or size is None or size >= size_of(gang.spec, held) or gang.id in trial.shrinking:
                continue
            giver = Giver(gang, size, held)
            if size and giver.has_choice():
                free.append(giver)
            trial.hold(gang, keeps(*giver) if size else ())
        trial.let_them_go()
        fixed = [this.state.gangs[name] for name in this.plan.would_start]
        asked = sorted([*fixed, *sized], key=self._place_in_line)
        gone = {gang.id: None for gang in asked if not self._finds_place(gang, free)}
        rests = [gang for gang in waiting if sizes.get(gang.id) == 0 and gang.nomination is None]
        first = self._come_first(rests, [gang for gang in fixed if gang.id not in gone], free, gone)
        trial.rollback(mark)
        rows, self._fixed, self._rigid = self._fixed, [], {}
        for row in rows:
            if row.gang not in gone:
                self._add(row)
        for name in gone:
            this.plan.would_start.pop(name, None)
        return gone, first

    def _come_first(
        self, rests: list[GangState], fixed: list[GangState], free: list[Giver], gone: dict[str, None]
    ) -> dict[str, GangState]:
        """Of those that elasticity has given nothing those that have their least all the same, on what work of fixed
        size of their priority would start on that comes after them in the order: that work is `gone` then. The policy
        has compared elastic gangs with one another, and with nobody else."""
        if not fixed:
            return {}
        oldest = nsmallest(STARTS_TRIED, rests, key=lambda gang: (gang.submitted_at, gang.id))
        key = {gang.id: rank_of(self._this, gang) for gang in (*oldest, *fixed)}
        first: dict[str, GangState] = {}
        in_vain: dict[Shape | None, None] = {}
        for gang in sorted(oldest, key=lambda gang: key[gang.id]):
            if gang.shape in in_vain:
                continue
            later = [one for one in fixed if key[one.id] > key[gang.id] and self._is_like(one, gang)]
            out = self._stand_back(gang, sorted(later, key=lambda one: key[one.id]), free) if later else {}
            if out:
                first[gang.id] = gang
                gone.update(out)
                fixed = [one for one in fixed if one.id not in gone]
            elif not self._calendar.windows.rows:
                in_vain[gang.shape] = None
        return first

    def _place_in_line(self, gang: GangState) -> tuple[object, ...]:
        """Those of equal priority that have a share as they start then: who is owed one first (rank.py), then by
        age."""
        first = due(gang) if gang.id in self._this.owed else inf
        return -gang.spec.priority, gang.spec.is_elastic(), first, gang.submitted_at, gang.id

    def _is_like(self, one: GangState, other: GangState) -> bool:
        """Whether nothing but the order says which of two comes first."""
        is_open = not self._this.state.quota.enforced or one.spec.queue == other.spec.queue
        return is_open and (not self._this.policies.ordering.by_priority or one.spec.priority == other.spec.priority)

    def _stand_back(self, gang: GangState, later: list[GangState], free: list[Giver]) -> dict[str, None]:
        """Those of them that find no place beside it, which it has from then on; none: it is not they that are in its
        way."""
        trial, mark = self._this.trial, self._this.trial.mark()
        for one in later:
            trial.hold(one, ())
        out: dict[str, None] = {}
        if self._finds_place(gang, free):
            out.update((one.id, None) for one in later if not self._finds_place(one, free))
        if not out:
            trial.rollback(mark)
        return out

    def _finds_place(self, gang: GangState, free: list[Giver]) -> bool:
        """If it does, it has it from then on."""
        trial = self._this.trial

        def ask(nodes: int) -> Placement | Refused:
            return could_start(self._this, gang, self._calendar, nodes)

        placement = self._this.plan.would_start.get(gang.id)
        if placement is None or not fits(trial, gang.spec, placement):
            placement = room(trial, gang, free, ask)
        if placement is not None:
            trial.hold(gang, placement)
        return placement is not None

    def rigid_of(self, flavors: list[str | None], below: float = inf) -> int:
        """What those of fixed size, and of a priority below that, would start on."""
        rows = self._rigid.items()
        return sum(amount for (flavor, priority), amount in rows if flavor in flavors and priority < below)

    def limits(self, flavors: list[str | None], sharing: list[GangState]) -> list[Limit]:
        """For those of the sharing that reservations keep out, that can have some of the flavors, and of each queue."""
        trial, rows, quota = self._this.trial, self._calendar.windows.rows, self._this.state.quota
        if not rows and len(flavors) <= 1 and not quota.enforced:
            return []
        mark = trial.mark()
        trial.let_them_go()
        for gang in sharing:
            if trial.held(gang):
                trial.hold(gang, ())
            trial.unpromise(gang)
        parts = any(bundle_milli(gang.spec, option_of(self._this.state, gang)) % MILLI for gang in sharing)
        there, found = Room(trial, rows, with_parts=parts), list[Limit]()
        by_queue: dict[str, list[GangState]] = {}
        for gang in sharing if quota.enforced else ():
            by_queue.setdefault(gang.spec.queue, []).append(gang)
        found += self._of_quotas(by_queue, flavors)
        may_have = {gang.id: {*_flavors_of(self._this.state, gang)} for gang in sharing} if len(flavors) > 1 else {}
        for some in dict.fromkeys(map(frozenset, may_have.values())):
            if some and not some.issuperset(flavors):
                names = {name: None for name, each in may_have.items() if each and each <= some}
                within = [flavor for flavor in flavors if flavor in some]
                found.append(self._limit(there, names, sharing, OPEN, within))
        closed_to = {gang.id: self._calendar.closed_to(gang) for gang in sharing}
        alone = [(number,) for closed in closed_to.values() for number in closed]
        for closed in dict.fromkeys((*alone, *closed_to.values())):
            if closed:
                names = {name: None for name, each in closed_to.items() if all(number in each for number in closed)}
                found.append(self._limit(there, names, sharing, closed, flavors))
        trial.rollback(mark)
        return found

    def _of_quotas(self, by_queue: dict[str, list[GangState]], flavors: list[str | None]) -> list[Limit]:
        """Fixed work of other queues takes of what one may borrow as well."""
        trial, found = self._this.trial, list[Limit]()
        mark = trial.mark()
        for name, placement in self._this.plan.would_start.items() if by_queue else ():
            trial.hold(self._this.state.gangs[name], placement)
        for queue, gangs in by_queue.items():
            found += self._of_quota(queue, gangs, flavors)
        trial.rollback(mark)
        return found

    def _of_quota(self, queue: str, gangs: list[GangState], flavors: list[str | None]) -> Iterator[Limit]:
        """What quota allows those of a queue, without what its fixed work would start on: in all, and of each of its
        rows those that can have no GPUs of another one."""
        quota = self._this.state.quota
        mine = {gang.id: _flavors_of(self._this.state, gang) or flavors for gang in gangs}
        rows: dict[str, list[str | None]] = {}
        for flavor in flavors:
            rows.setdefault(quota.row_of(queue, flavor), []).append(flavor)
        parts = [[row] for row in rows] if len(rows) > 1 else []
        for some in (*parts, [*rows]):
            within = [flavor for row in some for flavor in rows[row]]
            names = {name: None for name, each in mine.items() if all(flavor in within for flavor in each)}
            left = sum(max(0, quota.available(queue, rows[row][0])) for row in some)
            rigid: dict[int, int] = {}
            for fixed in self._fixed:
                if fixed.spec.queue == queue and fixed.flavor in within:
                    rigid[fixed.spec.priority] = rigid.get(fixed.spec.priority, 0) + fixed.amount
                    left -= 0 if fixed.placement else fixed.amount  # what has a place is charged already
            if names:
                yield Limit(names, left, rigid)

    def _limit(
        self, room: Room, names: dict[str, None], sharing: list[GangState], closed: Closed, flavors: list[str | None]
    ) -> Limit:
        """What is there of these flavors outside of these reservations. `room`: as if the sharing held nothing."""
        left = sum(room.left(closed).by_flavor.get(flavor, 0) for flavor in flavors)
        for gang in sharing:  # who is on what is reserved goes on to be there until it is to be cleared
            left += room.inside(gang.spec, gang.held, closed) if gang.id in names else 0
        rigid: dict[int, int] = {}
        for row in self._fixed:
            if row.flavor in flavors and (row.placement or all(number in row.closed for number in closed)):
                amount = row.amount - room.inside(row.spec, row.placement, closed)
                rigid[row.spec.priority] = rigid.get(row.spec.priority, 0) + amount
        return Limit(names, left - sum(rigid.values()), rigid)


def _giver(gang: GangState) -> Giver:
    """With its least."""
    standing, size = gang.placement or gang.held, gang.wanted_size or gang.spec.min_size
    return Giver(gang, min(size, size_of(gang.spec, standing)), standing)


def _flavors_of(state: State, gang: GangState) -> list[str | None]:
    """Of which it can have GPUs: who runs grows where it is, who waits may go wherever one of its options does."""
    if gang.held:
        return [*dict.fromkeys(state.nodes[placed.node].node.flavor for placed in gang.held)]
    able = able_options(state, gang.shape) if gang.shape is not None else options_of(gang.spec)
    named = [*dict.fromkeys(flavor_of(gang.spec, option) for option in able)]
    if not state.quota.enforced:
        return [] if None in named else named
    mine = [*state.capacity.by_flavor] if None in named else named
    branches = ((flavor, state.quota.branch(gang.spec.queue, flavor)) for flavor in mine)
    return [flavor for flavor, branch in branches if branch is not None and branch.most() > 0]
