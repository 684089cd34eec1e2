"""Replicas of one endpoint lie apart where there is room, under every placement policy, and never wait for it."""

from __future__ import annotations

from collections import Counter

import pytest
from test_walk import node, started, work

from llmsched.core.configuration import Configuration, PolicyNames, Queue
from llmsched.core.decisions import Drain, Launch
from llmsched.core.facts import Bound, Configured, Lost, NodeJoined, NodeLost, Released, Scaled, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State, Status
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.policies.registry import load, names


def chat(replicas: int = 2, parcel: str = "", **more: object) -> Workload:
    return work("chat", kind="serve", min_replicas=replicas, max_replicas=8, parcel=parcel, **more)


def lies(state: State, but: str = "") -> dict[str, int]:
    """How many replicas are on each node; of those of another parcel than `but`."""
    gangs = [state.gangs[name] for name in state.workloads["chat"].gangs]
    there = [gang for gang in gangs if gang.is_active() and gang.spec.parcel != (but or None)]
    return dict(Counter(gang.placement[0].node for gang in there if gang.placement))


def carried_out(state: State, at: float) -> Plan:
    """A pass, and all that it decided is done."""
    plan = turn(state, [Tick(at)], load(PolicyNames()))
    for decision in plan.decisions:
        if isinstance(decision, Launch):
            state.apply(Bound(at, decision.gang, decision.attempt))
        elif isinstance(decision, Drain):
            state.apply(Released(at, decision.gang, decision.attempt))
    return plan


@pytest.mark.parametrize("policy", names("placement"))
def test_two_replicas_lie_on_two_nodes_whatever_the_policy(policy: str) -> None:
    state, policies = State(), load(PolicyNames(placement=policy))
    state.apply(Configured(0.0, Configuration(1, (Queue("default"),), policies=PolicyNames(placement=policy))))
    turn(state, [node("n0", 8), node("n1", 4), Submitted(1.0, chat())], policies)
    assert lies(state) == {"n0": 1, "n1": 1}
    turn(state, [Scaled(2.0, "chat", 6)], policies)
    assert lies(state) == {"n0": 3, "n1": 3}
    turn(state, [Scaled(3.0, "chat", 8)], policies)
    assert lies(state) == {"n0": 4, "n1": 4}


def test_an_endpoint_that_packs_is_left_to_the_policy() -> None:
    state = State()
    started(state, node("n0", 4), node("n1", 4), Submitted(1.0, chat(packs=True)))
    assert list(lies(state).values()) == [2]


def test_where_only_one_node_has_room_both_start_there_and_say_so() -> None:
    state = State()
    plan = turn(state, [node("n0", 4), Submitted(1.0, chat())], load(PolicyNames()))
    assert lies(state) == {"n0": 2}
    whys = [text(decision.why) for decision in plan.decisions if isinstance(decision, Launch)]
    assert whys == ["room for all of it", "room for it, on no node without another replica"]
    plan = turn(state, [node("n1", 4), Scaled(2.0, "chat", 3)], load(PolicyNames()))
    assert [text(each.why) for each in plan.decisions] == ["room for it on a node without another replica"]  # type: ignore[attr-defined]


def test_of_two_kinds_of_accelerators_the_one_on_a_free_node_will_do() -> None:
    """Any kind is asked for: kinds are tried one after the other, and the first one would have taken both."""
    state = State()
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    any_kind = Workload("chat", "chat", "serve", (group,), min_replicas=2, max_replicas=2)
    started(state, node("n0", 4, "A100"), node("n1", 4, "L4"), Submitted(1.0, any_kind))
    assert lies(state) == {"n0": 1, "n1": 1}


def test_a_kind_that_is_preferred_comes_before_a_node_of_its_own() -> None:
    state = State()
    group = Group("workers", 1, (Option("A100", Resources(1000)), Option("L4", Resources(1000))))
    spec = Workload("chat", "chat", "serve", (group,), min_replicas=2, max_replicas=2)
    started(state, node("n0", 4, "A100"), node("n1", 4, "L4"), Submitted(1.0, spec))
    assert lies(state) == {"n0": 2}


