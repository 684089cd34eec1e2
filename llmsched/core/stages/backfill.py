"""Time: who is blocked gets a planned start; later work starts only if it cannot delay it.

`easy` protects the first blocked gang of each accelerator, `conservative` the first few. Later work may start when it
ends before the planned start, fits beside it, or can be shrunk to its minimum in time.

Whatever the setting, nobody starves: of those that have waited for `hold_after_s` (longest.py: some for longer) the
oldest one of each accelerator is protected too, from whoever came later, has no higher priority and no better right to
the quota. Age is the time of submission, as everywhere: who was evicted goes on with the age that it has. Then the
protected one starts at the latest when those that held its places at that moment have ended. Its quota is kept with its
places (kept_quota.py): in its own queue, and from whoever borrows; once it is inside what its queue owns its places are
kept from owners as well.

Nor does anybody wait for ever for a gap between reservations that come again: who may be preempted, and has waited for
`hold_after_s`, starts where no window opens for BETWEEN_WINDOWS_S, or half of the gap if all of them are shorter, and
leaves for the window (stages/clear.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from llmsched.core.amounts import flavor_of, least_milli, options_of
from llmsched.core.explain import Reason
from llmsched.core.kept_quota import is_inside
from llmsched.core.message import RESERVATION, Message, Ref, say, workload
from llmsched.core.planned import Promise, earliest, gives_way, in_pool, least, leaves_room, use_spare
from llmsched.core.records import GangState, size_of
from llmsched.core.reservation import is_holder, window
from llmsched.core.reserved import Row
from llmsched.core.room import OPEN, Closed
from llmsched.core.run_times import ends_by, presumed_end, presumed_s, runtime_s
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.stages import place
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows, closed, idle_gpus, kept
from llmsched.core.workload import Placement

PROTECTED = {"off": 0, "easy": 1, "conservative": 10}  # gangs with a planned start that nobody may delay
LATER_LOOKS = 100  # gangs per queue and pass that are tried behind a protected one
BETWEEN_WINDOWS_S = 600.0  # who begins between two windows must leave for the second has so long at least
PLACES = 8  # looked at for one gang beside planned starts
LOOK_AGAIN_S = 60.0  # while somebody is kept out, and everybody who runs should have ended before


class _KeptOut(NamedTuple):
    """One that may not delay a planned start: for how long it would run, its right, and what it was told."""

    lasts: float
    right: tuple[int, float, str]
    refused: place.Refused


class _Outside(NamedTuple):
    """One that reservations keep out: which, whether it says when it ends, and what it was told."""

    rows: list[Row]
    has_end: bool
    refused: place.Refused


class Calendar:
    """The planned starts and windows of one pass."""

    def __init__(self, this: Pass) -> None:
        self.this = this
        self.trial = trial = this.trial
        self.windows = Windows(trial)
        self.promises: list[Promise] = []
        self.depth = PROTECTED.get(trial.state.configuration.scheduling.backfill, 0)
        self.kept_out = 0  # how often somebody was kept from places by a planned start
        self._reasons: dict[str, Reason] = {}
        self._refused: dict[int, _KeptOut] = {}  # by class, see `note_refusal`
        self._outside: dict[int, _Outside] = {}  # the same of reservations
        self._heads: dict[str | None, int] = {}
        self._looks_again: float | None = None
        self._grace_s: float | None = None

    def begin_again(self) -> None:
        """Forget the planned starts: somebody starts whom they did not know of."""
        self.promises, self._heads, self.kept_out = [], {}, 0

    @property
    def keeps_out(self) -> bool:
        """Whether somebody is kept from places by a planned start."""
        return self.kept_out > 0

    def held(self) -> tuple[object, ...]:
        """The places that are held for those that have waited long: who was kept out for others is asked again."""
        held = (promise for promise in self.promises if promise.hold)
        return tuple(
            (each.gang.id, each.start, each.placement, each.pool, each.is_inside, each.overdue)
            + (each.quota.facts() if each.quota is not None else ())
            for each in held
        )

    def is_planned(self, gang: GangState) -> bool:
        return any(promise.gang is gang for promise in self.promises)

    def classes_planned(self) -> tuple[int, ...]:
        """Those of whom somebody has a planned start."""
        return tuple(promise.gang.shape.serial for promise in self.promises if promise.gang.shape is not None)

    def starts(self) -> dict[Shape, tuple[float, Message]]:
        """Of the classes of whom somebody has a planned start that is more than a guess: when, and whose end it is."""
        found: dict[Shape, tuple[float, Message]] = {}
        for promise in self.promises:
            if promise.gang.shape is not None and promise.basis is not None:
                found.setdefault(promise.gang.shape, (promise.start, promise.basis))
        return found

    def is_moved_by(self, gang: GangState, placement: Placement) -> bool:
        """Whether a planned start is another one when the gang starts there: its own, which is needed no more, where
        that has kept somebody out or was held as it had waited longest, which the next one has then; or one that does
        not bind it and cannot be kept."""
        if any(promise.gang is gang and (promise.hold or self.keeps_out) for promise in self.promises):
            return True
        others = (promise for promise in self.promises if promise.gang is not gang)
        free = [promise for promise in others if not self._binds(promise, gang, placement)]
        if not free:
            return False
        ends_at = self.trial.now + runtime_s(self.trial.state, gang, size_of(gang.spec, placement), placement)
        return any(not self._keeps(promise, gang, placement, ends_at) for promise in free)

    def reserved(self, gang: GangState, size: int, wait_s: float = 0.0, *, moves: bool = False) -> list[Row]:
        """The reservations of others that the gang would run into if it started now, or at most `wait_s` later. One
        that `moves` has run, and does not begin between two windows for having waited."""
        if not self.windows.rows:
            return []
        now = self.trial.now
        rows = self.windows.against(gang.spec, now, now + wait_s + runtime_s(self.trial.state, gang, size))
        if not moves and (begins := self.begins_between(gang, rows)) is not None:
            # who was promised places while there was time begins, though others have taken some of it to leave
            since = now if gang.nomination is None else gang.nomination.at
            may_begin = self.this.plan.has_come(begins)
            rows = [
                row
                for row in rows
                if row.reservation.repeat is None or not may_begin or row.opens < since + _between_s(row, gang)
            ]
        return rows

    def closed_to(self, gang: GangState) -> Closed:
        """The numbers of those that keep it out, if it started now at its smallest size."""
        if not self.windows.rows:
            return OPEN
        rows = self.reserved(gang, gang.spec.min_size)
        return tuple(number for number, row in enumerate(self.windows.rows) if any(row is each for each in rows))

    def must_be_left(self, gang: GangState) -> list[Row]:
        """The reservations of others for which whoever runs leaves what they have by now; see stages/clear.py."""
        spec, plan = gang.spec, self.this.plan
        rows = (row for row in self.windows.rows if plan.has_come(row.opens - spec.grace_s))
        return [row for row in rows if not is_holder(row.reservation, spec) and not ends_by(gang, row.opens, plan)]

    def left_beside(self, gang: GangState, starters: Mapping[str, Iterable[str]]) -> list[Row]:
        """Those of which whoever runs has nothing when others (node -> names) start beside it: that it must leave by
        now, and that keep one of these out, which is there on what is not reserved."""
        rows, gangs = self.must_be_left(gang), self.trial.state.gangs
        nodes = dict.fromkeys(placed.node for placed in gang.held)
        for number, row in enumerate(self.windows.rows):
            beside = (name for node, _ in row.parts if node in nodes for name in starters.get(node, ()))
            if row not in rows and any(number in self.closed_to(gangs[name]) for name in beside):
                rows.append(row)
        return rows

    def begins_between(self, gang: GangState, rows: list[Row]) -> float | None:
        """From when on it begins although it must leave for the next window of those that come again: it has waited
        long for a time between them that is long enough, or nobody knows how long that must be."""
        patience = self.trial.state.configuration.scheduling.hold_after_s
        if not patience or not gang.spec.preemptible or all(row.reservation.repeat is None for row in rows):
            return None
        return gang.submitted_at + gang.served_s + patience

    def closed(self, gang: GangState, size: int) -> int:
        """Nodes on which no room is made for the gang and none is promised to it, because others have reserved them
        or a part of them."""
        return closed(self.trial, self.reserved(gang, size))

    def allows(self, gang: GangState, placement: Placement) -> bool:
        """Whether starting `placement` now keeps every planned start."""
        is_hindered = self.hindered_by(gang, placement) is not None
        self.kept_out += is_hindered
        return not is_hindered

    def hindered_by(self, gang: GangState, placement: Placement) -> Promise | None:
        """The first planned start that it would delay. Those planned after its own were planned around it."""
        if not self.promises:
            return None
        ends_at = self.trial.now + runtime_s(self.trial.state, gang, size_of(gang.spec, placement), placement)
        for promise in self.promises:
            if promise.gang is gang:
                break
            if self._binds(promise, gang, placement):
                is_late = promise.overdue & self.mask(placement) if promise.overdue else 0
                if is_late and (_takes_gpus(gang) or not _takes_gpus(promise.gang)):
                    return promise
                if not self._keeps(promise, gang, placement, ends_at):
                    return promise
        return None

    def stands_aside(self, gang: GangState, placement: Placement) -> int:
        """Nodes that are held for who is overdue, if it would be on one of them: it may, and does where it fits
        nowhere else. Who takes what is its own would move the plan to and fro, and so what others had let go."""
        mask = 0
        for promise in self.promises:
            if promise.overdue and promise.gang is not gang:
                mask |= self.mask(promise.placement)
        return mask if mask and mask & self.mask(placement) else 0

    def mask(self, placement: Placement) -> int:
        nodes, mask = self.trial.state.nodes, 0
        for placed in placement:
            mask |= 1 << nodes[placed.node].slot
        return mask

    def _keeps(self, promise: Promise, gang: GangState, placement: Placement, ends_at: float) -> bool:
        if promise.hold and promise.quota is not None:
            kept = least(gang.spec, placement) if self._gives_way(gang, promise) else placement
            if not promise.quota.is_left_by(self.trial, gang.spec, kept, ends_at, promise.start):
                return False
        if leaves_room(self.trial, promise, placement, gang.spec, ends_at):
            return True
        smaller = self._gives_way(gang, promise)
        return smaller and leaves_room(self.trial, promise, least(gang.spec, placement), gang.spec, ends_at)

    def _binds(self, promise: Promise, gang: GangState, placement: Placement = ()) -> bool:
        """Whether `gang` must not delay it. A hold keeps nobody out who has a higher priority, or the same and came
        before, nor, where it borrows, who takes what is its own queue's."""
        if not promise.hold:
            return True
        if promise.evicts and gang.spec.preemptible:
            return False
        if promise.evicts and not promise.is_owed and gang.spec.priority >= promise.gang.spec.priority:
            return False
        if right(gang) < right(promise.gang):
            return False
        if gang.spec.queue == promise.gang.spec.queue:
            return True
        return promise.is_inside or not (_takes_gpus(gang) and self.is_inside(gang, placement))

    def _gives_way(self, gang: GangState, promise: Promise) -> bool:
        return gives_way(self.trial.state, gang.spec, promise.gang.spec)

    def is_inside(self, gang: GangState, placement: Placement = (), trial: Trial | None = None) -> bool:
        """Whether its queue owns all that it would then hold: there, or with one of its options. `trial`: as things
        stand in another one."""
        if not self.trial.state.quota.enforced:
            return True
        spec = gang.spec
        options = (placement[0].option,) if placement else options_of(spec)
        return any(is_inside(trial or self.trial, spec, spec.min_size, option) for option in options)

    def started(self, gang: GangState, placement: Placement) -> None:
        """Work was started beside the planned starts."""
        ends_at = self.trial.now + runtime_s(self.trial.state, gang, size_of(gang.spec, placement), placement)
        self.settled(gang)
        for promise in self.promises:
            kept = least(gang.spec, placement) if self._gives_way(gang, promise) else placement
            use_spare(self.trial, promise, kept, gang.spec, ends_at)
            if promise.hold and promise.quota is not None:
                promise.quota.take(self.trial, gang.spec, kept, ends_at, promise.start)

    def is_hopeless(self, gang: GangState, size: int, lasts: float) -> Promise | None:
        """The planned start that start has less to spare than this gang needs, wherever it goes: nodes need no look."""
        for promise in self.promises:
            if promise.gang is gang:
                break
            if promise.pool and promise.spare_milli < least_milli(gang.spec, size) and self._binds(promise, gang):
                late = self.trial.now + lasts > promise.start
                if late and not place.eligible_by_any(self.trial, gang.spec) & ~promise.pool:
                    return promise
        return None

    def looks_again(self) -> float:
        """When planned starts may move though nothing happens: when somebody was to have ended who has not."""
        if self._looks_again is None:
            now, state = self.trial.now, self.trial.state
            at = bisect_right(state.ends.soonest, (now, "~"))
            known = [state.ends.soonest[at][0]] if at < len(state.ends.soonest) else []
            guessed = [presumed_end(state, state.gangs[name]) for name in state.endless()]
            self._looks_again = min((*known, *guessed), default=now + LOOK_AGAIN_S)
        return self._looks_again

    def would_delay(self, promise: Promise) -> Reason:
        """One reason for all whom a planned start keeps out; the same record for the whole pass."""
        self.kept_out += 1
        name = promise.gang.workload_id
        if name not in self._reasons:
            told = say("order.would_delay", who=workload(name))
            self._reasons[name] = Reason("order", told, (), self.looks_again(), say("eta.planned"))
        return self._reasons[name]

    def avoid(self, gang: GangState | None = None) -> int:
        """Nodes that planned starts will use; for a gang, the nodes of those that were held for others."""
        mask = 0
        for promise in self.promises:
            if gang is not None and promise.gang is gang:
                break
            if gang is not None and (not promise.hold or promise.pool or not self._binds(promise, gang)):
                continue
            self.kept_out += gang is not None
            mask |= promise.pool | self.mask(promise.placement)
        return mask

    @property
    def longest_grace_s(self) -> float:
        """For how long somebody may take to leave who is told to."""
        if self._grace_s is None:
            state = self.trial.state
            self._grace_s = max((state.gangs[name].spec.grace_s for name in state.holding), default=0.0)
        return self._grace_s

    def leaves_reserved(
        self, gang: GangState, placement: Placement, goes: list[tuple[GangState, Placement]], idle: dict[str, int]
    ) -> bool:
        """Whether holders of reservations have as much there as now, when the gang starts and others let those places
        go for it: what they let go themselves is theirs. `idle`: of those that keep the gang out, as things stand."""
        if not self.windows.rows:
            return True
        later = self.this.later().trial
        mark = later.mark()
        for other, places in goes:
            later.hold(other, tuple((Counter(later.held(other)) - Counter(places)).elements()))
        is_left = self.stays_open(later, [(gang, placement)], idle)
        later.rollback(mark)
        return is_left

    def stays_open(self, trial: Trial, goes: list[tuple[GangState, Placement]], idle: dict[str, int]) -> bool:
        """Whether no reservation keeps these out of where they go, once all others have what `trial` says."""
        mark, nodes = trial.mark(), trial.state.nodes
        for gang, placement in goes:
            if not trial.held(gang):
                trial.hold(gang, placement)
        try:
            for gang, placement in goes:
                rows = self.reserved(gang, size_of(gang.spec, placement), self.longest_grace_s)
                then, mine = idle_gpus(trial, rows), dict.fromkeys(placed.node for placed in placement)
                if any(row.nodes >> nodes[name].slot & 1 for row in rows for name in mine):
                    return False
                if any(then.get(name, 0) - idle.get(name, 0) > max(nodes[name].free_whole, 0) for name in mine):
                    return False
            return True
        finally:
            trial.rollback(mark)

    def leaves_enough(self, gang: GangState, placement: Placement, goes: list[tuple[GangState, Placement]]) -> bool:
        """Whether those that have waited long, and need no more than a number of GPUs, still have as many when the gang
        starts there and others let those places go for it."""
        for promise in self.promises:
            if not promise.hold or not promise.pool or promise.gang is gang or not self._binds(promise, gang):
                continue
            stays = [row for row in goes if self._presumed_end(*row) > promise.start]
            freed = sum(in_pool(self.trial, promise, places, victim.spec) for victim, places in stays)
            if in_pool(self.trial, promise, placement, gang.spec) - freed > promise.spare_milli:
                self.kept_out += 1
                return False
        return True

    def _presumed_end(self, gang: GangState, placement: Placement) -> float:
        state, now = self.trial.state, self.trial.now
        begins = self.trial.is_new(gang)
        return now + presumed_s(state, gang, placement) if begins else presumed_end(state, gang)

    def note_refusal(self, gang: GangState, refused: place.Refused | None) -> None:
        """Others of its class need not look for places, where only its run time and its right have decided."""
        spec, shape = gang.spec, gang.shape
        if shape is None or refused is None or spec.is_elastic() or spec.kind == "serve" or gang.home:
            return
        if refused.code == "reservation":
            rows = self.reserved(gang, spec.min_size)
            self._outside[shape.serial] = _Outside(rows, spec.max_runtime_s is not None, refused)
        elif refused.code == "order" and not self.windows.rows:
            lasts = runtime_s(self.trial.state, gang, spec.min_size)
            self._refused[shape.serial] = _KeptOut(lasts, right(gang), refused)

    def refused_to_its_like(self, gang: GangState) -> place.Refused | None:
        """What one of its class was told that would delay a planned start, and so would this one, which takes no less
        time and has no better right: planned starts have only become more since. Or what one was told that the same
        reservations keep out."""
        if gang.shape is None or gang.home or self.is_planned(gang):
            return None
        if (outside := self._outside.get(gang.shape.serial)) is not None:
            is_like = outside.has_end == (gang.spec.max_runtime_s is not None)
            if is_like and outside.rows == self.reserved(gang, gang.spec.min_size):
                return outside.refused
        known = self._refused.get(gang.shape.serial)
        if known is None:
            return None
        lasts = runtime_s(self.trial.state, gang, gang.spec.min_size, fastest=True)
        return known.refused if lasts >= known.lasts and right(gang) >= known.right else None

    def forget_refusals(self) -> None:
        """Somebody starts or leaves, or quota is kept for somebody."""
        self._refused.clear()
        self._outside.clear()

    def settled(self, gang: GangState) -> None:
        """It starts, or makes room for itself: nothing has to be kept for it any more."""
        self.promises = [promise for promise in self.promises if promise.gang is not gang]

    def hold_for(self, gang: GangState) -> Promise | None:
        """Plan the start of a gang that could not start, and protect it, if it is one of the first."""
        for made in self.promises:
            if made.gang is gang:
                return made
        flavor = flavor_of(gang.spec, 0)
        rank = self._heads.get(flavor, 0)
        self._heads[flavor] = rank + 1
        if rank >= self.depth:
            return None
        promise = earliest(self.this, gang, gang.spec.min_size, self.windows, self.promises)
        if promise is not None:
            self.promises.append(promise)
        return promise


