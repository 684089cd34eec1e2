"""Load becomes wanted replicas: asks the autoscaling policy for every endpoint that has a range."""

from __future__ import annotations

from llmsched.core import scaling
from llmsched.core.decisions import Scale
from llmsched.core.message import Message, say
from llmsched.core.plan import PORTION
from llmsched.core.records import WorkloadState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import weigh

WEIGHED_EVERY_S = 60.0  # where the policy does not say how often to ask it


def run(this: Pass) -> None:
    state, plan, policy = this.state, this.plan, this.policies.autoscaling
    since, made = len(plan.decisions), 0  # replicas, which are what a decision costs
    for name in state.serving:
        record = state.workloads[name]
        spec = record.workload
        if spec.autoscaling is None or record.cancelled:
            continue
        if record.load is None and not spec.autoscaling.bounds and spec.min_replicas <= record.wanted_replicas:
            continue
        if record.scaled_by_user and record.load is None:
            continue
        if made >= PORTION:
            plan.is_cut = True
        if plan.cut(since):
            return
        replicas, memory = policy.wanted(record, record.memory, this.view)
        replicas = max(replicas, 0)
        asked, (replicas, held_back) = replicas, weigh.run(this, record, replicas, memory)
        if asked > replicas:
            memory = record.memory if replicas == record.wanted_replicas else ""
            plan.by_clock = True
            plan.wake(plan.at + (this.policies.elasticity.period_s or WEIGHED_EVERY_S))
        elif (again_at := policy.ask_again(record, memory, this.view)) is not None:
            plan.wake(again_at)
        changes = replicas != record.wanted_replicas
        told = (held_back is None) != (record.held_back is None)  # not each time that the words of it change
        if changes or told or memory != record.memory:
            made += max(0, replicas - record.wanted_replicas)
            why = held_back or (_why(record, replicas, plan.at) if changes or told else say("scale.side"))
            plan.decisions.append(Scale(name, replicas, memory, why, asked if held_back is not None else 0))


def _why(record: WorkloadState, replicas: int, now: float) -> Message:
    """What asks for so many: bounds by cron, where it wanted less or more until now; what is expected, where that is
    more than what is there; a start that takes too long; and what the target allows."""
    spec, (least, most) = record.workload, scaling.bounds(record.workload, now)
    edge = least if record.wanted_replicas < least else most if record.wanted_replicas > most else None
    if spec.autoscaling is not None and spec.autoscaling.bounds and replicas == edge:
        return say("scale.bounds", least=least, most=most)
    ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
    ahead = scaling.expected(record, now)
    if replicas > record.wanted_replicas and ahead is not None and ahead.counts and ahead.load > ongoing + queued:
        return say("scale.ahead", replicas=replicas, load=ahead.load, within=scaling.comes_in_s(record))
    late_at = scaling.late_at(record)
    if replicas > record.wanted_replicas and late_at is not None and late_at <= now:
        took = now - min(scaling.starting(record))
        return say("scale.late", replicas=replicas, took=took)
    reach = scaling.reach_of(record)
    if reach is not None and reach.load:
        return say("scale.slo", replicas=replicas, target=scaling.target_of(reach), load=reach.load)
    return say("scale.load", replicas=replicas)
