"""However much comes at once, one pass decides a portion and the next one goes on from there at the same instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmsched.core.configuration import PolicyNames, PreemptionRules
from llmsched.core.decisions import Decision, Drain, Launch, Nominate, Preempt, Resize, Scale
from llmsched.core.facts import Bound, Cancelled, Configured, Fact, LoadObserved, NodeJoined, Released, Submitted, Tick
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.plan import PORTION
from llmsched.core.policy import Policies
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.whatif import forecast
from llmsched.core.workload import Autoscaling, Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())
MANY = 5 * PORTION // 2


def work(name: str, kind: str = "task", gpus: int = 0, **more: object) -> Workload:
    return Workload(name, name, kind, (Group("workers", 1, (Option(None, Resources(gpus)),)),), **more)  # type: ignore[arg-type]


def passes(state: State, facts: Sequence[Fact], policies: Policies = POLICIES) -> list[list[Decision]]:
    """The passes that follow each other at once, as the controller and the simulator have them."""
    found = []
    wanted: Sequence[Fact] = facts
    while True:
        plan = turn(state, wanted, policies)
        assert violations(state) == []
        found.append(plan.decisions)
        if plan.wake_at != state.now:
            return found
        wanted = ()


def world(nodes: int = 1, gpus: int = 0) -> State:
    state = State()
    for number in range(nodes):
        state.apply(NodeJoined(0.0, Node(f"n{number}", Resources(gpus * 1000, 8000, 1 << 34))))
    return state


def test_thousands_that_start_at_once_start_in_their_order_a_portion_a_pass() -> None:
    names = [f"t{number:03}" for number in range(MANY)]
    found = passes(world(), [Submitted(float(number), work(name)) for number, name in enumerate(names)])
    assert [len(each) for each in found] == [PORTION, PORTION, PORTION // 2]
    assert [decision.gang for each in found for decision in each if isinstance(decision, Launch)] == [
        f"{name}/0" for name in names
    ]


def test_a_pass_that_was_cut_lets_nobody_later_or_lower_go_ahead() -> None:
    state = world(gpus=MANY)
    facts = [Submitted(1.0, work(f"low{number:03}", gpus=1000)) for number in range(MANY)]
    facts += [Submitted(2.0, work(f"high{number:03}", gpus=1000, priority=90)) for number in range(MANY)]
    launched = [decision.gang for each in passes(state, facts) for decision in each if isinstance(decision, Launch)]
    assert len(launched) == MANY and all(name.startswith("high") for name in launched)
    assert all(gang.reason for gang in state.gangs.values() if gang.id.startswith("low")), "they know why they wait"


def test_who_must_leave_at_once_leaves_in_portions_and_is_taken_by_nobody_meanwhile() -> None:
    state = world(gpus=MANY)
    endpoint = work("talks", "serve", gpus=1000, min_replicas=MANY, max_replicas=MANY)
    passes(state, [Submitted(1.0, endpoint)])
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    found = passes(state, [Cancelled(3.0, "talks", "ann"), Submitted(3.0, work("next", gpus=1000, priority=90))])
    drained = [[decision for decision in each if isinstance(decision, Drain)] for each in found]
    assert [len(each) for each in drained[:3]] == [PORTION, PORTION, PORTION // 2]
    (promised,) = found[2][PORTION // 2 :]  # only when all of them are known to leave
    assert isinstance(promised, Nominate) and promised.gang == "next/0"
    passes(state, [Released(4.0, gang, 1) for gang in state.workloads["talks"].gangs])
    assert state.workloads["talks"].outcome == "cancelled" and state.workloads["next"].phase == "starting"


def test_a_forecast_looks_through_all_passes_that_follow_at_once() -> None:
    endpoint = work("talks", "serve", min_replicas=MANY, max_replicas=MANY)
    assert sum(each.starts_now for each in forecast(world(), [endpoint], POLICIES)) == MANY


def by_rank(state: State, quantum_s: float = 60.0) -> State:
    scheduling = replace(state.configuration.scheduling, preemption=PreemptionRules("by_rank"), quantum_s=quantum_s)
    state.apply(Configured(0.0, replace(state.configuration, scheduling=scheduling)))
    return state


def test_by_rank_thousands_start_and_change_places_a_portion_a_pass_and_the_best_first() -> None:
    state = by_rank(world(gpus=MANY))
    low = [Submitted(1.0, work(f"low{number:03}", gpus=1000)) for number in range(MANY)]
    started = passes(state, low)
    assert [len(each) for each in started] == [PORTION, PORTION, PORTION // 2]
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    passes(state, [Submitted(3.0, work(f"high{number:03}", gpus=1000, priority=90)) for number in range(MANY)])
    found = passes(state, [Tick(61.0)])
    left = [decision.gang for each in found for decision in each if isinstance(decision, Preempt)]
    promised = [decision.gang for each in found for decision in each if isinstance(decision, Nominate)]
    assert sorted(left) == sorted(gang for gang in state.gangs if gang.startswith("low"))
    assert promised == [f"high{number:03}/0" for number in range(MANY)], "the better ones first"
    assert all(len(each) <= 2 * PORTION for each in found), "who is promised a place, and who leaves it"
    started = passes(state, [Released(62.0, gang, 1) for gang in left])
    assert [len(each) for each in started] == [PORTION, PORTION, PORTION // 2], "promises are kept in portions too"
    assert all(state.gangs[gang].attempt == 1 and not state.gangs[gang].nomination for gang in promised)


def test_what_comes_in_between_two_portions_of_a_ranking_does_not_end_it() -> None:
    state = by_rank(world(gpus=MANY))
    passes(state, [Submitted(1.0, work(f"low{number:03}", gpus=1000)) for number in range(MANY)])
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    passes(state, [Submitted(3.0, work(f"high{number:03}", gpus=1000, priority=90)) for number in range(MANY)])
    first = turn(state, [Tick(61.0)], POLICIES)
    gone = next(decision for decision in first.decisions if isinstance(decision, Preempt))
    passes(state, [Released(61.5, gone.gang, 1)])
    assert not [gang for gang in state.gangs.values() if gang.id.startswith("low") and gang.is_active()]


def test_many_endpoints_grow_by_a_portion_of_replicas_a_pass() -> None:
    state = world()
    scaling = Autoscaling(target_ongoing_requests=1.0, upscale_delay_s=0.0)
    names = [f"talks{number}" for number in range(6)]
    many = {"min_replicas": 1, "max_replicas": PORTION // 2, "autoscaling": scaling}
    passes(state, [Submitted(1.0, work(name, "serve", **many)) for name in names])
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    found = passes(state, [LoadObserved(3.0, name, 1000.0) for name in names])
    scaled = [sum(isinstance(decision, Scale) for decision in each) for each in found]
    assert max(scaled) == 3 and sum(scaled) == len(names), "two make 98 replicas, and the third completes the portion"
    assert all(state.workloads[name].wanted_replicas == PORTION // 2 for name in names)


def test_many_elastic_gangs_grow_a_portion_a_pass() -> None:
    state, even = world(gpus=MANY), load(PolicyNames(elasticity="even"))
    elastic = [work(f"e{number:03}", "train", gpus=1000, max_size=2) for number in range(MANY)]
    passes(state, [Submitted(1.0, each) for each in elastic], even)
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    found = passes(state, [NodeJoined(3.0, Node("more", Resources(MANY * 1000, 8000, 1 << 34)))], even)
    resized = [sum(isinstance(decision, Resize) for decision in each) for each in found]
    assert sum(resized) == MANY and max(resized) == PORTION
