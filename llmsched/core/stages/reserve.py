"""Reservations of so many GPUs take theirs: once, and others only where reserved.py says so. Each, whether it takes
something or finds nothing, is looked at when its window opens and when it closes: what others take goes by that too;
and before anybody is told to leave for it."""

from __future__ import annotations

from llmsched.core.configuration import Reservation
from llmsched.core.decisions import Assign
from llmsched.core.message import RESERVATION, Message, Ref, say
from llmsched.core.reservation import is_holder
from llmsched.core.reserved import decided, lacks, looked_at_ahead_s, spans_of, taken_before
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass


def run(this: Pass) -> None:
    trial = this.trial
    if not trial.state.configuration.reservations:
        return
    for _, span in spans_of(trial).values():
        for moment in span:
            this.plan.wake(moment)
    _look_when_it_may_move(this)
    for name, taken in decided(trial).items():
        if trial.state.taken.get(name) != taken:
            trial.taken[name] = taken
            this.plan.decisions.append(Assign(name, taken))


def _look_when_it_may_move(this: Pass) -> None:
    ahead_s = looked_at_ahead_s(this.trial)
    for reservation, (opens, _) in spans_of(this.trial).values():
        if not reservation.nodes:
            this.plan.wake(opens - ahead_s)


def look_again(this: Pass) -> None:
    """Ask for another pass at once, if it will find something better for one of them after what this one decides. One
    that begins and may take longer to leave than others is a reason to look earlier."""
    if this.plan.decisions and this.state.configuration.reservations:
        _look_when_it_may_move(this)
        known = {**this.state.taken, **this.trial.taken}
        better = any(known.get(name) != taken for name, taken in decided(this.trial).items())
        this.plan.asks_again = this.plan.asks_again or better


TELLS = ("nodes", "fragmentation", "reservation")  # reasons behind which a reservation that lacks GPUs may be


def tell_holders(this: Pass) -> None:
    """Whoever waits for room, while what was reserved for it has fewer GPUs than were asked for, is told so."""
    state, trial = this.state, this.trial
    for name in state.memo.pop("told of a lack", ()):
        known = state.gangs[name].own_reason if name in state.gangs and name not in this.told_alone else None
        if known is not None and known.message.code == "nodes.reserved":
            this.tell_alone(state.gangs[name], None)
    short = []
    for reservation, (opens, _) in spans_of(trial).values() if state.configuration.reservations else ():
        taken = None if reservation.nodes else taken_before(trial, reservation)
        if taken is not None and (missing := lacks(taken)) and this.plan.has_come(opens):
            short.append((reservation, missing))
    told: list[str] = []
    for shape in state.waiting.live.values() if short else ():
        for _, name in shape.entries:
            gang = state.gangs[name]
            reason = this.told_alone.get(name) or this.reason_of(shape)
            for reservation, missing in short:
                waits = name not in trial.begun and name not in this.plan.nominations
                if waits and reason is not None and reason.code in TELLS and is_holder(reservation, gang.spec):
                    this.tell_alone(gang, reason._replace(message=_short(reservation, missing)))
                    told.append(name)
                    break
    if told:
        state.memo["told of a lack"] = told


def _short(reservation: Reservation, missing: int) -> Message:
    asked = -(-reservation.gpus_milli // MILLI)
    return say("nodes.reserved", reserved=Ref(RESERVATION, reservation.name), found=asked - missing, asked=asked)
