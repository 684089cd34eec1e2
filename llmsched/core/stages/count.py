"""Who may be among the best of a ranking, by the number of GPUs and by quota alone: places are looked for later.

Who waits may have what no reservation keeps it from (room.py), who runs what it has where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmsched.core.amounts import bundle_milli, flavor_of, flavors_of, need_milli, options_of
from llmsched.core.records import GangState, allowed_sizes, flavor_held
from llmsched.core.resources import MILLI
from llmsched.core.room import OPEN, Closed, Room
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.backfill import LATER_LOOKS, Calendar
from llmsched.core.stages.lesser import keeps
from llmsched.core.workload import Workload

Wish = tuple[str | None, int]  # (flavor, None: any; thousandths of GPUs)


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

    def is_used_up(self) -> bool:
        return self.room.all.total <= 0

    def wishes(self, gang: GangState) -> list[Wish]:
        """What would do, best first."""
        held = self._held.get(gang.id)
        if held is None:
            return self._asked(gang.spec)
        share, each = self._sizes.get(gang.id, 0), bundle_milli(gang.spec, gang.option)
        smaller = [size for size in reversed(allowed_sizes(gang.spec)) if size < gang.size] if share else []
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
        held: dict[tuple[str, str | None], int] = {}
        for name in dict.fromkeys((*self.state.vacating, *self._trial.leaving)):
            gang = self.state.gangs[name]
            if placement := self._trial.held(gang):
                key = (gang.spec.queue, flavor_held(self.state.nodes, gang.spec, placement))
                held[key] = held.get(key, 0) + gang.gpus_milli()
        for gang in running:
            flavor, amount = flavor_held(self.state.nodes, gang.spec, gang.held), gang.gpus_milli()
            self._held[gang.id] = flavor, amount
            self.room.leave(gang, gang.held, flavor, amount)
            key = (gang.spec.queue, flavor)
            held[key] = held.get(key, 0) + amount
        if self.quota.enforced:
            for key, amount in held.items():
                self.quota.release(*key, amount)
        try:
            yield
        finally:
            if self.quota.enforced:
                for key, amount in self._charged.items():
                    self.quota.release(*key, amount)
                for key, amount in held.items():
                    self.quota.charge(*key, amount)

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
        if not self.quota.enforced:
            return
        (self.quota.release if sign > 0 else self.quota.charge)(gang.spec.queue, flavor, amount)
        row = (gang.spec.queue, self.quota.row_of(gang.spec.queue, flavor))
        if row in self._own:
            self._own[row] += sign * amount

    def takes_own(self, gang: GangState, flavor: str | None, need: int) -> bool:
        """Take it out of what the queue owns, if that is left."""
        key = (gang.spec.queue, flavor)
        if need > self._left_of_own(*key) or not self._finds_room(gang, flavor, need):
            return False
        self._own[gang.spec.queue, self.quota.row_of(*key)] -= need
        self._charged[key] = self._charged.get(key, 0) + need
        return True

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

    def takes(self, gang: GangState, flavor: str | None, need: int) -> bool:
        """Take it, owned or borrowed."""
        key = (gang.spec.queue, flavor)
        if self.quota.enforced and need > self.quota.available(*key):
            return False
        if not self._finds_room(gang, flavor, need):
            return False
        if self.quota.enforced:
            self.quota.charge(*key, need)
        self._charged[key] = self._charged.get(key, 0) + need
        return True

    def _finds_room(self, gang: GangState, flavor: str | None, need: int) -> bool:
        """If there is, it has it from now on."""
        if gang.id in self._held:
            is_smaller = need < self._held[gang.id][1]
            held = keeps(gang, need // bundle_milli(gang.spec, gang.option), gang.held) if is_smaller else gang.held
            return self.room.stays(gang, held, flavor, need)
        if not self.room.has(flavor, need):
            return False
        closed: Closed = self.calendar.closed_to(gang) if self.calendar.windows.rows else OPEN
        if closed and not self.room.has(flavor, need, closed):
            return False
        self.room.take(flavor, need, closed)
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
