"""A node that is to be empty, as an operator or the cluster says: nothing new goes there, what runs there saves and
moves, and an endpoint answers all the while.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from test_rollout import alive, answering
from test_walk import POLICIES, node, turn, work

from llmsched.core import commands, decisions, render
from llmsched.core.commands import DrainNode, Refusal, UndrainNode, check
from llmsched.core.configuration import Configuration, NodeType, PreemptionRules, Scheduling
from llmsched.core.facts import (
    Bound,
    DrainBegun,
    DrainEnded,
    Fact,
    NodeDraining,
    NodeJoined,
    NodeLost,
    Released,
    Scaled,
    Submitted,
    Tick,
)
from llmsched.core.invariants import violations
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State, Status


def decided(state: State, *facts: Fact) -> list[Any]:
    return turn(state, facts, POLICIES).decisions


def leaves(state: State, *facts: Fact) -> list[tuple[Any, ...]]:
    """(gang, grace, reason) of who is told to leave."""
    told = (each for each in decided(state, *facts) if isinstance(each, decisions.Preempt | decisions.Drain))
    return [(each.gang, each.grace_s, getattr(each, "reason", "drain")) for each in told]


def starts(state: State, *facts: Fact) -> list[tuple[str, str]]:
    launched = (each for each in decided(state, *facts) if isinstance(each, decisions.Launch))
    return [(each.gang, each.placement[0].node) for each in launched]


def running(state: State, *names: str, **more: Any) -> None:
    """Each on the first of two nodes of a GPU that has room."""
    decided(state, node("n0", 1), *(Submitted(1.0, work(name, grace_s=60.0, **more)) for name in names))
    decided(state, node("n1", 1), *(Bound(2.0, f"{name}/0", 1) for name in names))


def test_what_runs_there_leaves_with_its_grace_and_goes_on_elsewhere() -> None:
    state = State()
    running(state, "a")
    assert leaves(state, DrainBegun(10.0, "n0", by="root")) == [("a/0", 60.0, "node_drain")]
    assert render.text(state.gangs["a/0"].message) == "node n0 is drained"
    assert starts(state, Released(12.0, "a/0", 1)) == [("a/0", "n1")]


@pytest.mark.parametrize(
    ("ends", "grace"), [(None, 60.0), (500.0, 60.0), (30.0, 20.0), (10.0, 0.0)], ids=["no time", "far", "near", "now"]
)
@pytest.mark.parametrize("said", [DrainBegun, NodeDraining])
def test_it_leaves_by_the_deadline_whoever_set_it(said: Any, ends: float | None, grace: float) -> None:
    state = State()
    running(state, "a", preemptible=False)
    reason = "node_drain" if said is DrainBegun else "spot_notice"
    assert leaves(state, said(10.0, "n0", ends)) == [("a/0", grace, reason)]


def test_of_two_deadlines_the_first_counts() -> None:
    state = State()
    running(state, "a")
    said = leaves(state, DrainBegun(10.0, "n0", 50.0), NodeDraining(10.0, "n0", 30.0))
    assert said == [("a/0", 20.0, "spot_notice")]


def test_nothing_new_goes_there_until_it_is_undrained() -> None:
    state = State()
    assert starts(state, node("n0", 1), DrainBegun(1.0, "n0"), Submitted(1.0, work("a"))) == []
    assert starts(state, Tick(50.0)) == []
    assert starts(state, DrainEnded(60.0, "n0")) == [("a/0", "n0")]


def test_who_waits_is_told_that_nodes_are_to_be_empty() -> None:
    state = State()
    plan = turn(state, [node("n0", 1), node("n1", 1), DrainBegun(1.0, "n0"), Submitted(1.0, work("a"))], POLICIES)
    assert [type(each).__name__ for each in plan.decisions] == ["Launch"]
    plan = turn(state, [Submitted(2.0, work("b"))], POLICIES)
    assert plan.why("b") == "needs 1 x 1 A100; 0 fit now on 2 nodes, 1 of them drained"
    assert dict(plan.reasons["b/0"].counts) == {"nodes": 2, "busy": 1, "with room": 0, "drained": 1}


def test_a_promise_on_it_is_taken_back() -> None:
    rules = Scheduling(preemption=PreemptionRules(within_queue="lower_priority"))
    state = State(Configuration(scheduling=rules))
    running(state, "low", priority=10)
    decided(state, NodeLost(2.5, "n1"))
    assert leaves(state, Submitted(3.0, work("high", priority=90)))[0][0] == "low/0"
    assert [*state.nominated] == ["high/0"]
    decided(state, DrainBegun(4.0, "n0"))
    assert [*state.nominated] == []
    assert starts(state, Released(5.0, "low/0", 1)) == []


@pytest.mark.parametrize("how", ["says it again", "is another", "was away", "is restored"])
def test_a_node_that_comes_back_is_still_drained(how: str) -> None:
    state = State()
    joined = NodeJoined(0.0, replace(node("n0", 1).node, name="gpu-7"))
    decided(state, joined, DrainBegun(1.0, "gpu-7", by="root"))
    if how == "says it again":
        decided(state, NodeDraining(2.0, "n0"), replace(joined, at=3.0))
    elif how == "is another":
        decided(state, replace(joined, at=3.0, node=replace(joined.node, labels=(("zone", "b"),))))
    elif how == "was away":  # Ray names it anew
        decided(state, NodeLost(2.0, "n0"))
        decided(state, replace(joined, at=3.0, node=replace(joined.node, id="n9")))
    else:
        digest = state.digest()
        state = thaw(freeze(state))
        assert state.digest() == digest
    assert starts(state, Submitted(4.0, work("a"))) == []
    assert starts(state, DrainEnded(5.0, "gpu-7"))[0][0] == "a/0"


def test_what_the_cluster_says_ends_when_it_says_otherwise() -> None:
    state = State()
    decided(state, node("n0", 1), NodeDraining(1.0, "n0", 100.0), Submitted(1.0, work("a")))
    assert starts(state, replace(node("n0", 1), at=2.0)) == [("a/0", "n0")]


# Endpoints.


def test_an_endpoint_makes_another_replica_first_and_lets_go_once_that_one_answers() -> None:
    state = State()
    answering(state, gpus=1, replicas=1)
    assert decided(state, node("n1", 1)) == []
    assert starts(state, DrainBegun(5.0, "n0")) == [("chat/1", "n1")]
    assert leaves(state, Tick(500.0)) == []  # it takes its time to come up; the first answers
    assert leaves(state, Bound(501.0, "chat/1", 1)) == [("chat/0", state.gangs["chat/0"].spec.grace_s, "drain")]
    decided(state, Released(502.0, "chat/0", 1))
    assert alive(state) == [("chat/1", "good")] and state.workloads["chat"].phase == "running"
    assert decided(state, Tick(600.0)) == []


def test_a_replica_goes_without_another_when_its_node_is_about_to_leave() -> None:
    state = State()
    answering(state, gpus=1, replicas=1)
    plan = turn(state, [NodeDraining(5.0, "n0", 35.0)], POLICIES)
    assert (plan.decisions, plan.wake_at) == ([], 25.0)
    assert leaves(state, Tick(25.0)) == [("chat/0", 10.0, "drain")]
    assert starts(state, node("n1", 1), Released(26.0, "chat/0", 1)) == [("chat/1", "n1")]


def test_of_several_only_those_whose_place_is_taken_go() -> None:
    state = State()
    answering(state, gpus=2, replicas=2)
    assert starts(state, DrainBegun(5.0, "n0"), node("n1", 1)) == [("chat/2", "n1")]
    assert [gang for gang, *_ in leaves(state, Bound(6.0, "chat/2", 1))] == ["chat/1"]
    decided(state, Released(7.0, "chat/1", 1))
    assert [name for name, _ in alive(state)] == ["chat/0", "chat/2"]
    assert starts(state, node("n2", 1)) == [("chat/3", "n2")]
    assert [gang for gang, *_ in leaves(state, Bound(9.0, "chat/3", 1))] == ["chat/0"]


def test_a_replica_that_does_not_answer_yet_begins_anew_elsewhere() -> None:
    state = State()
    decided(state, node("n0", 1), Submitted(1.0, work("chat", kind="serve", min_replicas=1, max_replicas=1)))
    assert [gang for gang, *_ in leaves(state, DrainBegun(5.0, "n0"))] == ["chat/0"]
    assert starts(state, node("n1", 1), Released(6.0, "chat/0", 1)) == [("chat/1", "n1")]


def test_undraining_lets_the_replica_stay_and_the_other_one_go() -> None:
    state = State()
    answering(state, gpus=1, replicas=1)
    decided(state, DrainBegun(5.0, "n0"))
    assert state.gangs["chat/1"].status is Status.QUEUED
    assert decided(state, DrainEnded(6.0, "n0")) == []
    assert alive(state) == [("chat/0", "good")] and state.gangs["chat/1"].status is Status.CANCELLED


def test_scaling_down_takes_the_moving_one_first() -> None:
    state = State()
    answering(state, gpus=1, replicas=2)
    decided(state, node("n1", 1))
    decided(state, Bound(3.0, "chat/1", 1))
    decided(state, DrainBegun(5.0, "n0"))
    assert [gang for gang, *_ in leaves(state, Scaled(6.0, "chat", 1))] == ["chat/0"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_drained_and_given_back_an_endpoint_with_room_elsewhere_never_answers_with_fewer(seed: int) -> None:
    draw, state = random.Random(seed), State()
    replicas, names = draw.randint(1, 3), [f"n{number}" for number in range(8)]
    answering(state, gpus=replicas, replicas=replicas)
    decided(state, *(node(name, draw.choice((1, 2))) for name in names[1:]))

    def executor(now: float) -> None:
        """Each start and each leave is reported, now or later."""
        for gang in [*state.gangs.values()]:
            if gang.status is Status.LAUNCHING and draw.random() < 0.5:
                decided(state, Bound(now, gang.id, gang.attempt))
            elif gang.status is Status.VACATING and draw.random() < 0.5:
                decided(state, Released(now, gang.id, gang.attempt))
            assert answer() >= replicas and violations(state) == []

    def answer() -> int:
        return sum(gang.status is Status.RUNNING for gang in state.gangs.values())

    now = 10.0
    for _ in range(60):
        now += 1.0
        closed = [name for name in names if state.nodes[name].draining]
        if len(closed) < 4 and draw.random() < 0.4:
            name = draw.choice(names)
            decided(state, draw.choice((DrainBegun(now, name), NodeDraining(now, name, now + 10_000.0))))
        elif closed and draw.random() < 0.4:
            name = draw.choice(closed)
            decided(state, DrainEnded(now, name), replace(node(name, state.nodes[name].total_gpus), at=now))
        executor(now)
    for _ in range(40):
        now += 1.0
        decided(state, Tick(now))
        executor(now)
    assert answer() == len(state.holding) == replicas
    assert not any(state.nodes[placed.node].draining for name in state.holding for placed in state.gangs[name].held)


# Commands.


def refused(state: State, command: commands.Command) -> tuple[str, str, str]:
    found = check(state, command)
    assert isinstance(found, Refusal)
    return found.code, render.text(found.message), render.advice(found.message)


def test_what_cannot_be_drained_is_refused_with_what_would_do() -> None:
    state = State()
    decided(state, *(NodeJoined(0.0, replace(node(f"id{n}", 1).node, name=name)) for n, name in enumerate("aab")))
    assert refused(state, DrainNode(1.0, "bb", None, "root"))[:2] == ("unknown_node", 'no node is called "bb"')
    assert refused(state, DrainNode(1.0, "bb", None, "root"))[2].startswith('Did you mean "b"?')
    assert refused(state, DrainNode(1.0, "a", None, "root"))[2] == "Give the id of one of them: id0 or id1"
    assert refused(state, DrainNode(9.0, "b", 4.0, "root"))[:2] == (
        "impossible", "node b would have been empty 5 s ago",
    )  # fmt: skip
    assert refused(state, UndrainNode(1.0, "b", "root"))[:2] == ("conflict", "node b is not drained")
    state.apply(DrainBegun(2.0, "b", 60.0, "root"))
    for again in (None, 60.0):
        assert refused(state, DrainNode(3.0, "b", again, "eve"))[:2] == (
            "conflict", "node b is drained already, by root",
        )  # fmt: skip
    assert check(state, DrainNode(3.0, "b", 90.0, "eve")) == DrainBegun(3.0, "b", 90.0, "eve")
    state.apply(NodeLost(4.0, "id2"))
    assert check(state, UndrainNode(5.0, "b", "root")) == DrainEnded(5.0, "b", "root")
    state.apply(NodeDraining(6.0, "id0"))
    assert "the cluster says" in refused(state, UndrainNode(7.0, "id0", "root"))[1]


def test_a_node_of_several_with_one_name_is_drained_by_its_id_alone() -> None:
    state = State()
    decided(state, *(NodeJoined(0.0, replace(node(f"id{n}", 1).node, name="pod")) for n in range(2)))
    fact = check(state, DrainNode(1.0, "id1", None, "root"))
    assert isinstance(fact, DrainBegun)
    state.apply(fact)
    assert [found.draining for found in state.nodes.values()] == [False, True]


# Nodes that are rented.


def test_another_node_is_rented_for_one_that_is_drained_and_the_drained_one_is_not_given_back() -> None:
    types = (NodeType("a", flavor="A100", gpus=1, max=2, idle_timeout_s=60.0),)
    state = State(Configuration(node_types=types, flavors=()))
    rented = replace(node("n0", 1).node, node_type="a")
    decided(state, NodeJoined(0.0, rented), DrainBegun(1.0, "n0"))
    asked = decided(state, Submitted(2.0, work("a")))
    assert [each.counts for each in asked if isinstance(each, decisions.RequestCapacity)] == [(("a", 2),)]
    later = decided(state, Tick(5000.0))
    assert not any(isinstance(each, decisions.ReleaseNode) for each in later)
