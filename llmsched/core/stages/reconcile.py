"""What must end or move, whatever else waits: cancelled work, spent limits, lost members, old revisions, leaving nodes.

Nothing here frees capacity within the pass: an attempt holds what it holds until it says Released.
"""

from __future__ import annotations

from llmsched.core import authorization, rollout
from llmsched.core.amounts import amount_of
from llmsched.core.decisions import Drain, GiveUp, LoadAdapter, Preempt, RunAgain, Stop
from llmsched.core.message import NODE, RESERVATION, Message, Ref, say, workload
from llmsched.core.plan import Plan
from llmsched.core.records import GangState, WorkloadState, excess_ends, total_of
from llmsched.core.resources import MILLI
from llmsched.core.run_times import end_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.views import View
from llmsched.core.windows import Windows, is_holder

EXCESS_GRACE_S = 10.0  # it was warned: others wait for what it took


def run(this: Pass) -> None:
    trial, state, plan = this.trial, this.state, this.plan
    leaving: dict[str, None] = {}
    for name in state.troubled:
        if plan.cut():
            return
        gang = state.gangs.get(name)
        if gang is not None:
            _gang(state, plan, gang, leaving)
        elif name in state.workloads:
            _endpoint(state, plan, state.workloads[name], leaving)
    for name in state.timed:
        if plan.cut():
            return
        if name not in leaving:
            _limits(plan, state.gangs[name], this.view, leaving)
    for name in state.exceeding:
        if name not in leaving:
            _excess(plan, state, state.gangs[name], leaving)
    for name in state.scheduled:
        if plan.cut():
            return
        _schedule(plan, state.workloads[name])
    trial.leaving.update(leaving)
    if state.configuration.reservations:
        _reservations(trial, plan)


def _gang(state: State, plan: Plan, gang: GangState, leaving: dict[str, None]) -> None:
    record = state.workloads[gang.workload_id]
    if gang.status is Status.QUEUED:
        if gang.blocked_by == "dependency":
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
    leaving[gang.id] = None
    grace = gang.spec.grace_s
    if record.cancelled and record.workload.kind == "serve":
        plan.decisions.append(Drain(gang.id, gang.attempt, grace, record.message))
    elif record.cancelled:
        plan.decisions.append(Stop(gang.id, gang.attempt, grace, "cancelled", record.message))
    elif gang.lost_members:
        patience = state.configuration.scheduling.stale_gang_grace_s
        if state.now < gang.lost_at + patience:  # it may still be made whole
            plan.wake(gang.lost_at + patience)
            del leaving[gang.id]
        else:
            reason = "stale_gang" if patience else "node_lost"
            plan.decisions.append(Preempt(gang.id, gang.attempt, grace, reason, "", gang.message))
    elif gang.revision != record.revision and record.workload.kind != "serve":
        plan.decisions.append(Preempt(gang.id, gang.attempt, grace, "superseded", "", say("preempt.superseded")))
    elif drained := next((p.node for p in gang.held if p.node in state.nodes and state.nodes[p.node].draining), None):
        node = state.nodes[drained]
        if node.deadline is not None:
            grace = max(0.0, min(grace, node.deadline - state.now))
        why = say("preempt.node_leaves", node=Ref(NODE, node.node.name or drained))
        plan.decisions.append(Preempt(gang.id, gang.attempt, grace, "spot_notice", "", why))
    else:
        del leaving[gang.id]


def _endpoint(state: State, plan: Plan, record: WorkloadState, leaving: dict[str, None]) -> None:
    """Look through its replicas, unless nothing was to be done for it and nothing of it has changed since."""
    name, before = record.workload.id, len(plan.decisions)
    if state.touched.is_settled(name) and not any(state.gangs[one].workload_id == name for one in leaving):
        return
    _serve(state, plan, record, leaving)
    if len(plan.decisions) == before and not plan.is_cut:
        state.touched.settle(name)


def _serve(state: State, plan: Plan, record: WorkloadState, leaving: dict[str, None]) -> None:
    """Drain replicas that are not wanted any more, roll out a new revision one by one, load published adapters."""
    if record.outcome or record.cancelled:
        return
    live = [gang for name in record.gangs if (gang := state.gangs[name]).is_active() and name not in leaving]
    going, why = rollout.leaving(record, live, (state.gangs[name] for name in record.gangs))
    for gang in going:
        if plan.cut():
            return
        leaving[gang.id] = None
        plan.decisions.append(Drain(gang.id, gang.attempt, gang.spec.grace_s, why))
    for published in authorization.published_to(state, record.workload).values():
        if published.kind != "adapter":
            continue
        for gang in live:
            if plan.cut():
                return
            stays = gang.status is Status.RUNNING and gang.id not in leaving
            if stays and gang.adapters.get(published.name) != published.uri:
                plan.decisions.append(LoadAdapter(gang.id, gang.attempt, published.name, published.uri))