def _between_s(row: Row, gang: GangState) -> float:
    """How long before the next window one begins that must leave for it. Where windows come so often that it never has
    BETWEEN_WINDOWS_S, in the first half of the time that it could be there."""
    following = window(row.reservation, row.closes)
    gap_s = following[0] - row.closes if following is not None else inf
    return min(BETWEEN_WINDOWS_S, (gap_s + gang.spec.grace_s) / 2)


def could_start(this: Pass, gang: GangState, calendar: Calendar, only: int = -1) -> Placement | place.Refused:
    """Where it would start at its smallest size if it came first: beside what is reserved, whatever is planned. On
    nodes of mask `only`."""
    size = gang.spec.min_size
    with kept(this.trial, calendar.reserved(gang, size)) as reserved:
        return place.find(this, gang, size, only & ~reserved, explain=False)


def place_within(
    this: Pass, gang: GangState, size: int, calendar: Calendar, option: int | None = None, only: int = -1
) -> Placement | place.Refused:
    """A placement now, on nodes of mask `only`, that respects windows and planned starts; Refused says which of them
    was in the way."""
    trial, rows = this.trial, calendar.reserved(gang, size)
    with kept(trial, rows) as reserved:
        found = place.find(this, gang, size, only & ~reserved, option=option)
    if isinstance(found, place.Refused):
        if (
            rows
            and found.code != "quota"
            and not isinstance(place.find(this, gang, size, only, option=option), place.Refused)
        ):
            reserved_for = tuple(dict.fromkeys(Ref(RESERVATION, row.reservation.name) for row in rows))
            code = "reservation.no_end" if gang.spec.max_runtime_s is None else "reservation.too_long"
            counts = (("reserved", closed(trial, rows).bit_count()),)
            return place.Refused("reservation", say(code, reserved=reserved_for), counts)
        return found
    hindered = calendar.hindered_by(gang, found)
    if hindered is None:
        if aside := calendar.stands_aside(gang, found):
            with kept(trial, rows) as reserved:
                beside = place.find(this, gang, size, only & ~(reserved | aside), explain=False, option=option)
            if not isinstance(beside, place.Refused) and calendar.hindered_by(gang, beside) is None:
                return beside
        return found
    tried, there = 0, found
    for look in range(PLACES):  # it may fit beside them on another of their nodes; if not, on none of theirs
        tried |= calendar.mask(there) if look < PLACES - 1 and not hindered.pool else calendar.avoid()
        with kept(trial, rows) as reserved:
            beside = place.find(this, gang, size, only & ~(reserved | tried), explain=False, option=option)
        if isinstance(beside, place.Refused):
            break
        in_the_way = calendar.hindered_by(gang, beside)
        if in_the_way is None:
            return beside
        there, hindered = beside, in_the_way
    reason = calendar.would_delay(hindered)
    return place.Refused("order", reason.message, reason.counts)


def _takes_gpus(gang: GangState) -> bool:
    """Who does not takes nothing that its queue owns."""
    return least_milli(gang.spec, gang.spec.min_size) > 0


def right(gang: GangState) -> tuple[int, float, str]:
    """The smaller, the earlier: decides between two that have both waited long, whatever policy orders the line."""
    return (-gang.spec.priority, gang.submitted_at, gang.id)
