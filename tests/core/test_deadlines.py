"""Work that waits past its deadline: it is given up, and takes nobody's place for a moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmsched.core.commands import Submit, check
from llmsched.core.configuration import Configuration, PreemptionRules, Scheduling
from llmsched.core.decisions import GiveUp, Launch, Preempt
from llmsched.core.facts import Bound, Configured, NodeJoined, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.refusal import Refusal
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

CONFIGURATION = Configuration(scheduling=Scheduling(preemption=PreemptionRules(within_queue="lower_priority")))
POLICIES = load(CONFIGURATION.policies)


def work(name: str, gpus: int, **more: Any) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000 * gpus, 1)),))
    return Workload(name, name, "task", (group,), **more)


def begun(*waiting: Workload) -> State:
    """A node of two GPUs that `busy` holds, and who waits."""
    state = State()
    told: list[Any] = [Configured(0.0, CONFIGURATION), NodeJoined(0.0, Node("n", Resources(2000, 8000)))]
    turn(state, [*told, Submitted(0.0, work("busy", 2, priority=50))], POLICIES)
    turn(state, [Bound(1.0, "busy/0", 1)], POLICIES)
    turn(state, [Submitted(2.0, each) for each in waiting], POLICIES)
    return state


def kinds(plan: Plan) -> list[type]:
    return [type(one) for one in plan.decisions]


def test_who_waits_past_its_deadline_is_given_up_when_it_passes_and_not_started_to_be_stopped() -> None:
    state = begun(work("late", 1, deadline=100.0), work("patient", 1))
    assert state.gangs["late/0"].status is Status.QUEUED
    plan = turn(state, [Tick(50.0)], POLICIES)
    assert plan.wake_at is not None and plan.wake_at <= 100.0, "nobody else says when"
    plan = turn(state, [Tick(100.0)], POLICIES)
    assert kinds(plan) == [GiveUp]
    assert state.workloads["late"].outcome == "failed" and plan.wake_at == 100.0
    assert state.gangs["patient/0"].status is Status.QUEUED and turn(state, [Tick(100.0)], POLICIES).decisions == []


def test_nobody_is_evicted_for_the_sake_of_one_whose_deadline_has_just_passed() -> None:
    state = begun()
    plan = turn(state, [Submitted(99.0, work("urgent", 2, priority=90, deadline=99.0))], POLICIES)
    assert not {Preempt, Launch} & {*kinds(plan), *kinds(turn(state, [Tick(99.0)], POLICIES))}
    assert state.workloads["urgent"].outcome == "failed" and state.gangs["busy/0"].status is Status.RUNNING


def test_a_later_deadline_counts_from_when_it_is_told_and_a_thawed_state_knows_both() -> None:
    state = begun(work("late", 1, deadline=100.0))
    turn(state, [Submitted(10.0, work("late", 1, deadline=200.0), True)], POLICIES)
    state = thaw(freeze(state))
    assert turn(state, [Tick(150.0)], POLICIES).decisions == []
    assert kinds(turn(state, [Tick(200.0)], POLICIES)) == [GiveUp]


def test_a_deadline_that_has_passed_is_refused_when_it_is_submitted() -> None:
    found = check(State(), Submit(160.0, replace(work("late", 1), deadline=100.0)))
    assert isinstance(found, Refusal) and "its deadline passed 60 s ago" in text(found.message)
