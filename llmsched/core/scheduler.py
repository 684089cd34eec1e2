"""One scheduling pass. Read `decide` first: it is the table of contents of llmsched.

`turn` is what the live controller and the simulator call. `decide` proposes and leaves the state as it found it.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.core.decisions import Launch, Withdraw
from llmsched.core.explain import Reason
from llmsched.core.facts import Fact
from llmsched.core.plan import Plan
from llmsched.core.policy import Policies, View
from llmsched.core.records import GangState
from llmsched.core.stages import admit, autoscale, end, place, size
from llmsched.core.state import State
from llmsched.core.trial import Trial

__all__ = ["Plan", "decide", "turn"]


def turn(state: State, facts: Sequence[Fact], policies: Policies) -> Plan:
    """Apply what happened, decide what follows, apply the decisions. Live and simulated alike."""
    for fact in facts:
        state.apply(fact)
    plan = decide(state, policies)
    for decision in plan.decisions:
        state.apply(decision)
    return plan


def decide(state: State, policies: Policies) -> Plan:
    """What to do now. The state is left byte-identical, but for the reasons of those who wait."""
    plan = Plan(state.now)
    with Trial(state) as trial:
        view = View(state)
        end.run(trial, plan, view)  # what must end: cancelled, over its limits, superseded
        autoscale.run(trial, plan, policies.autoscaling, view)  # load becomes wanted replicas
        size.run(trial, plan, policies.elasticity, view)  # what each elastic gang should hold
        line = admit.Line(trial, policies.ordering, view)
        for gang, shape in line:
            if _place(trial, plan, gang, policies, view):
                continue
            line.refuse()
            shape.reason = plan.reasons[gang.id]
        for name in state.parked:
            gang = state.gangs[name]
            if gang.own_reason is not None:
                plan.reasons[name] = gang.own_reason
            if gang.blocked_by == "backoff":
                plan.wake(gang.not_before)
        for shape in state.waiting.shapes.values():
            if shape.reason is not None:
                for _, name in shape.entries:
                    plan.reasons.setdefault(name, shape.reason)
    launched = {decision.gang for decision in plan.decisions if isinstance(decision, Launch)}
    plan.reasons = {name: reason for name, reason in plan.reasons.items() if name not in launched}
    return plan


def _place(trial: Trial, plan: Plan, gang: GangState, policies: Policies, view: View) -> bool:
    refused = None
    if gang.nomination is not None:
        plan.decisions.append(Withdraw(gang.id))
        trial.unpromise(gang)
    for wanted in size.candidates(plan, gang):
        found = place.find(trial, gang, wanted, policies.placement, view)
        if not isinstance(found, place.Refused):
            trial.hold(gang, found)
            plan.decisions.append(Launch(gang.id, gang.attempt + 1, found, f"{wanted} of {gang.spec.max_size}"))
            return True
        refused = found
    assert refused is not None
    plan.reasons[gang.id] = Reason(refused.code, refused.message, refused.counts, refused.next_change)
    return False
