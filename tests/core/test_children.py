"""What a workload asked for ends with it, and counts in its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmsched.core.commands import CHILDREN_AT_ONCE, Cancel, Refusal, Submit, check
from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Stop
from llmsched.core.facts import Bound, Fact, Finished, NodeJoined, Released, Submitted, Tick
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())


def work(name: str, gpus: int = 1, **more: object) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000 * gpus, 1)),))
    return Workload(name, name, "task", (group,), **more)  # type: ignore[arg-type]


def world(*children: str, **parent: object) -> State:
    """Two GPUs, a parent without one that runs, and what it asked for."""
    state = State()
    state.apply(NodeJoined(0.0, Node("n", Resources(2000, 8000))))
    turn(state, [Submitted(1.0, work("p", 0, **parent))], POLICIES)
    turn(state, [Bound(1.0, "p/0", 1), *(Submitted(1.0, work(name, parent="p")) for name in children)], POLICIES)
    for name in children[:2]:
        turn(state, [Bound(1.0, f"{name}/0", 1)], POLICIES)
    return state


def phases(state: State) -> dict[str, str]:
    return {name: record.phase for name, record in state.workloads.items()}


def succeeds(state: State, at: float) -> Fact:
    return Finished(at, "p/0", 1, "succeeded")


def fails(state: State, at: float) -> Fact:
    return Finished(at, "p/0", 1, "failed", event="input")


def is_cancelled(state: State, at: float) -> Fact:
    fact = check(state, Cancel(at, "p"))
    assert not isinstance(fact, Refusal)
    return fact


@pytest.mark.parametrize("ends", [succeeds, fails, is_cancelled])
def test_what_waits_and_what_runs_ends_with_its_parent(ends: Callable[[State, float], Fact]) -> None:
    state = world("p.a", "p.b", "p.c")
    assert phases(state) == {"p": "running", "p.a": "running", "p.b": "running", "p.c": "waiting"}
    plan = turn(state, [ends(state, 5.0)], POLICIES)
    stopped = {one.gang for one in plan.decisions if isinstance(one, Stop)}
    assert {"p.a/0", "p.b/0"} <= stopped and phases(state)["p.c"] == "cancelled"
    assert text(state.workloads["p.c"].message) == "ended with p, which had asked for it"
    turn(state, [Released(6.0, f"{name}/0", 1) for name in ("p.a", "p.b")], POLICIES)
    assert {phases(state)[name] for name in ("p.a", "p.b", "p.c")} == {"cancelled"}
    assert not state.children and violations(state) == []


def test_an_attempt_of_the_parent_that_fails_and_is_tried_again_ends_nothing() -> None:
    state = world("p.a")
    turn(state, [Finished(5.0, "p/0", 1, "failed", event="interruption")], POLICIES)
    assert phases(state) == {"p": "waiting", "p.a": "running"}


def stops(plan: Plan) -> dict[str, str]:
    return {one.gang: one.reason for one in plan.decisions if isinstance(one, Stop)}


def test_a_budget_is_of_a_parent_and_all_that_it_asked_for() -> None:
    """Two GPUs at once, 10 s of one that has ended: 70 GPU-seconds are used up 30 s later."""
    state = world("p.a", "p.b", budget_gpu_s=90.0)
    turn(state, [Finished(11.0, "p.a/0", 1, "succeeded"), Submitted(11.0, work("p.c", parent="p"))], POLICIES)
    assert state.workloads["p"].children_gpu_s == pytest.approx(10.0)
    plan = turn(state, [Bound(11.0, "p.c/0", 1)], POLICIES)
    assert plan.wake_at == pytest.approx(11.0 + 35.0)  # 20 were used, 70 are left, by two at once
    assert not stops(turn(state, [Tick(45.9)], POLICIES))
    assert stops(turn(state, [Tick(46.01)], POLICIES))["p/0"] == "budget"
    assert stops(turn(state, [Tick(46.02)], POLICIES)) | {"p.b/0": "", "p.c/0": ""}
    assert phases(state) == {"p": "stopping", "p.a": "succeeded", "p.b": "stopping", "p.c": "stopping"}


def test_it_asks_for_so_many_at_once_none_asks_itself_and_who_has_ended_asks_for_nothing() -> None:
    def refused(name: str, parent: str) -> str:
        answer = check(state, Submit(2.0, work(name, parent=parent)))
        return answer.code if isinstance(answer, Refusal) else ""

    state = world(*(f"p.c{number}" for number in range(CHILDREN_AT_ONCE - 1)))
    assert refused("p.last", "p") == ""
    state.apply(Submitted(2.0, work("p.last", parent="p")))
    assert refused("p.more", "p") == "too_many"
    assert refused("p.last.deep", "p.last") == "too_deep"
    state.apply(succeeds(state, 3.0))
    assert refused("p.late", "p") == "ended"
    assert refused("x.y", "x") == "ended", "nor one that never was"


def test_a_parent_stays_in_the_state_while_what_it_asked_for_does_and_a_snapshot_knows_both() -> None:
    state = world("p.a")
    again = thaw(freeze(state))
    assert again.children == state.children and again.digest() == state.digest()
    again.apply(succeeds(again, 3.0))
    assert again.workloads["p.a"].cancelled and again.children
    assert replace(again.workloads["p"].workload, parent="q") != again.workloads["p"].workload
