"""What has run too long, past its deadline, over its budget, or takes more than it was given, is stopped.

Nothing here frees capacity within the pass: an attempt holds what it holds until it says Released.
"""

from __future__ import annotations

from llmsched.core.decisions import Stop
from llmsched.core.message import Message, say
from llmsched.core.plan import Plan
from llmsched.core.records import GangState, excess_ends, total_of
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.state import State
from llmsched.core.views import View

EXCESS_GRACE_S = 10.0  # it was warned: others wait for what it took


def run(this: Pass) -> None:
    state, plan, leaving = this.state, this.plan, this.trial.leaving
    for name in state.timed:
        if plan.cut():
            return
        if name not in leaving:
            _time_and_budget(plan, state, state.gangs[name], this.view, leaving)
    for name in state.children:
        _budget_without_parent(plan, state, name, this.view, leaving)
    for name in state.exceeding:
        if name not in leaving:
            _excess(plan, state, state.gangs[name], leaving)


def _time_and_budget(plan: Plan, state: State, gang: GangState, view: View, leaving: dict[str, None]) -> None:
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
        spent, held = _family(state, gang, view)
        left = (spec.budget_gpu_s - spent) / (max(held, 1) / MILLI)
        ends.append((plan.at + left, "budget", say("stop.budget", hours=spec.budget_gpu_s / 3600)))
    for at, reason, why in sorted(ends):
        if plan.has_come(at):
            leaving[gang.id] = None
            plan.decisions.append(Stop(gang.id, gang.attempt, spec.grace_s, reason, why))
            return


def _budget_without_parent(plan: Plan, state: State, parent: str, view: View, leaving: dict[str, None]) -> None:
    """While a parent waits to go on, as after an interruption, what it asked for uses the budget alone."""
    record = state.workloads.get(parent)
    if record is None or record.workload.budget_gpu_s is None:
        return
    for gang in state.gangs_of(record):
        if gang.is_active() and gang.started_at is not None:
            return
        spent, held = _family(state, gang, view)
        left = record.workload.budget_gpu_s - spent
        if held and left > 0:
            plan.wake(plan.at + left / (held / MILLI))
        if left > 0:
            return
        why = say("stop.budget", hours=record.workload.budget_gpu_s / 3600)
        children = (state.workloads[name] for name in state.children[parent])
        for one in (gang for child in children for gang in state.gangs_of(child)):
            if one.is_active() and one.id not in leaving:
                leaving[one.id] = None
                plan.decisions.append(Stop(one.id, one.attempt, one.spec.grace_s, "budget", why))


def _family(state: State, gang: GangState, view: View) -> tuple[float, int]:
    """The GPU-seconds of a gang and of all that its workload asked for, and the thousandths of GPUs they hold now."""
    record = state.workloads[gang.workload_id]
    open_ones = (state.workloads[name] for name in state.children.get(gang.workload_id, ()))
    gangs = [gang, *(one for child in open_ones for one in state.gangs_of(child))]
    spent = record.children_gpu_s + sum(view.attained_gpu_s(one) for one in gangs)
    return spent, sum(one.gpus_milli() for one in gangs)


def _excess(plan: Plan, state: State, gang: GangState, leaving: dict[str, None]) -> None:
    """End what has taken more than its gang was given, once it has done so for long enough in all; the operator may say
    never."""
    configuration = state.configuration
    if not gang.is_active():
        return
    if not plan.has_come(excess_ends(gang, configuration)):
        return
    leaving[gang.id] = None
    why = say("stop.excess", excess=total_of(gang.excess), seconds=configuration.excess_after_s)
    grace = min(gang.spec.grace_s, EXCESS_GRACE_S)
    plan.decisions.append(Stop(gang.id, gang.attempt, grace, "excess", why))
