"""Whom a pass need not ask, nor put in order, so that it costs what has changed and not what waits.

What was refused to a class is kept with a stamp of all that it depended on; and of some classes a look at numbers says
that nobody of them could start. Everything here only spares work: who is asked all the same gets the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from llmsched.core.past_use import next_count
from llmsched.core.planned import Promise
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.rules import Rights, Rules, is_on, rights_of
from llmsched.core.run_times import runtime_s
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape, Stamp
from llmsched.core.stages import guarantee, place, preempt, rank, victims
from llmsched.core.stages.backfill import LATER_LOOKS, Calendar
from llmsched.core.stages.line import UNBOUNDED


class Unasked:
    """What one pass knows of classes without asking anybody."""

    def __init__(self, this: Pass, calendar: Calendar) -> None:
        self.this, self.trial, self.plan, self.calendar = this, this.trial, this.plan, calendar
        self.state = state = this.state
        self.scheduling, self.shares = state.configuration.scheduling, this.shares
        self.by_rank = rank.is_on(state)
        self.awaits = self.by_rank and preempt.somebody_leaves(this)
        self.evicts = is_on(state) and not self.by_rank
        self.takes = self.evicts or self.scheduling.consolidation
        half_life = self.scheduling.usage_half_life_s
        self.recount = next_count(state.now, half_life) if self.shares and self.shares.depends_on_past_use() else None
        self._keeps = guarantee.is_kept(this)
        self._left_out: Stamp | None = None  # see `may_leave_out`
        self._free: dict[tuple[object, ...], int] = {}  # thousandths of GPUs, until somebody starts,
        self._rights: dict[str, Rights] = {}  # and what those of a queue may take,
        self._finds: dict[tuple[object, ...], bool] = {}  # or whether there are enough of those that they may

    def begin_round(self) -> None:
        self._left_out = self._may_leave_out()

    def forget_room(self) -> None:
        """Somebody starts, or leaves."""
        self._free.clear()
        self._rights.clear()
        self._finds.clear()

    def stamp(self) -> Stamp | None:
        """What a refusal depends on; None when it depends on more than can be counted."""
        state, trial = self.state, self.trial
        if self.calendar.windows.rows or state.elastic:
            return None
        victims = (state.victims + len(trial.begun),) if self.takes else ()
        demand = state.waiting.version if self.shares is not None and self.shares.depends_on_demand() else 0
        told = (len(trial.leaving), trial.shrinks, len(trial.promised), len(self.this.exchanged))
        return Stamp((state.causes, told, demand, self.recount, (*trial.held_quota.items(),)), victims)

    def is_answered(self, shape: Shape, stamp: Stamp) -> bool:
        """Whether nothing has happened that could change the last answer to this class."""
        return self._holds(shape, stamp) and (shape.wake_at is None or not self.plan.has_come(shape.wake_at))

    def _holds(self, shape: Shape, stamp: Stamp) -> bool:
        """Whether that answer depended on nothing that has changed: on who might be a victim, only if it may take."""
        if shape.examined is None or shape.examined.room != stamp.room:
            return False
        if shape.examined.held and shape.examined.held != self.calendar.held():
            return False
        if shape.examined.victims == stamp.victims:
            return True
        if self.scheduling.consolidation or self._may_take(shape):
            return False
        shape.examined = stamp._replace(held=shape.examined.held)  # so that it is asked about those victims once
        return True

    def _may_leave_out(self) -> Stamp | None:
        """The stamp of answers that need not be given again, because nobody is held back by them; None: they must.

        So a pass orders and asks the classes that something has changed for, not everybody who waits."""
        if self.calendar.depth or self.scheduling.order == "strict_fifo" or guarantee.is_kept(self.this):
            return None
        if self.takes and self.shares is not None:
            return None  # where a queue would have stood is not known once somebody was evicted
        return self.stamp()

    def still_refused(self, shapes: Iterable[Shape], all_or_none: bool = False) -> dict[int, Shape]:
        """Of these, by serial."""
        found: dict[int, Shape] = {}
        room = self._left_out.room if self._left_out is not None else None
        for shape in shapes:
            examined = shape.examined
            if examined is not None and examined.room == room and self.is_still_refused(shape):
                found[shape.serial] = shape
            elif all_or_none:
                return {}
        return found

    def is_still_refused(self, shape: Shape) -> bool:
        if self._left_out is None or self._is_hindered(shape):
            return False
        return self.is_answered(shape, self._left_out)

    def looks_at_most(self, shape: Shape) -> int:
        return LATER_LOOKS if self._is_hindered(shape) else UNBOUNDED

    def only_takes_what_is_free(self) -> bool:
        """Whether nobody makes room in this pass, and nobody who waits keeps others from anything."""
        state = self.state
        if (
            self.calendar.depth
            or self.scheduling.order == "strict_fifo"
            or guarantee.is_kept(self.this)
            or state.elastic
        ):
            return False
        return (self.by_rank and not self.awaits) or not (state.vacating or self.trial.leaving or self.takes)

    def asks_in_vain(self) -> bool:
        """Whether a refusal in this pass may change nothing for others, nor bring a time at which to ask again."""
        state, scheduling = self.state, self.scheduling
        if self.by_rank or self.calendar.depth or state.elastic or state.configuration.node_types:
            return False
        return not (scheduling.order == "strict_fifo" or scheduling.consolidation or scheduling.preemption_delay_s)

    def is_hopeless(self, shape: Shape) -> bool:
        """Whether it needs more than is free, with nobody on the way out, and may take nothing from others."""
        if self.state.vacating or self.trial.leaving or shape.sample.is_elastic():
            return False
        if shape.needs_free <= self._room(shape) or (self._keeps and guarantee.has_idle(self.this, shape.sample)):
            return False
        return not (self.evicts and self._may_take(shape)) or self._finds_nobody(shape)

    def _may_take(self, shape: Shape) -> bool:
        """Whether there is anybody whom one of the class might evict."""
        rights = self._rights.get(shape.queue)
        if rights is None:
            rights = self._rights[shape.queue] = rights_of(self.this, shape.queue)
        return rights.may_take(shape.sample.priority, shape.least_total)

    def _finds_nobody(self, shape: Shape) -> bool:
        """Where shares say from whom to take: whether there are too few of those as things stand. That is another one
        when somebody starts."""
        if self.shares is None:
            return False
        finds = self._finds.get(shape.gpus)
        if finds is None:
            first = self.state.gangs[shape.entries[0][1]]
            finds = self._finds[shape.gpus] = victims.are_enough(self.this, first, Rules(self.this, first))
        return not finds

    def _is_hindered(self, shape: Shape) -> bool:
        """Whether a planned start keeps all of a class out that do not end in time, although there is room."""
        if not self.calendar.promises or shape.sample.is_elastic() or shape.least_total > self._room(shape):
            return False
        first = self.state.gangs[shape.entries[0][1]]
        return self.calendar.is_hopeless(first, first.spec.min_size, inf) is not None

    def is_kept_out(self, gang: GangState, shape: Shape) -> Promise | None:
        """The planned start that rules this gang out although its class has room: the common case behind a head."""
        if shape.sample.is_elastic():
            return None
        if shape.least_total > self._room(shape):
            return None
        return self.calendar.is_hopeless(
            gang, gang.spec.min_size, runtime_s(self.state, gang, gang.spec.min_size, fastest=True)
        )

    def _room(self, shape: Shape) -> int:
        """Free thousandths of GPUs that it may take."""
        key = (shape.flavors, shape.sample.node_labels, shape.sample.use_spot)
        room = self._free.get(key)
        if room is None:
            mask = place.eligible_by_any(self.trial, shape.sample)
            room = self._free[key] = self.state.capacity.free_gpus(mask) * MILLI
        return room
