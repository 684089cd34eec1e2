"""Promise capacity to a waiting gang while those who hold it leave or become smaller.

Called by every stage that makes room (shrink, preempt, consolidate, rank); knows no rule.
"""

from __future__ import annotations

from llmsched.core.decisions import Nominate
from llmsched.core.message import Message, say, workloads
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.workload import Placement


def nominate(
    this: Pass,
    gang: GangState,
    placement: Placement,
    leaving: list[str],
    why: Message | None = None,
) -> None:
    """Promise `placement`; its victims are those of `leaving` that hold something on its nodes."""
    trial, plan = this.trial, this.plan
    nodes = dict.fromkeys(placed.node for placed in placement)
    victims = [
        name for name in leaving if any(placed.node in nodes for placed in trial.state.gangs[name].held)
    ]  # fmt: skip
    trial.promise(gang, placement)
    who = workloads(trial.state.gangs[name].workload_id for name in victims)
    waits = say("victims_leaving.leave", who=who) if who else say("victims_leaving.unnamed")
    decision = Nominate(gang.id, placement, tuple(victims), why or waits)
    plan.nominations[gang.id] = decision
    if gang.nomination is None or gang.nomination.placement != placement:
        plan.decisions.append(decision)
