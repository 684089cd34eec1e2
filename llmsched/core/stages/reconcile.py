"""What must end or move, whatever else waits: cancelled work, lost members, old revisions, leaving nodes,
and replicas that are not wanted any more.

Nothing here frees capacity within the pass: an attempt holds what it holds until it says Released.
"""

from __future__ import annotations

from llmsched.core import authorization, draining, rollout
from llmsched.core.capacity import NodeState
from llmsched.core.decisions import Drain, GiveUp, LoadAdapter, Stop
from llmsched.core.message import NODE, Message, Ref, say, workload
from llmsched.core.plan import Plan
from llmsched.core.records import GangState, WorkloadState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict
from llmsched.core.state import State
from llmsched.core.status import Status


def run(this: Pass) -> None:
    state, plan, leaving = this.state, this.plan, this.trial.leaving
    if state.timers:
        plan.wake(state.timers[0][0])
    for name in state.troubled:
        if plan.cut():
            return
        gang = state.gangs.get(name)
        if gang is not None:
            _gang(this, gang)
        elif name in state.workloads:
            _endpoint(state, plan, state.workloads[name], leaving)
    if any(isinstance(one, GiveUp) and one.reason == "deadline" for one in plan.decisions):
        plan.is_cut = True  # they are gone before anybody is looked at who waits


def _gang(this: Pass, gang: GangState) -> None:
    state, plan, leaving = this.state, this.plan, this.trial.leaving
    record = state.workloads[gang.workload_id]
    if gang.status is Status.QUEUED:
        if gang.spec.deadline is not None and plan.has_come(gang.spec.deadline):
            plan.decisions.append(GiveUp(gang.id, "deadline", say("give_up.deadline")))
        elif gang.blocked_by == "dependency":
            over = [
                (name, known.outcome) for name in gang.spec.after if (known := state.workloads.get(name)) is not None
            ]
            broken = [(name, outcome) for name, outcome in over if outcome in ("failed", "cancelled")]
            if broken:
                name, outcome = broken[0]
                why = say("give_up.failed" if outcome == "failed" else "give_up.cancelled", who=workload(name))
                plan.decisions.append(GiveUp(gang.id, "dependency", why))
        return
    if not gang.is_active():
        return
    grace = gang.spec.grace_s
    if record.cancelled and record.workload.kind == "serve":
        leaving[gang.id] = None
        plan.decisions.append(Drain(gang.id, gang.attempt, grace, record.message))
    elif record.cancelled:
        leaving[gang.id] = None
        plan.decisions.append(Stop(gang.id, gang.attempt, grace, "cancelled", record.message))
    elif gang.lost_members:
        patience = state.configuration.scheduling.stale_gang_grace_s
        if plan.has_come(gang.lost_at + patience):  # until then it may be made whole
            evict.evict(this, gang, "stale_gang" if patience else "node_lost", gang.message)
    elif gang.revision != record.revision and record.workload.kind != "serve":
        evict.evict(this, gang, "superseded", say("preempt.superseded"))
    elif gang.spec.kind != "serve" and (node := draining.leaving_node(gang, state.nodes)) is not None:
        grace = draining.grace_of(gang, node, state.now)
        reason = "spot_notice" if node.leaving else "node_drain"
        evict.evict(this, gang, reason, _why_it_leaves(node), grace_s=grace)


def _endpoint(state: State, plan: Plan, record: WorkloadState, leaving: dict[str, None]) -> None:
    """Look through its replicas, unless nothing was to be done for it and nothing of it has changed since."""
    name, before = record.workload.id, len(plan.decisions)
    if state.touched.is_settled(name) and not any(state.gangs[one].workload_id == name for one in leaving):
        return
    moves_at = _serve(state, plan, record, leaving)
    plan.wake(moves_at)
    if len(plan.decisions) == before and not plan.is_cut and moves_at is None:
        state.touched.settle(name)


def _serve(state: State, plan: Plan, record: WorkloadState, leaving: dict[str, None]) -> float | None:
    """Drain replicas that are not wanted any more or have to move, roll out a new revision one by one, load published
    adapters. Says when to look again at those that have to move, where that is known."""
    if record.outcome or record.cancelled:
        return None
    active = [gang for name in record.gangs if (gang := state.gangs[name]).is_active() and name not in leaving]
    moving = draining.moving(active, state)
    live = [gang for gang in active if gang.id not in moving]
    missing = record.wanted_replicas - sum(gang.status is Status.RUNNING for gang in live)
    gone, moves_at = draining.gone_by_now([gang for gang in active if gang.id in moving], moving, missing, state.now)
    surplus, why = rollout.leaving(record, live, (state.gangs[name] for name in record.gangs))
    for gang in (*gone, *surplus):
        if plan.cut():
            return moves_at
        leaving[gang.id] = None
        node = moving.get(gang.id)
        grace = gang.spec.grace_s if node is None else draining.grace_of(gang, node, state.now)
        plan.decisions.append(Drain(gang.id, gang.attempt, grace, why if node is None else _why_it_leaves(node)))
    for published in authorization.published_to(state, record.workload).values():
        if published.kind != "adapter":
            continue
        for gang in active:
            if plan.cut():
                return moves_at
            stays = gang.status is Status.RUNNING and gang.id not in leaving
            if stays and gang.adapters.get(published.name) != published.uri:
                plan.decisions.append(LoadAdapter(gang.id, gang.attempt, published.name, published.uri))
    return moves_at


def _why_it_leaves(node: NodeState) -> Message:
    code = "preempt.node_leaves" if node.leaving or node.drained is None else "preempt.node_drain"
    return say(code, node=Ref(NODE, node.node.shown))