def _limits(plan: Plan, gang: GangState, view: View, leaving: dict[str, None]) -> None:
    """Stop what has run too long, past its deadline or over its budget."""
    spec = gang.spec
    if not gang.is_active():
        return
    ends: list[tuple[float, str, Message]] = []
    if spec.max_runtime_s is not None and gang.started_at is not None:
        ends.append((gang.started_at - gang.served_s + spec.max_runtime_s, "max_runtime", say("stop.max_runtime")))
    if spec.deadline is not None:
        ends.append((spec.deadline, "deadline", say("stop.deadline")))
    if spec.budget_gpu_s is not None and gang.started_at is not None:
        rate = max(gang.gpus_milli(), 1) / MILLI
        left = (spec.budget_gpu_s - view.attained_gpu_s(gang)) / rate
        ends.append((plan.at + left, "budget", say("stop.budget", hours=spec.budget_gpu_s / 3600)))
    for at, reason, why in sorted(ends):
        if at <= plan.at:
            leaving[gang.id] = None
            plan.decisions.append(Stop(gang.id, gang.attempt, spec.grace_s, reason, why))
            return
        plan.wake(at)


def _excess(plan: Plan, state: State, gang: GangState, leaving: dict[str, None]) -> None:
    """End what has taken more than its gang was given, once it has done so for long enough in all; the operator may say
    never."""
    configuration = state.configuration
    if not gang.is_active():
        return
    ends = excess_ends(gang, configuration)
    if ends > plan.at:
        plan.wake(ends)
        return
    leaving[gang.id] = None
    why = say("stop.excess", excess=total_of(gang.excess), seconds=configuration.excess_after_s)
    grace = min(gang.spec.grace_s, EXCESS_GRACE_S)
    plan.decisions.append(Stop(gang.id, gang.attempt, grace, "excess", why))


def _reservations(trial: Trial, plan: Plan) -> None:
    """Whoever is on reserved GPUs and will not end in time leaves, its grace before the window opens. Of a node that
    is reserved in part nobody leaves who fits beside the reservation; the newest go first."""
    state = trial.state
    for row in Windows(trial).rows:
        guests = []
        for name in state.holding:
            gang = state.gangs[name]
            if not (is_holder(row.reservation, gang.spec) or end_of(gang, state.now) <= row.opens):
                guests.append(gang)
        goes = {g.id: None for g in guests if any(row.nodes >> state.nodes[p.node].slot & 1 for p in g.held)}
        for node, count in row.parts:
            goes.update(_beyond(state, node, count, [gang for gang in guests if gang.id not in goes]))
        for name in goes:
            gang = state.gangs[name]
            if not gang.is_active() or name in trial.leaving or not gang.spec.preemptible:
                continue
            if state.now >= row.opens - gang.spec.grace_s:
                trial.leaving[name] = None
                why = say("preempt.reservation", reserved=Ref(RESERVATION, row.reservation.name))
                plan.decisions.append(Preempt(name, gang.attempt, gang.spec.grace_s, "reservation", "", why))
            else:
                plan.wake(row.opens - gang.spec.grace_s)


def _beyond(state: State, node: str, reserved: int, guests: list[GangState]) -> dict[str, None]:
    """The guests of a node that must leave it for so many GPUs to be free for the holder: the newest, no more than
    needed."""
    held = {gang.id: sum(amount_of(gang.spec, p).gpus_milli for p in gang.held if p.node == node) for gang in guests}
    whole = state.nodes[node]
    beyond = sum(held.values()) - (whole.total_gpus - whole.foreign_gpus - reserved) * MILLI
    going = [g for g in guests if held[g.id] and g.spec.preemptible]
    going.sort(
        key=lambda g: (not g.is_active(), state.now if g.started_at is None else g.started_at, g.submitted_at, g.id)
    )
    chosen = []
    while beyond > 0 and going:
        chosen.append(going.pop())
        beyond -= held[chosen[-1].id]
    for gang in list(chosen):
        if beyond + held[gang.id] <= 0:
            beyond += held[gang.id]
            chosen.remove(gang)
    return {gang.id: None for gang in chosen}


def _schedule(plan: Plan, record: WorkloadState) -> None:
    """Begin the next run when its schedule is due; leave it out while the last one goes on, unless they may overlap."""
    due = record.next_run_at
    if due is None:
        return
    if due > plan.at:
        plan.wake(due)
        return
    spec = record.workload
    if not record.is_due:
        plan.decisions.append(RunAgain(spec.id, spec.run))
    elif spec.overlap == "skip" and not record.outcome:
        plan.decisions.append(RunAgain(spec.id, spec.run, say("schedule.skipped", run=spec.run)))
    else:
        plan.decisions.append(RunAgain(spec.id, spec.run + 1))
