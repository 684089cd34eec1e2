"""Which nodes a workload may use is one rule: where it is placed, which nodes may come, whether it can start at all."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from llmsched.core import facts
from llmsched.core.configuration import Configuration, Flavor, NodeType, PolicyNames
from llmsched.core.decisions import Launch, RequestCapacity
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.possible import why_never
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.stages.place import eligible
from llmsched.core.state import State
from llmsched.core.suitable import SPOT, wish_of
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

ONE = (Group("workers", 1, (Option(None, Resources(1000)),)),)
IS_SPOT = ((SPOT, "true"),)


def world(*nodes: Node, **more: Any) -> State:
    state = State()
    state.apply(facts.Configured(0.0, Configuration(**more)))
    for node in nodes:
        state.apply(facts.NodeJoined(0.0, node))
    return state


def node(name: str, labels: tuple[tuple[str, str], ...] = (), flavor: str | None = "T4") -> Node:
    return Node(name, Resources(2000), flavor, labels)


def work(**more: Any) -> Workload:
    return Workload("w", "w", "task", ONE, **more)


def told(state: State, spec: Workload) -> str:
    never = why_never(state, spec)
    return never.message.code if never else "possible"


@pytest.mark.parametrize(
    ("use_spot", "labels", "answer"),
    [
        (False, IS_SPOT, "impossible.only_spot"),
        (False, (), "possible"),
        (False, ((SPOT, "false"),), "possible"),
        (True, (), "impossible.no_spot"),
        (True, IS_SPOT, "possible"),
        (None, IS_SPOT, "possible"),
    ],
)
def test_without_spot_nothing_is_possible_on_spot_nodes_alone(use_spot: bool | None, labels: Any, answer: str) -> None:
    state, spec = world(node("n", labels)), work(use_spot=use_spot)
    assert told(state, spec) == answer
    state.apply(facts.Submitted(1.0, spec))
    launched = [one for one in turn(state, [], load(PolicyNames())).decisions if isinstance(one, Launch)]
    assert bool(launched) == (answer == "possible"), "what is possible starts on the empty cluster"
    if not launched:
        assert state.gangs["w/0"].reason is not None and state.gangs["w/0"].reason.code == "impossible"


@pytest.mark.parametrize(("spot", "answer"), [(True, "impossible.only_spot"), (False, "possible")])
def test_what_no_node_to_come_suits_is_impossible_and_no_node_is_asked_for(spot: bool, answer: str) -> None:
    labels = (("ray.io/accelerator-type", "T4"), *(IS_SPOT if spot else ()))
    rented = {"flavors": (Flavor("rented", labels),), "node_types": (NodeType("big", "rented", 2, max=2),)}
    state, spec = world(node("n", IS_SPOT), **rented), work(use_spot=False)
    assert told(state, spec) == answer
    state.apply(facts.Submitted(1.0, spec))
    asked = [one for one in turn(state, [], load(PolicyNames())).decisions if isinstance(one, RequestCapacity)]
    assert bool(asked) == (answer == "possible")


@pytest.mark.parametrize("seed", range(5))
def test_the_nodes_that_are_looked_at_are_those_that_suit_also_for_a_second_group(seed: int) -> None:
    draw = random.Random(seed)

    def some_labels() -> tuple[tuple[str, str], ...]:
        return tuple(sorted({SPOT: draw.choice(("true", "false")), "zone": draw.choice("ab")}.items()))

    nodes = [node(f"n{number}", some_labels()[draw.randrange(3) :], draw.choice(("T4", "A10"))) for number in range(12)]
    state = world(*nodes)
    groups = (
        Group("first", 1, (Option(draw.choice((None, "T4", "A10")), Resources(1000)),)),
        Group("second", 2, (Option(draw.choice((None, "T4", "A10")), Resources(1000)),)),
    )
    labels = draw.choice(((), (("zone", "a"),)))
    spec = replace(work(use_spot=draw.choice((None, True, False)), node_labels=labels), groups=groups)
    with Trial(state) as trial:
        for number in range(2):
            mask = eligible(trial, spec, 0, number)
            here = {one.id for one in nodes if wish_of(spec, 0, number).suits(one)}
            assert {one.node.id for one in state.capacity.nodes(mask)} == here
    state.apply(facts.Submitted(1.0, spec))
    for launch in turn(state, [], load(PolicyNames())).decisions:
        assert isinstance(launch, Launch)
        for placed in launch.placement:
            assert wish_of(spec, 0, placed.group == "second").suits(state.nodes[placed.node].node)
    assert not violations(state)


@pytest.mark.parametrize("placement", ["pack", "spread", "least_fragmentation", "topology"])
def test_groups_that_fit_one_by_one_and_not_together_are_impossible(placement: str) -> None:
    """Two by one GPU and two by two fit on four GPUs each; together they waited for ever, before all of their queue."""
    found = set()
    for seed in range(40):
        draw = random.Random(seed)
        state = world(*(Node(f"n{n}", Resources(1000 * draw.choice((1, 2, 4)))) for n in range(draw.choice((1, 2, 3)))))
        groups = tuple(
            Group(name, draw.choice((1, 2)), (Option(None, Resources(1000 * draw.choice((1, 1, 2)))),)) for name in "ab"
        )
        spec = replace(work(), groups=groups, min_size=groups[0].count, max_size=groups[0].count)
        answer = told(state, spec)
        found.add(answer)
        state.apply(facts.Submitted(1.0, spec))
        launched = turn(state, [], load(PolicyNames(placement=placement))).decisions
        assert bool(launched) == (answer == "possible"), seed
        reason = state.gangs["w/0"].reason
        assert launched or (reason is not None and reason.code == "impossible")
    assert found > {"possible", "impossible.together"}