def test_replicas_of_a_lost_node_go_to_different_ones_again() -> None:
    state = State()
    started(state, node("n0"), node("n1"), node("n2"), Submitted(1.0, chat(3)))
    assert lies(state) == {"n0": 1, "n1": 1, "n2": 1}
    state.apply(node("n3"))
    started(state, NodeLost(2.0, "n2"), *(Lost(2.0, f"chat/{n}", 1, "gone") for n in range(3)), Tick(90.0))
    assert lies(state) == {"n0": 1, "n1": 1, "n3": 1}


def test_places_that_this_pass_promises_to_one_replica_are_kept_clear_of_by_the_next() -> None:
    state = State()
    started(state, Submitted(1.0, chat()))
    state.apply(node("n0", 4))
    state.apply(node("n1", 4))
    first, second = (state.gangs[name] for name in state.workloads["chat"].gangs)
    with Trial(state) as trial:
        for promised, other in (("n0", "n1"), ("n1", "n0")):
            trial.promise_first(first, (Placed("workers", promised, 0),))
            found = find(Pass(trial, load(PolicyNames())), second, 1)
            assert not isinstance(found, Refused) and [each.node for each in found] == [other]
            trial.break_promise(first)


@pytest.mark.parametrize("gpus", [2, 3])
def test_a_rollout_ends_spread_and_its_surge_keeps_clear_of_the_old_ones_where_it_can(gpus: int) -> None:
    state = State()
    started(state, node("n0", gpus), node("n1", gpus), Submitted(1.0, chat(parcel="old")))
    started(state, *(Bound(1.0, f"chat/{n}", 1) for n in range(2)))
    state.apply(Submitted(2.0, chat(parcel="new"), replaces=True))
    for at in range(3, 20):
        carried_out(state, float(at))
        assert sum(state.gangs[name].status is Status.RUNNING for name in state.workloads["chat"].gangs) >= 2
    assert lies(state, but="old") == lies(state) == {"n0": 1, "n1": 1}


def test_a_surge_takes_a_node_of_its_own() -> None:
    state = State()
    started(state, node("n0", 4), node("n1", 4), node("n2", 4), Submitted(1.0, chat(parcel="old")))
    started(state, *(Bound(1.0, f"chat/{n}", 1) for n in range(2)))
    started(state, Submitted(2.0, chat(parcel="new"), replaces=True))
    assert lies(state) == {"n0": 1, "n1": 1, "n2": 1}


def test_fewer_replicas_are_left_where_they_lie_apart() -> None:
    """The newest go first only among those that lie together."""
    state = State()
    started(state, node("n0", 3), Submitted(1.0, chat(3)))
    started(state, *(Bound(1.0, f"chat/{n}", 1) for n in range(3)), node("n1", 3), Scaled(2.0, "chat", 4))
    started(state, Bound(2.0, "chat/3", 1))
    assert lies(state) == {"n0": 3, "n1": 1}
    smaller = work("chat", kind="serve", min_replicas=1, max_replicas=8)
    state.apply(Submitted(3.0, smaller, replaces=True, in_place=True))
    for wanted in (3, 2):
        state.apply(Scaled(4.0, "chat", wanted))
        carried_out(state, 4.0)
    assert lies(state) == {"n0": 1, "n1": 1}


def test_a_replica_of_several_nodes_starts_across_another_where_it_must() -> None:
    state = State()
    group = Group("workers", 2, (Option(None, Resources(0, 6000)),))
    spec = Workload("chat", "chat", "serve", (group,), min_size=2, max_size=2, min_replicas=2, max_replicas=2)
    big = Node("big", Resources(0, 12000, 1 << 34))
    started(state, NodeJoined(0.0, big), node("n1"), node("n2"), Submitted(1.0, spec))
    assert sum(lies(state).values()) == 2
