"""One scheduling pass. Read `decide` first: it is the table of contents of llmsched.

`turn` is what the live controller and the simulator call. `decide` proposes and leaves the state as it found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from heapq import nsmallest

from llmsched.core.decisions import RunAgain, Scale
from llmsched.core.explain import Reason
from llmsched.core.facts import Fact
from llmsched.core.plan import Plan
from llmsched.core.planned import earliest
from llmsched.core.policy import Policies
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.stages import (
    admit,
    autoscale,
    clear,
    limits,
    owe,
    place,
    provision,
    rank,
    reconcile,
    reserve,
    schedule,
    size,
)
from llmsched.core.stages.backfill import Calendar
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows

STARTS_TOLD = 4  # classes of waiting gangs whose planned start is worked out for people only

__all__ = ["Plan", "decide", "turn"]


def turn(state: State, facts: Sequence[Fact], policies: Policies) -> Plan:
    """Apply what happened, decide what follows, apply the decisions. Live and simulated alike."""
    for fact in facts:
        state.apply(fact)
    plan = decide(state, policies)
    for decision in plan.decisions:
        state.apply(decision)
        if isinstance(decision, (Scale, RunAgain)):
            plan.wake_at = plan.at  # they made new gangs: ask again at once
    if plan.is_cut or plan.asks_again:
        plan.wake_at = plan.at  # somebody is left; between two passes the caller may do something else
    return plan


def decide(state: State, policies: Policies) -> Plan:
    """What to do now. The state is left byte-identical, but for the reasons of those who wait."""
    plan = _nothing_new(state, policies)
    if plan is not None:
        return plan
    plan = Plan(state.now, gather=lambda: _reasons(state, policies))
    with Trial(state) as trial:
        this = Pass(trial, policies, plan)
        try:
            goes_on = _decide(this)
        finally:
            this.write_reasons(partial(why, state, policies))
    if not goes_on:
        return plan
    plan.troubles = policies.troubles()
    decided_nothing = not plan.decisions and not plan.by_clock
    state.memo["quiet"] = (state.version, policies, plan.wake_at) if decided_nothing else None
    state.memo["moment"] = plan.moment
    return plan


def _decide(this: Pass) -> bool:
    """The stages, in order. False: the pass was cut before those who wait were looked at."""
    for what_must_end in (reconcile, limits, schedule):
        what_must_end.run(this)
        if this.plan.is_cut:
            return False  # who is left of them must not be looked at as if it stayed
    reserve.run(this)  # which GPUs reservations take
    clear.run(this)  # who is on those
    autoscale.run(this)  # load becomes wanted replicas
    if this.plan.is_cut:
        return False
    calendar = Calendar(this)
    owe.run(this, calendar)  # by rank: who has waited long
    size.run(this, calendar)  # what each elastic gang should hold
    owe.hold(this, calendar)
    settled = rank.run(this, calendar)  # by rank: who runs at all, once a quantum
    if this.plan.is_cut:
        return False  # who is left of the better ones goes before whoever only finds room
    admit.run(this, calendar, settled)  # place, shrink, preempt or plan whoever waits
    reserve.look_again(this)
    reserve.tell_holders(this)
    provision.run(this)
    return True


def rests(state: State, policies: Policies) -> bool:
    """Whether a pass now would decide nothing, as the last one has found."""
    return _nothing_new(state, policies) is not None


def _nothing_new(state: State, policies: Policies) -> Plan | None:
    """The plan of the last pass, when it decided nothing, nothing has happened since, and no time it named has come."""
    quiet = state.memo.get("quiet")
    if quiet is None:
        return None
    version, known, wake_at = quiet
    if version != state.version or known is not policies or (wake_at is not None and state.now >= wake_at):
        return None
    return Plan(state.now, wake_at=wake_at, troubles=policies.troubles(), gather=lambda: _reasons(state, policies))


def _reasons(state: State, policies: Policies) -> dict[str, Reason]:
    """Everybody's reason, with the planned start of the first few where backfill did not need it."""
    found: dict[str, Reason] = {}
    plan_starts(state, policies)
    for name in state.parked:
        own = state.gangs[name].own_reason
        if own is not None:
            found[name] = own
    for shape in state.waiting.live.values():
        for _, name in shape.entries:
            reason = state.gangs[name].reason
            if reason is not None:
                found[name] = reason
    return found


def plan_starts(state: State, policies: Policies) -> None:
    """Write beside the reasons of the first few classes when they probably start, for people who look meanwhile; and
    beside the others, when time alone may let them."""
    heads = nsmallest(STARTS_TOLD, state.waiting.live.values(), key=lambda shape: shape.entries[0][0])
    if heads and (state.ends.soonest or state.configuration.reservations):
        with Trial(state) as trial:
            this, windows = Pass(trial, policies), Windows(trial)
            for shape in heads:
                if shape.reason is None or shape.reason.eta is not None or shape.reason.code == "order":
                    continue
                first = state.gangs[shape.entries[0][1]]
                start = earliest(this, first, first.spec.min_size, windows, [])
                if start is not None and start.basis is not None:
                    shape.reason = shape.reason._replace(eta=start.start, eta_basis=start.basis)
    if state.memo.get("moment") is not None:
        for shape in state.waiting.live.values():
            if not shape.is_unread and shape.reason is not None:
                shape.reason = _with_moment(state, shape.reason)


def why(state: State, policies: Policies, shape: Shape) -> Reason:
    """Why a class waits that a pass has left out, as it needs more than is free; with the numbers of this moment."""
    first = state.gangs[shape.entries[0][1]]
    with Trial(state) as trial:
        found = place.find(Pass(trial, policies), first, first.spec.min_size)
    return _with_moment(state, Reason(*(found if isinstance(found, place.Refused) else place.NO_ROOM)))


def _with_moment(state: State, reason: Reason) -> Reason:
    """Until when it waits at least, if time alone may end it and nothing sooner is known."""
    moment = state.memo.get("moment")
    if moment is None or moment[0] <= state.now or reason.code in ("impossible", "over_limit"):
        return reason
    if reason.eta is not None and reason.eta > state.now:
        return reason
    return reason._replace(eta=moment[0], eta_basis=moment[1])
