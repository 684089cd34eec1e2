"""What a submission would do, to itself and to others, without doing it: the same pass on a copy of the world.

Used by `plan`. The pass is the real one, so a forecast and the turn that follows it agree. The state stays as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmsched.core.archive import Archive
from llmsched.core.commands import met
from llmsched.core.decisions import Drain, Launch, Nominate, Preempt, Resize
from llmsched.core.explain import Reason
from llmsched.core.facts import Fact, Submitted, Tick
from llmsched.core.message import GANG, Message, Ref, say
from llmsched.core.policy import Policies
from llmsched.core.records import size_of
from llmsched.core.scheduler import Plan, rests, turn
from llmsched.core.snapshot import Snapshot, freeze, thaw
from llmsched.core.state import State
from llmsched.core.workload import Placement, Workload

_APART_S = 1e-6  # who is written first stands first in line, as when each is submitted after the other


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one gang of a submission. `others` says what happens to whom because of it."""

    gang: str
    starts_now: bool
    placement: Placement | None
    reason: Reason | None
    size: int
    others: tuple[Message, ...] = ()


def copy_of(state: State) -> State:
    """A state of its own that shares only what never changes. It remembers nothing of passes before: what it decides
    follows from the journal alone."""
    return thaw(freeze(state), state.archive)


def forecast(
    state: State, workloads: Sequence[Workload], policies: Policies, in_place: Collection[str] = ()
) -> list[Forecast]:
    """One entry per gang of `workloads`, in order, if they were submitted now; known workloads are rolled out, but for
    those whose ids are `in_place`."""
    return forecast_from(freeze(state), state.archive, workloads, policies, in_place, rests(state, policies))


def forecast_from(
    snapshot: Snapshot,
    archive: Archive,
    workloads: Sequence[Workload],
    policies: Policies,
    in_place: Collection[str] = (),
    is_quiet: bool = False,
    now: float = 0.0,
) -> list[Forecast]:
    """The same from a snapshot: in any thread, while the state goes on. `is_quiet`: as `scheduler.rests` says of that
    state; then it need not be asked what would happen anyway. `now`: a state that rests is as old as its last entry,
    and planned starts count from the moment of the question."""
    now = max(now, snapshot.now)
    without = Plan(now) if is_quiet else _at_once(thaw(snapshot, archive), [Tick(now)], policies)
    world = thaw(snapshot, archive)
    sizes = {gang.id: gang.size for gang in world.gangs.values() if gang.is_holding()}
    facts = [
        Submitted(now + place * _APART_S, w, w.id in world.workloads, w.id in in_place, met(world, w))
        for place, w in enumerate(workloads)
    ]
    plan = _at_once(world, facts, policies)
    launches = {d.gang: d.placement for d in plan.decisions if isinstance(d, Launch)}
    promised = {d.gang: d.placement for d in plan.decisions if isinstance(d, Nominate)}
    expected = {d.gang for d in without.decisions if isinstance(d, Launch)}
    already = {(type(d), d.gang) for d in without.decisions if isinstance(d, (Preempt, Resize, Drain))}
    ours = [name for w in workloads for name in (world.workloads[w.id].gangs if w.id in world.workloads else [])]
    others: list[Message] = []
    for decision in plan.decisions:
        if isinstance(decision, (Preempt, Resize, Drain)) and decision.gang not in ours:
            if (type(decision), decision.gang) in already:
                continue
            if isinstance(decision, Resize):
                size = size_of(world.gangs[decision.gang].spec, decision.placement)
                old = sizes[decision.gang]
                resized = "others.shrinks" if size < old else "others.grows"
                others.append(say(resized, who=Ref(GANG, decision.gang), before=old, size=size))
            else:
                leaves = "others.preempted" if isinstance(decision, Preempt) else "others.drained"
                others.append(say(leaves, who=Ref(GANG, decision.gang)))
    others += [
        say("others.waits", who=Ref(GANG, name)) for name in sorted(expected - set(launches)) if name not in ours
    ]
    found = []
    for name in ours:
        gang = world.gangs[name]
        if gang.is_ended() or name in sizes:
            continue
        placement = launches.get(name) or promised.get(name)
        reason = None if name in launches else plan.reasons.get(name) or gang.reason
        size = size_of(gang.spec, placement) if placement else gang.spec.min_size
        found.append(Forecast(name, name in launches, placement, reason, size, tuple(others)))
    return found


def _at_once(world: State, facts: Sequence[Fact], policies: Policies) -> Plan:
    """The passes that follow each other at once, because each decides no more than a portion, as one."""
    plan = turn(world, facts, policies)
    decided = plan.decisions
    while plan.is_cut:
        plan = turn(world, (), policies)
        decided += plan.decisions
    plan.decisions = decided
    return plan
