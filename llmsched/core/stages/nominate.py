"""Promise capacity to a waiting gang while those who hold it leave or become smaller.

Called by every stage that makes room (shrink, preempt, consolidate, rank); knows no rule.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from llmsched.core.amounts import bundle_milli
from llmsched.core.decisions import Nominate, Withdraw
from llmsched.core.exact_fit import may_be_free
from llmsched.core.message import Message, say, workload, workloads
from llmsched.core.records import GangState, Nomination
from llmsched.core.scheduling_pass import Pass
from llmsched.core.status import Status
from llmsched.core.workload import Placement


def nominate(this: Pass, gang: GangState, placement: Placement, leaving: Sequence[str]) -> None:
    """Promise `placement`; its victims are those of `leaving` that hold something on its nodes."""
    before = this.trial.nomination(gang)
    if before is None:
        this.trial.promise_first(gang, placement)
    else:
        this.trial.promise(gang, placement)
    decision = _decision(this, gang, placement, leaving)
    if before is None or before.placement != placement:
        this.plan.decisions.append(decision)
        if may_be_free(this.trial, gang.spec, placement):
            this.plan.asks_again = True  # it waits for nobody: only what is promised to others stood before it


def stand(this: Pass, gang: GangState, nomination: Nomination) -> None:
    """What it was promised before stays as it is in the ledgers."""
    _decision(this, gang, nomination.placement, nomination.victims)


def withdraw(this: Pass, gang: GangState, why: Message, at: int | None = None) -> None:
    """What it was promised before this pass, if anything, is so no more; whatever it is promised then is new. `at`: of
    the decisions so far the one before which that is told."""
    if this.trial.nomination(gang) is not None:
        this.trial.withdrawn[gang.id] = None
        decided = this.plan.decisions
        decided.insert(len(decided) if at is None else at, Withdraw(gang.id, why))


def without(this: Pass, name: str, spared: Container[str]) -> None:
    """Those do not leave for it after all."""
    plan = this.plan
    before = plan.nominations[name]
    victims = tuple(victim for victim in before.victims if victim not in spared)
    after = plan.nominations[name] = replace(before, victims=victims, why=_waits_for(this, victims))
    plan.decisions[:] = [after if each is before else each for each in plan.decisions]


def _waits_for(this: Pass, victims: Sequence[str]) -> Message:
    """Who becomes smaller, in this pass or since an earlier one, is not said to leave."""
    gives: list[Message] = []
    leaves: list[str] = []
    for name in victims:
        gang = this.state.gangs[name]
        after = gang.placement if gang.status is Status.RESIZING else None
        after = this.trial.shrinking.get(name, after)
        if after is None:
            leaves.append(gang.workload_id)
            continue
        given = (len(gang.held) - len(after)) * bundle_milli(gang.spec, gang.option)
        who = workload(gang.workload_id)
        gives.append(say("release", who=who, amount=given) if given else say("release.some", who=who))
    if not gives:
        return say("victims_leaving.leave", who=workloads(leaves)) if leaves else say("victims_leaving.unnamed")
    if leaves:
        gives.append(say("release.all", who=workloads(leaves)))
    return say("victims_leaving.shrink", gives=tuple(gives))


def _decision(this: Pass, gang: GangState, placement: Placement, leaving: Sequence[str]) -> Nominate:
    gangs, nodes = this.state.gangs, dict.fromkeys(placed.node for placed in placement)
    victims = [name for name in leaving if any(placed.node in nodes for placed in gangs[name].held)]
    waits = _waits_for(this, victims)
    decision = this.plan.nominations[gang.id] = Nominate(gang.id, placement, tuple(victims), waits, this.owed_s(gang))
    return decision
