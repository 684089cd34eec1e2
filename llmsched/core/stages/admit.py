"""The loop over whoever waits: place it, else make room for it, else say why not and who may not overtake it.

Promises are kept before anybody else is looked at; what is left over goes to growth. Every refusal writes its reason,
on the class when it holds for all of it. In which order they are asked is for line.py, where and at whose cost for the
stages called here.
"""

from __future__ import annotations

from llmsched.core.exact_fit import fits
from llmsched.core.explain import Reason
from llmsched.core.message import Message, say, workload
from llmsched.core.possible import able_options
from llmsched.core.records import GangState, size_of
from llmsched.core.reserved import Row
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.stages import (
    consolidate,
    grow,
    guarantee,
    longest,
    migrate,
    owe,
    place,
    preempt,
    redeem,
    shrink,
    size,
)
from llmsched.core.stages.backfill import LATER_LOOKS, Calendar, place_within
from llmsched.core.stages.beside import beside_others
from llmsched.core.stages.line import UNBOUNDED, Line
from llmsched.core.stages.unasked import Unasked
from llmsched.core.why_here import why_here
from llmsched.core.windows import closed, idle_gpus, kept
from llmsched.core.workload import Placement

PERSONAL = ("order", "reservation")  # refusals of one gang: another of its class may run for less, or end sooner
OF_PLACES = ("quota", "nodes", "fragmentation", "topology", "capacity_coming")  # what `place` and `provision` tell
LOOK_AGAIN_S = 60.0  # after which policies are asked again whose answers time alone may change at any moment


def run(this: Pass, calendar: Calendar, settled: dict[str, None]) -> None:
    """`settled`: gangs that rank.py has launched, promised capacity or refused already."""
    Admission(this, calendar, settled).run()


