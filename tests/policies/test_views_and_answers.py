"""A policy looks through views that it cannot change, and its answers are checked: it can be unfair, and no worse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import LoadObserved, Submitted, Tick
from llmsched.core.invariants import violations
from llmsched.core.policy import Policies, View
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.workload import Autoscaling, Group, Option, Workload
from llmsched.errors import SpecError
from llmsched.policies.registry import load

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from ledger import Given, cluster

Meddle = Callable[..., Any]
GPU = Resources(1000)


def give_back(node: Any, view: View) -> None:
    node.change(GPU, -1, -1)


def set_free(node: Any, view: View) -> None:
    node.free_whole = 8


def clear_shares(node: Any, view: View) -> None:
    node.shares.clear()


def forget_the_use(node: Any, view: View) -> None:
    node._node = None


def turn_back_time(node: Any, view: View) -> None:
    view.now = 0.0  # type: ignore[misc]


def free_a_running_gang(node: Any, view: View) -> None:
    for gang in view.running():
        gang.size = 0  # type: ignore[misc]


def raise_a_priority(node: Any, view: View) -> None:
    for gang in view.waiting():
        gang.spec.priority = 100  # type: ignore[misc]


def drop_the_queue(node: Any, view: View) -> None:
    del view.waiting()[0].queued_since  # type: ignore[misc]


def change_the_rules(node: Any, view: View) -> None:
    view.scheduling.elastic = False  # type: ignore[misc]


MEDDLING = (
    give_back, set_free, clear_shares, forget_the_use, turn_back_time, free_a_running_gang, raise_a_priority,
    drop_the_queue, change_the_rules,
)  # fmt: skip


class Meddling:
    """It wants to change what it sees, whenever it is asked."""

    walk, alike, static = 0, False, False

    def __init__(self, meddle: Meddle) -> None:
        self.meddle = meddle
        self.refused: list[Exception] = []

    def score(self, bundle: Resources, node: Any, view: View) -> int:
        try:
            self.meddle(node, view)
        except (AttributeError, FrozenInstanceError) as error:
            self.refused.append(error)
            raise
        return 0


def fill(given: Given, policies: Policies) -> list[str]:
    """Five one-GPU gangs on two GPUs, one of which is taken: what starts, and every rule holds after each pass."""
    given.running("there", 1)
    started = []
    for number in range(5):
        given.pending(f"w{number}", 1)
        plan = turn(given.state, [Tick(given.now)], policies)
        started += [decision.gang for decision in plan.decisions]  # type: ignore[union-attr]
        assert violations(given.state) == []
    return started


@pytest.mark.parametrize("meddle", MEDDLING, ids=lambda each: each.__name__)
def test_what_a_placement_policy_sees_cannot_be_changed_and_nothing_is_given_twice(meddle: Meddle) -> None:
    policy = Meddling(meddle)
    given = cluster("1 node x 2")
    assert fill(given, replace(load(PolicyNames()), placement=policy)) == ["w0/0"]  # type: ignore[arg-type]
    assert policy.refused


def test_a_node_can_be_looked_at_as_it_would_be_with_a_bundle_more() -> None:
    seen: list[tuple[int, int, int]] = []

    class Curious(Meddling):
        def score(self, bundle: Resources, node: Any, view: View) -> int:
            then = node.after(bundle)
            seen.append((node.free_whole, then.free_whole, node.free_whole))
            return int(then.room(bundle))

    given = cluster("1 node x 2")
    assert fill(given, replace(load(PolicyNames()), placement=Curious(give_back))) == ["w0/0"]  # type: ignore[arg-type]
    assert seen == [(1, 0, 1)]


class Answers:
    """Always the same, whatever is asked; an exception is raised."""

    walk, alike, static = 0, False, False

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def said(self, *about: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    key = score = cost = share = wanted = said


NONSENSE = (None, "best", float("nan"), (float("nan"),), ("a", 1), {"w": -1}, [], {"a"}, RuntimeError("no luck"))


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: "object()" if type(answer) is object else repr(answer))
@pytest.mark.parametrize("family", ["ordering", "placement"])
def test_an_answer_that_is_none_is_told_and_the_pass_goes_on_without_it(family: str, answer: Any) -> None:
    policies = replace(load(PolicyNames()), **{family: Answers(answer)})
    given = cluster("1 node x 2").pending("a", 1).pending("b", 2).pending("c", 1)
    plan = turn(given.state, [], policies)
    assert [decision.gang for decision in plan.decisions] == ["a/0", "c/0"]  # type: ignore[union-attr]
    (trouble,) = plan.troubles
    assert trouble.what.startswith(f"{family} policy Answers: ") and violations(given.state) == []
    if isinstance(answer, Exception):
        assert trouble.what.endswith("raised RuntimeError") and trouble.details == "no luck"
    again = turn(given.state, [Tick(given.now)], policies)
    assert not again.decisions and again.troubles == plan.troubles  # also while nothing happens


@pytest.mark.parametrize("answer", [-1, 0.5, "cheap", True, RuntimeError("no luck")], ids=repr)
def test_nobody_is_evicted_at_a_cost_that_is_none(answer: Any) -> None:
    policies = replace(load(PolicyNames()), preemption=Answers(answer))
    given = cluster("1 node x 1").rules(within_queue="lower_priority").running("low", 1, priority=1)
    given.pending("high", 1, priority=9)
    plan = turn(given.state, [], policies)
    assert not plan.decisions and plan.troubles


@pytest.mark.parametrize(
    "answer", [None, 3, {"e/0": "large"}, {"e/0": -4}, {"stranger/0": 2}, {"e/0": 1 << 40}, RuntimeError()], ids=repr
)
def test_sizes_stay_in_their_range_whatever_is_answered(answer: Any) -> None:
    policies = replace(load(PolicyNames()), elasticity=Answers(answer))
    given = cluster("1 node x 8").pending("e", 1, elastic=(2, 4))
    (launch,) = turn(given.state, [], policies).decisions
    assert 2 <= len(launch.placement) <= 4  # type: ignore[union-attr]
    assert violations(given.state) == []


@pytest.mark.parametrize("answer", [None, 3, (-1, ""), (2, None), ("2", ""), RuntimeError()], ids=repr)
def test_there_stay_as_many_replicas_as_there_were(answer: Any) -> None:
    policies = replace(load(PolicyNames()), autoscaling=Answers(answer))
    given = cluster("1 node x 8")
    group = Group("replica", 1, (Option(None, GPU),))
    serve = Workload("e", "e", "serve", (group,), min_replicas=1, max_replicas=4, autoscaling=Autoscaling())
    turn(given.state, [Submitted(1.0, serve)], policies)
    plan = turn(given.state, [LoadObserved(2.0, "e", 40.0, 0.0)], policies)
    assert given.state.workloads["e"].wanted_replicas == 1 and plan.troubles


def test_a_policy_with_a_memory_that_does_not_say_when_is_asked_again_in_a_second() -> None:
    for policy, woken in ((Answers((1, "since 2")), 4.0), (Answers((1, "")), None)):
        given = cluster("1 node x 8")
        serve = Workload(
            "e", "e", "serve", (Group("replica", 1, (Option(None, GPU),)),), max_replicas=4, autoscaling=Autoscaling()
        )
        policies = replace(load(PolicyNames()), autoscaling=policy)
        turn(given.state, [Submitted(1.0, serve)], policies)
        turn(given.state, [LoadObserved(2.0, "e", 40.0, 0.0)], policies)
        plan = turn(given.state, [Tick(3.0)], policies)
        assert plan.wake_at == woken


def test_what_cannot_be_asked_at_all_is_no_policy() -> None:
    with pytest.raises(SpecError, match="Answers2 is no ordering policy: it has no method key"):
        replace(load(PolicyNames()), ordering=type("Answers2", (), {})())
    with pytest.raises(SpecError, match=r"Answers.walk is 7, expected -1, 0 or 1"):
        replace(load(PolicyNames()), placement=type("Answers", (Answers,), {"walk": 7})(0))


def test_a_policy_prepares_once_a_pass_before_its_first_question_and_only_if_there_is_one() -> None:
    said: list[str] = []

    class Prepared(Answers):
        def prepare(self, view: View) -> None:
            said.append(f"prepare at {view.now:g}")

        def key(self, gang: Any, view: View) -> Any:
            said.append(gang.id)
            return (0,)

    policies = replace(load(PolicyNames()), ordering=Prepared(0))
    given = cluster("1 node x 1").pending("a", 1).pending("b", 1)
    turn(given.state, [], policies)
    turn(given.state, [Tick(50.0)], policies)
    assert said == ["prepare at 2", "a/0", "b/0"]
