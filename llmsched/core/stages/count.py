"""Who may be among the best of a ranking, by the number of GPUs and by quota alone: places are looked for later.

Who waits may have what no reservation keeps it from (room.py), who runs what it has where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from llmsched.core.amounts import bundle_milli, flavor_of, flavors_of, need_milli, options_of
from llmsched.core.records import GangState, allowed_sizes, flavor_held
from llmsched.core.resources import MILLI
from llmsched.core.room import OPEN, Closed, Room
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.backfill import LATER_LOOKS, Calendar
from llmsched.core.stages.lesser import keeps
from llmsched.core.workload import Placement, Workload

Wish = tuple[str | None, int]  # (flavor, None: any; thousandths of GPUs)


class _Taken(NamedTuple):
    """`parts`: by flavor. `held`: where it is; (): it waits. `closed`: the reservations that keep it out."""

    parts: tuple[Wish, ...]
    need: int
    held: Placement
    closed: Closed


class Count:
    """GPUs and quota by the number, as if nobody of a line held anything. Elastic gangs that run do with less than they
    hold, down to their least."""

    def __init__(self, this: Pass, calendar: Calendar) -> None:
        self.state, self.calendar, self._sizes, self._trial = this.state, calendar, this.plan.sizes, this.trial
        self.quota = this.state.quota
        self.room = Room(this.trial, calendar.windows.rows, with_parts=True)
        self._held: dict[str, Wish] = {}  # of those that run
        self._looks: dict[int, int] = {}  # of classes: how many a reservation alone has kept out
        self._own: dict[tuple[str, str], int] = {}  # of a row of its quota that a queue has not given out yet
        self._charged: dict[tuple[str, str | None], int] = {}
        self._taken: dict[str, _Taken] = {}

    def is_used_up(self) -> bool:
        return self.room.all.total <= 0

    def wishes(self, gang: GangState) -> list[Wish]:
        """What would do, best first."""
        held = self._held.get(gang.id)
        if held is None:
            return self._asked(gang.spec)
        if not self._sizes.get(gang.id, 0):
            return [held]
        each = bundle_milli(gang.spec, gang.option)
        smaller = [size for size in reversed(allowed_sizes(gang.spec)) if size < gang.size]
        return [held, *((held[0], size * each) for size in smaller)]

    def _asked(self, spec: Workload) -> list[Wish]:
        """Who names no flavor has all of one if it can, as quota is of flavors, else some of each."""
        found: list[Wish] = []
        flavors, quota = self.room.all.by_flavor, self.quota
        for option in options_of(spec):
            flavor, need = flavor_of(spec, option), need_milli(spec, spec.min_size, option)
            if flavor is None and len(flavors) == 1:
                flavor = next(iter(flavors))
            if flavor is None and quota.enforced and quota.flavors_for(spec.queue, None) != (None,):
                found += [(each, need) for each in flavors]
            found.append((flavor, need))
        return found

    def has_no_room(self, spec: Workload) -> bool:
        """Whether none of its wishes would do, whatever quota says. Room only becomes less."""
        return not any(self.room.has(*wish) for wish in self._asked(spec))

    def refuses_its_like(self, gang: GangState, wishes: list[Wish]) -> bool:
        """Of one that was refused: whether all of its class are. Where a reservation keeps it out, one that runs for
        less may start; so many of them are asked."""
        if not self.calendar.windows.rows or gang.shape is None:
            return True
        if not self.calendar.closed_to(gang) or not any(self.room.has(*wish) for wish in wishes):
            return True
        looks = self._looks[gang.shape.serial] = self._looks.get(gang.shape.serial, 0) + 1
        return looks > LATER_LOOKS

    @contextmanager
    def everybody_gone(self, running: list[GangState]) -> Iterator[None]:
        """While it lasts those who run hold neither room nor quota, and those on the way out no quota: it is charged to
        those already who are promised their places."""
        nodes, room = self.state.nodes, self.room
        for gang in running:
            flavor, amount = flavor_held(nodes, gang.spec, gang.held), gang.gpus_milli()
            self._held[gang.id] = flavor, amount
            room.leave(gang, gang.held, flavor, amount)
        held = self._charged_to(running) if self.quota.enforced else {}
        for key, amount in held.items():
            self.quota.release(*key, amount)
        try:
            yield
        finally:
            for key, amount in self._charged.items():
                self.quota.release(*key, amount)
            for key, amount in held.items():
                self.quota.charge(*key, amount)

    def _charged_to(self, running: list[GangState]) -> dict[tuple[str, str | None], int]:
        """What they, and those on the way out, have of the quota of each queue, by flavor."""
        held: dict[tuple[str, str | None], int] = {}
        leave = [self.state.gangs[name] for name in dict.fromkeys((*self.state.vacating, *self._trial.leaving))]
        rows = [(gang, placement) for gang in leave if (placement := self._trial.held(gang))]
        for gang, placement in (*rows, *((gang, gang.held) for gang in running)):
            flavor = flavor_held(self.state.nodes, gang.spec, placement)
            for each, amount in self.room.by_flavor(gang.spec, placement, flavor, gang.gpus_milli()).items():
                held[gang.spec.queue, each] = held.get((gang.spec.queue, each), 0) + amount
        return held

    @contextmanager
    def kept(self, running: Sequence[GangState], gang: GangState, wishes: list[Wish]) -> Iterator[None]:
        """While it lasts these hold what they have again, as the gang with these wishes sees it."""
        for flavor, _ in wishes if self.quota.enforced else ():
            self._left_of_own(gang.spec.queue, flavor)  # as it is without them
        for one in running:
            self._give_back(one, -1)
        try:
            yield
        finally:
            for one in reversed(running):
                self._give_back(one, 1)

    def _give_back(self, gang: GangState, sign: int) -> None:
        flavor, amount = self._held[gang.id]
        self.room.leave(gang, gang.held, flavor, amount, sign)
        queue = gang.spec.queue
        for each, part in (
            self.room.by_flavor(gang.spec, gang.held, flavor, amount).items() if self.quota.enforced else ()
        ):
            (self.quota.release if sign > 0 else self.quota.charge)(queue, each, part)
            row = (queue, self.quota.row_of(queue, each))
            if row in self._own:
                self._own[row] += sign * part

    def takes_own(self, gang: GangState, flavor: str | None, need: int) -> bool:
        """Take it out of what the queue owns, if that is left."""
        parts = self._takes(gang, flavor, need, self._left_of_own)
        for each, amount in parts:
            self._own[gang.spec.queue, self.quota.row_of(gang.spec.queue, each)] -= amount
        return bool(parts)

    def _left_of_own(self, queue: str, flavor: str | None) -> int:
        row = (queue, self.quota.row_of(queue, flavor))  # flavors of one row have its quota together
        left = self._own.get(row)
        if left is None:
            branch = self.quota.branch(queue, flavor)
            left = max(0, min(branch.subtree - branch.used, branch.available())) if branch else 0
            self._own[row] = left
        return left

    def charge_own(self) -> None:
        """What was taken so far counts against the quota of all from now on."""
        for key, amount in self._charged.items():
            self.quota.charge(*key, amount)

    def takes(self, gang: GangState, wishes: list[Wish]) -> bool:
        """Take the first of these that there is enough for, owned or borrowed."""
        for wish in wishes:
            if parts := self._takes(gang, *wish, self.quota.available):
                for each, amount in parts if self.quota.enforced else ():
                    self.quota.charge(gang.spec.queue, each, amount)
                return True
        return False

    def could_take(self, gang: GangState, others: list[GangState]) -> bool:
        """Whether it might if all these gave up what they have taken."""
        given = sum(self._taken[one.id].need for one in others)
        return given + self.room.all.total >= min(need for _, need in self.wishes(gang))

    def gives_up(self, gang: GangState, sign: int = 1) -> None:
        """What it has taken."""
        queue, taken = gang.spec.queue, self._taken[gang.id]
        for flavor, amount in taken.parts if self.quota.enforced else ():
            (self.quota.release if sign > 0 else self.quota.charge)(queue, flavor, amount)
            self._charged[queue, flavor] -= sign * amount
        if taken.held:
            self.room.leave(gang, taken.held, taken.parts[0][0], taken.need, sign)
        else:
            for flavor, amount in taken.parts:
                self.room.take(flavor, -sign * amount, taken.closed)

    def takes_again(self, gang: GangState) -> None:
        """What it had before it gave it up."""
        self.gives_up(gang, -1)

    def _takes(
        self, gang: GangState, flavor: str | None, need: int, left: Callable[[str, str | None], int]
    ) -> tuple[Wish, ...]:
        """What it then has of each flavor, in the ledger of what is charged; () if it does not find it. `left`: of
        quota."""
        held = self._stays_with(gang, need)
        if self.quota.enforced:
            return self._takes_of_quota(gang, held, flavor, need, left)
        parts = [*self.room.by_flavor(gang.spec, held, flavor, need).items()] if held else [(flavor, need)]
        return tuple(parts) if self._finds_room(gang, held, flavor, need, parts) else ()

    def _takes_of_quota(
        self,
        gang: GangState,
        held: Placement,
        flavor: str | None,
        need: int,
        left: Callable[[str, str | None], int],
    ) -> tuple[Wish, ...]:
        queue = gang.spec.queue
        rows: dict[str, int] = {}

        def has_quota(each: str | None) -> int:
            return left(queue, each) - rows.get(self.quota.row_of(queue, each), 0)

        parts: list[Wish] = []
        if held:
            parts += self.room.by_flavor(gang.spec, held, flavor, need).items()
        elif flavor is not None or self.quota.flavors_for(queue, None) == (None,):
            parts.append((flavor, need))
        else:  # some of each, as each has a quota of its own
            missing, bundle = need, bundle_milli(gang.spec, 0)
            for each in self.room.all.by_flavor:
                amount = max(0, min(missing, self.room.all.of(each), has_quota(each)))
                if amount := amount - amount % bundle:
                    parts.append((each, amount))
                    rows[self.quota.row_of(queue, each)] = rows.get(self.quota.row_of(queue, each), 0) + amount
                    missing -= amount
            if missing:
                return ()
            rows.clear()
        for each, amount in parts:
            if amount > has_quota(each):
                return ()
            rows[self.quota.row_of(queue, each)] = rows.get(self.quota.row_of(queue, each), 0) + amount
        if not self._finds_room(gang, held, flavor, need, parts):
            return ()
        for each, amount in parts:
            self._charged[queue, each] = self._charged.get((queue, each), 0) + amount
        return tuple(parts)

    def _stays_with(self, gang: GangState, need: int) -> Placement:
        """What it goes on to hold; (): it waits."""
        if gang.id not in self._held:
            return ()
        is_smaller = need < self._held[gang.id][1]
        return keeps(gang, need // bundle_milli(gang.spec, gang.option), gang.held) if is_smaller else gang.held

    def _finds_room(self, gang: GangState, held: Placement, flavor: str | None, need: int, parts: list[Wish]) -> bool:
        """If there is, it has it from now on."""
        closed: Closed = OPEN
        if held:
            if not self.room.stays(gang, held, flavor, need, parts):
                return False
        else:
            closed = self.calendar.closed_to(gang) if self.calendar.windows.rows else OPEN
            for those in dict.fromkeys((OPEN, closed)):
                if not all(self.room.has(*part, those) for part in parts) or not self.room.has(flavor, need, those):
                    return False
            for part in parts:
                self.room.take(*part, closed)
        if self.quota.enforced:  # else nobody gives up for another one what it has taken
            self._taken[gang.id] = _Taken(tuple(parts), need, held, closed)
        return True


def lacking_flavors(this: Pass, calendar: Calendar, wanted: list[tuple[GangState, float]]) -> set[str | None]:
    """Flavors of which gangs want more GPUs, so many each, than they could have when all who are on the way out have
    gone."""
    trial, mark = this.trial, this.trial.mark()
    trial.let_them_go()
    room = Room(trial, calendar.windows.rows)
    trial.rollback(mark)
    lacking: set[str | None] = set()
    for gang, gpus in wanted:
        need, closed = round(gpus * MILLI), calendar.closed_to(gang)
        named = flavors_of(gang.spec)
        flavors = [*room.all.by_flavor] if None in named else named
        alone = [flavor for flavor in flavors if room.most(flavor, closed) >= need][:1]
        if not alone and (None not in named or room.most_in_all(closed) < need):
            lacking.update(flavors)
            continue
        for flavor in alone or flavors:  # one that names none may have some of each
            taken = min(need, max(0, room.most(flavor, closed)))
            room.take(flavor, taken, closed)
            need -= taken
    return lacking