class Admission:
    """One pass over the line."""

    def __init__(self, this: Pass, calendar: Calendar, settled: dict[str, None]) -> None:
        self.settled = settled  # gangs that were launched or promised capacity by rank
        self.this, self.trial, self.plan = this, this.trial, this.plan
        self.state = state = this.state
        self.scheduling = state.configuration.scheduling
        self.calendar = calendar
        self.unasked = Unasked(this, calendar)
        self.by_rank, self.takes = self.unasked.by_rank, self.unasked.takes
        self.asked: dict[int, None] = {}  # classes of which somebody was looked at
        self.looks: dict[str, int] = {}
        self.exchanged = 0  # how many pairs had exchanged a place when this round began
        self.refused_to: dict[int, Shape] = {}  # classes that were refused in this round,
        self.is_late = False  # and whether somebody was granted something after that, for whose sake they may differ
        self.is_moved = False  # whether planned starts have moved since somebody was asked who may stand behind them
        self.refused: place.Refused | None = None  # why the gang in hand found no place,
        self.clock: tuple[float | None, Message | None] = (None, None)  # and when time alone may give it one

    def run(self) -> None:
        state, plan = self.state, self.plan
        since = len(plan.decisions)
        self.gave = len(self.trial.leaving) + self.trial.shrinks  # how often somebody was told to, at the last success
        goes_on = redeem.run(self.this, self.calendar, self._launch)
        for name in state.nominated:
            self._tell_promised(state.gangs[name])
        if not goes_on:
            return
        moves, grows = migrate.Moves(self.this, self.calendar), grow.HigherFirst(self.this, self.calendar)
        while True:
            line = self._ask_all(moves, grows, since)
            if line is None:
                self._forget_who_did_not_begin()
                return
            if not self._may_differ():
                break
            self._begin_again()
        self._tell_who_was_not_asked(line)
        for name in state.parked:
            if state.gangs[name].blocked_by == "backoff":
                plan.wake(state.gangs[name].not_before)
        grow.run(self.this, self.calendar)  # leftovers last
        moves.rest()
        self._name_moments(line)
        if self.by_rank and self.trial.begun and self._rests_somebody():
            plan.asks_again = True

    def _rests_somebody(self) -> bool:
        """Whether there may be more for those to whom elasticity has given nothing."""
        elastic = self.state.waiting.elastic.values()
        return any(not self.plan.sizes.get(name, 1) for shape in elastic for _, name in shape.entries)

    def _ask_all(self, moves: migrate.Moves, grows: grow.HigherFirst, since: int) -> Line | None:
        """Ask everybody whose answer may be another one than before. None: the portion of this pass is decided."""
        plan = self.plan
        if self.by_rank:
            owe.hold(self.this, self.calendar)
        else:
            longest.run(self.this, self.calendar)
        self.unasked.begin_round()
        line = Line(
            self.this,
            self.unasked.still_refused,
            self.unasked.only_takes_what_is_free(),
            self.unasked.looks_at_most,
            without={**self.settled, **self.trial.begun, **plan.nominations},
            is_hopeless=self.unasked.is_hopeless if self.unasked.asks_in_vain() else lambda shape: False,
            most=LATER_LOOKS if self.calendar.depth or self.calendar.promises else UNBOUNDED,
        )
        for gang, shape in line:
            if plan.cut(since):
                return None
            self.asked[shape.serial] = None
            if self.by_rank:
                moves.before(gang)
                grows.start(gang)
            if self.calendar.promises and (head := self.unasked.is_kept_out(gang, shape)) is not None:
                self.this.tell_alone(gang, self.calendar.would_delay(head))
                self._stand_before(gang, shape, line)
                self._count_look(gang, shape, line)
            elif self._consider(gang, shape, line):
                self._note_success(gang, bool(self.refused_to or line.still_refused))
                shape.examined = None  # what was refused to the class is so no more
                self.this.tell(shape, None)
                self.calendar.settled(gang)
                if self.takes:
                    line.rejoin()
                    if self.unasked.shares is not None and line.passed_over:  # who starts may be theirs to take
                        self.is_late = True
                        self.refused_to.update((each.serial, each) for each in line.passed_over)
                self._tell_promised(gang)
            else:
                self._stand_back(gang, shape, line)
        self.refused_to.update((shape.serial, shape) for shape in line.still_refused)
        return line

    def _note_success(self, gang: GangState, after_others: bool) -> None:
        """Those who were refused before it have not seen what it changes: what it holds may be taken from it, those who
        make room for it may leave more than it needs, and planned starts may be later or none any more."""
        gives = len(self.trial.leaving) + self.trial.shrinks
        self.is_late = self.is_late or (after_others and (self.takes or gives > self.gave))
        self.gave = gives
        self._forget_room()
        is_promised = gang.id not in self.trial.begun
        self.is_moved = self.is_moved or (is_promised and self.calendar.keeps_out)

    def _may_differ(self) -> bool:
        """Whether somebody may be answered otherwise now than in this round. Each round starts somebody, makes room for
        somebody, or lets a pair exchange a place, which it does once: so they end."""
        if (self.is_moved and self.calendar.keeps_out) or len(self.this.exchanged) > self.exchanged:
            return True
        stamp = self.unasked.stamp() if self.is_late else None
        if stamp is None:
            return self.is_late and bool(self.refused_to)
        return not all(self.unasked.is_answered(shape, stamp) for shape in self.refused_to.values())

    def _begin_again(self) -> None:
        """What was refused before somebody else was answered may not be so any more."""
        self._forget_who_did_not_begin()
        self.asked, self.looks, self.refused_to = {}, {}, {}
        self.is_late = self.is_moved = False
        self.exchanged = len(self.this.exchanged)
        self._forget_room()
        self.calendar.begin_again()
        self.this.let_go_of_quota()

    def _forget_who_did_not_begin(self) -> None:
        """What was refused while they were to begin may have been theirs, and is there again."""
        if len(self.this.exchanged) > self.exchanged:
            for shape in self.refused_to.values():
                shape.examined = None

    def _name_moments(self, line: Line) -> None:
        """When time alone may change what was refused: nobody waits for the clock without knowing until when."""
        plan = self.plan
        forbids = self.takes and self.this.policies.preemption.forbids
        if self.unasked.recount is not None and self.state.waiting.count:
            plan.look_again(self.unasked.recount, say("eta.count"))  # until then time alone moves no share
        if self.calendar.keeps_out:
            plan.wake(self.calendar.looks_again())
        if forbids:
            plan.look_again(plan.at + LOOK_AGAIN_S, say("eta.policy"))
        if line.moves:
            plan.look_again(plan.at + LOOK_AGAIN_S, say("eta.line"))
        plan.by_clock = plan.by_clock or self.calendar.keeps_out or forbids or line.moves

    def _tell_who_was_not_asked(self, line: Line) -> None:
        state = self.state
        stamp = self.unasked.stamp()
        reason_of, tell = self.this.reason_of, self.this.tell
        is_counted = not state.configuration.node_types  # nobody rents nodes by what is told
        needs_more = [*line.left_out, *line.put_aside()]
        left_out = line.passed_over if is_counted else [*needs_more, *line.passed_over]

        def is_told(shape: Shape) -> bool:
            """By rank an answer that is not about places and quota is a ranking's, and not given here."""
            reason = reason_of(shape)
            if reason is None or (self.by_rank and reason.code not in OF_PLACES):
                return reason is not None
            return stamp is not None and self.unasked.is_answered(shape, stamp)

        untold, starts, told, policies = list[Shape](), self.calendar.starts(), self.this.told, self.this.policies
        for shape in needs_more if is_counted else ():
            examined, is_unread, starts_later = shape.examined, shape.is_unread, shape in starts
            is_known = stamp is not None and examined is not None and examined.room == stamp.room
            if is_unread and not starts_later:
                if is_known and examined == stamp and shape.wake_at is None:
                    continue  # of thousands most have been told so before
                if not is_known and shape not in told and shape.would_ask_the_same(policies):
                    shape.examined, shape.wake_at = stamp, None
                    continue
            is_new = is_unread and (starts_later or not (is_known or shape in told))
            if is_new or not ((is_known or self.by_rank) and is_told(shape)):
                shape.examined, shape.wake_at = stamp, None
                untold.append(shape)
        self.this.tell_who_ask(untold, starts)
        for shape in left_out:
            if not is_told(shape):
                shape.examined = shape.wake_at = None
                first = state.gangs[shape.entries[0][1]]
                found = place.find(self.this, first, first.spec.min_size)
                if isinstance(found, place.Refused):
                    shape.examined = stamp
                    tell(shape, Reason(*found))
        for shape in state.waiting.live.values() if line.blocks else ():
            by = line.blocker(shape)
            if not by:
                continue
            reason = reason_of(shape)
            behind = shape.entries[0][1] != by and reason is not None and reason.code == "order"
            unasked = shape.serial not in self.asked and not self.unasked.is_still_refused(shape)
            if reason is None or behind or unasked:
                tell(shape, Reason("order", say("order.behind", who=workload(state.gangs[by].workload_id))))

    # One gang: place it, or make room, or say why not.

    def _consider(self, gang: GangState, shape: Shape, line: Line) -> bool:
        self.refused = None
        stamp = self.unasked.stamp()
        if stamp is not None and self.unasked.is_answered(shape, stamp):
            line.refuse()
            return False
        self.refused = self.calendar.refused_to_its_like(gang)
        if self.refused is not None and (self.refused.code == "order" or not self._makes_room()):
            return False
        outer = self.plan.wake_at, self.plan.wake_basis
        self.plan.wake_at = self.plan.wake_basis = None
        kept_out = self.calendar.kept_out
        done = self._place(gang) or self._make_room(gang)
        kept = not self._is_personal(gang) and not self.this.policies.preemption.forbids
        if not done and stamp is not None and kept:
            held = self.calendar.held() if self.calendar.kept_out > kept_out else ()
            shape.examined, shape.wake_at = stamp._replace(held=held), self.plan.wake_at
        self.clock = self.plan.wake_at, self.plan.wake_basis
        self.plan.wake(*outer)
        return done

    def _is_personal(self, gang: GangState | None = None) -> bool:
        """Whether the refusal concerns this gang only: a shorter one of its class may still start, or one that may
        evict whom the gang has exchanged a place with."""
        if gang is not None and self.takes and self.this.exchanged_with(gang):
            return True
        return self.refused is not None and self.refused.code in PERSONAL

    def _place(self, gang: GangState) -> bool:
        found = self._find(gang)
        if found is None:
            self.calendar.note_refusal(gang, self.refused)
            return False
        if gang.spec.is_elastic() and len(gang.spec.groups[0].options) > 1:
            found = beside_others(self.this, gang, self.asked, lambda: self._find(gang)) or found
        self.refused = None
        self._launch(gang, found)
        return True

    def _find(self, gang: GangState) -> Placement | None:
        for bundles, option in size.choices(self.plan, gang, self.state.history):
            found = place_within(self.this, gang, bundles, self.calendar, option)
            if not isinstance(found, place.Refused) and self._fits_at_last(gang, found):
                return found
            refused = found if isinstance(found, place.Refused) else place.NO_ROOM
            if not self._is_personal() or refused.code in PERSONAL:  # that some size or option waits for time alone
                self.refused = refused
        return None

    def _fits_at_last(self, gang: GangState, placement: Placement) -> bool:
        """Whether a part of a device is there for it as well when those have gone who leave: what is beside them now is
        a part of a whole device then, which may be promised or reserved."""
        is_part = any(placed.gpu_index >= 0 for placed in placement)
        if not is_part or not (self.state.vacating or self.trial.leaving or self.trial.shrinking):
            return True
        later, rows = self.this.later().trial, self.calendar.reserved(gang, size_of(gang.spec, placement))
        with kept(later, rows):
            return fits(later, gang.spec, placement)

    def _tell_promised(self, gang: GangState) -> None:
        """For whom it waits, if it is promised places."""
        nomination = self.plan.nominations.get(gang.id)
        if nomination is not None:
            waits = nomination.why or say("victims_leaving.unnamed")
            self.this.tell_alone(gang, Reason("victims_leaving", waits, (("victims", len(nomination.victims)),)))

    def _launch(self, gang: GangState, placement: Placement) -> None:
        self.is_moved = self.is_moved or self.calendar.is_moved_by(gang, placement)
        self.this.launch(gang, placement, why_here(self.trial, gang, placement))
        if self.calendar.promises:
            self.calendar.started(gang, placement)
        self._forget_room()

    def _forget_room(self) -> None:
        """Somebody starts, or leaves."""
        self.unasked.forget_room()
        self.calendar.forget_refusals()

    def _makes_room(self) -> bool:
        """Whether room may be made for anybody."""
        leaving = self.state.vacating or self.trial.leaving
        return bool(leaving or self.unasked.evicts or self.state.elastic or self.scheduling.consolidation)

    def _make_room(self, gang: GangState) -> bool:
        if not self._makes_room() or (self.refused is not None and self.refused.code == "order"):
            return False
        rows = self.calendar.reserved(gang, gang.spec.min_size, self.calendar.longest_grace_s)
        trial = self.this.later().trial if rows else self.trial
        idle = idle_gpus(trial, rows) if rows else {}
        free = ~self.calendar.avoid(gang)
        if self.state.elastic and self._shrink(gang, free, idle, rows):
            return True
        with kept(trial, rows, in_use=True) as reserved:
            return self._make_room_on(gang, free & ~reserved, ~closed(self.trial, rows), idle, rows)

    def _shrink(self, gang: GangState, only: int, idle: dict[str, int], rows: list[Row]) -> bool:
        """Those that make way for a planned start in time do not make way for one that would not."""

        def may(there: Placement, goes: shrink.Goes) -> bool:
            hindered = self.calendar.hindered_by(gang, there)
            if hindered is not None:
                reason = self.calendar.would_delay(hindered)
                self.refused = place.Refused("order", reason.message, reason.counts)
            if hindered is not None or not rows:
                return hindered is None and self.calendar.leaves_reserved(gang, there, goes, idle)
            with kept(self.this.later().trial, rows, in_use=True):
                return self.calendar.leaves_reserved(gang, there, goes, idle)

        return shrink.run(self.this, gang, only, rows, size.candidates(self.plan, gang), may)

    def _make_room_on(self, gang: GangState, only: int, whole: int, idle: dict[str, int], rows: list[Row]) -> bool:
        """`whole`: nodes of which nothing is reserved; `idle`: what holders of `rows` have not taken of others."""

        def may(there: Placement, goes: shrink.Goes) -> bool:
            return self.calendar.leaves_reserved(gang, there, goes, idle)

        def is_free(there: Placement) -> bool:
            with kept(self.trial, rows):
                return fits(self.trial, gang.spec, there)

        leaves_enough = self.calendar.leaves_enough
        if self.by_rank:  # rank.py has decided who is evicted, and for whom
            made = self.unasked.awaits and preempt.await_those_who_leave(self.this, gang, only, is_free)
        else:
            made = preempt.run(self.this, gang, only, lambda *goes: may(*goes) and leaves_enough(gang, *goes), is_free)
        if isinstance(made, tuple):
            self._launch(gang, made)
        if made:
            self._forget_room()
            return True
        # Whom a reservation alone keeps out nobody is moved for: those who are could be kept out by it in turn.
        may_move = not self.by_rank and not self._is_personal()
        return may_move and consolidate.run(self.this, self.calendar, gang, only & whole)

    def _stand_back(self, gang: GangState, shape: Shape, line: Line) -> None:
        """The gang waits: write why, plan its start, keep its idle guarantee, and stop who may not overtake it."""
        personal, alone = self._is_personal(), self._is_personal(gang)
        if not alone:
            line.refuse()
        delays = self.refused is not None and self.refused.code == "order"
        if not delays:  # who may not delay others makes no room either
            self.refused_to[shape.serial] = shape
        is_shut_out = self._is_shut_out(gang)
        in_line = self.scheduling.order == "strict_fifo" and not self.calendar.depth
        if in_line and not is_shut_out and able_options(self.state, shape):  # what can never start stands before nobody
            flavors = shape.flavors if self.scheduling.fifo_scope == "per_flavor" else None
            planned = self.calendar.classes_planned() if personal else ()  # else one would wait for the other for ever
            line.block(shape.queue, flavors, gang.id, but=planned)
        elif alone:
            if delays:
                self._stand_before(gang, shape, line)
            self._count_look(gang, shape, line)
        reason = Reason(*self.refused) if self.refused is not None else None
        may_begin = not (delays or is_shut_out)  # one that delays would keep that one out itself
        if may_begin and guarantee.keep(self.this, gang, shape):
            self.calendar.forget_refusals()  # quota refuses others before planned starts do
        promise = self.calendar.hold_for(gang)
        if reason is not None:
            if promise is not None and promise.basis is not None:
                reason = reason._replace(eta=promise.start, eta_basis=promise.basis)
            at, basis = self._ended_by_clock(gang)
            if at is not None and basis is not None and (reason.eta is None or at < reason.eta):
                reason = reason._replace(eta=at, eta_basis=basis)
            if personal:
                self.this.tell_alone(gang, reason)
            else:
                self.this.tell_alone(gang, None)
                self.this.tell(shape, reason)

    def _is_shut_out(self, gang: GangState) -> bool:
        """Whether only reservations of others keep the gang in hand out, one of which comes again and again: nobody
        knows whether it ever begins."""
        if self.refused is None or self.refused.code != "reservation":
            return False
        return any(row.reservation.repeat for row in self.calendar.reserved(gang, gang.spec.min_size))

    def _ended_by_clock(self, gang: GangState) -> tuple[float | None, Message | None]:
        """When time alone may end the wait of the gang in hand, and what has changed by then."""
        if self.refused is not None and self.refused.code == "reservation":
            rows = self.calendar.reserved(gang, gang.spec.min_size)
            closes = min((row.closes for row in rows), default=None)
            begins = self.calendar.begins_between(gang, rows)
            if begins is not None and closes is not None and self.state.now < begins < closes:
                return begins, say("eta.between")
            return closes, say("eta.window")
        if self.refused is not None and self.refused.code == "order":
            return self.calendar.looks_again(), say("eta.planned")
        period = self.this.policies.elasticity.period_s
        if self.clock[1] is None and gang.spec.is_elastic() and gang.id in self.plan.sizes and period:
            return self.plan.at + period, say("eta.sizes")
        return self.clock

    def _stand_before(self, gang: GangState, shape: Shape, line: Line) -> None:
        """Without backfill nobody who asks for as much goes past one that is kept out for the sake of who has waited
        long, by being shorter, with a lower priority; nor with the same one where age alone decides then."""
        if self.calendar.depth or self.by_rank:
            return
        ordering = self.this.policies.ordering
        highest = gang.spec.priority - (0 if ordering.static and ordering.by_priority else 1)
        planned = self.calendar.classes_planned()  # whom it is kept out for
        line.block(shape.queue, shape.flavors, gang.id, shape.least_total, highest, but=planned)

    def _count_look(self, gang: GangState, shape: Shape, line: Line) -> None:
        looks = self.looks[shape.queue] = self.looks.get(shape.queue, 0) + 1
        if looks > LATER_LOOKS:
            line.block(shape.queue, shape.flavors, gang.id, but=self.calendar.classes_planned())
