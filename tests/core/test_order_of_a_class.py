"""The default ordering keeps each class in order and asks few for a key: the order is that of the keys all the same."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from ledger import cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import PreemptionRules, Queue
from llmsched.core.policy import View
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.line import alone, key_with_age, kins
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.policies.ordering.finish_time_fair import FinishTimeFair
from llmsched.policies.registry import load

ONE = (Group("workers", 1, (Option(None, Resources(1000)),)),)


class Counted(FinishTimeFair):
    asked = 0

    def key(self, gang: Any, view: View) -> tuple[Any, ...]:
        self.asked += 1
        return super().key(gang, view)


def work(name: str, **more: Any) -> Workload:
    return Workload(name, name, "task", ONE, grace_s=0.0, **more)


def some(draw: random.Random, name: str) -> Workload:
    """Jobs that declare a run time, that only have a model of which runs are known, and that say nothing; of as many
    GPUs, and with memory of their own."""
    return replace(
        _told(draw, name), groups=(Group("workers", 1, (Option(None, Resources(1000, 0, draw.choice((0, 0, 1)))),)),)
    )


def _told(draw: random.Random, name: str) -> Workload:
    kind = draw.randrange(6)
    if kind < 4:
        seconds = draw.choice((60.0, 600.0, round(draw.lognormvariate(7, 2), draw.choice((0, 1, 6)))))
        return work(name, estimated_runtime_s=max(seconds, 1.0))
    if kind == 4:
        return work(name, model=draw.choice("mn"), user=draw.choice("uv"), steps=draw.choice((None, 10.0, 90.0)))
    return work(name)


@pytest.mark.parametrize("seed", range(8))
def test_the_order_kept_is_that_of_the_keys_whatever_is_learnt_and_whoever_comes_and_goes(seed: int) -> None:
    draw = random.Random(seed)
    given = cluster(f"1 node x {draw.choice((1, 2, 30))}").scheduling(hold_after_s=0.0)
    state, policies = given.state, load(given.names)
    for step in range(60):
        given.now += draw.choice((0.0, 0.5, 40.0, 3000.0))
        happened: list[Any] = [facts.Tick(given.now)]
        for number in range(draw.randrange(6)):
            happened.append(facts.Submitted(given.now, some(draw, f"w{step}-{number}")))
        for name in [*state.holding][: draw.randrange(3)]:
            gang = state.gangs[name]
            if gang.started_at is None:
                happened.append(facts.Bound(given.now, name, gang.attempt))
            else:
                how = draw.choice(("succeeded", "succeeded", "error"))
                happened.append(facts.Finished(given.now, name, gang.attempt, how))
        turn(state, happened, policies)
        this = Pass(Trial(state), policies)
        waiting = state.waiting
        assert waiting.longest == sorted((shape.since[0][0], shape.serial) for shape in waiting.live.values())
        assert sorted(serial for kin in waiting.kins.values() for serial in kin.live) == sorted(waiting.live)
        for bunch in (*alone(waiting.live.values()), *kins(waiting)):
            keys = {name: key_with_age(this, state.gangs[name]) for _, name in bunch.entries()}
            assert bunch.index is not None
            kept = [*bunch.index.first(bunch.entries(), state.now, keys.__getitem__)]
            assert kept == sorted((key, name) for name, key in keys.items())
            bound, anew = bunch.index.bound(state.now), policies.ordering.index()
            for _, name in bunch.entries():
                anew.put(state.gangs[name])
            assert bound <= kept[0][0][0], "somebody stands before the bound"
            assert bound == pytest.approx(anew.bound(state.now), rel=0.03, abs=0.01), "and it is not far from the best"
        assert not policies.troubles()


@pytest.mark.parametrize("told", [True, False], ids=["each declares another run time", "nobody says anything"])
def test_who_ends_lets_a_pass_ask_a_few_of_the_many_that_wait(told: bool) -> None:
    given, ordering = cluster("1 node x 2").scheduling(hold_after_s=0.0), Counted()
    policies = replace(load(given.names), ordering=ordering)
    for number in range(400):
        more = {"estimated_runtime_s": 60.0 + number % 97 + number / 1000} if told else {}
        given.state.apply(facts.Submitted(1.0 + number / 1000, work(f"w{number}", **more)))
    turn(given.state, [facts.Tick(10.0)], policies)
    for number in range(5):
        (name, *_) = given.state.holding
        attempt = given.state.gangs[name].attempt
        ordering.asked = 0
        plan = turn(given.state, [facts.Finished(20.0 + number, name, attempt, "succeeded")], policies)
        assert len(plan.decisions) == 1 and ordering.asked <= 12


def test_those_that_were_evicted_are_asked_for_few_keys_too() -> None:
    given, ordering = cluster("1 node x 2").scheduling(hold_after_s=0.0), Counted()
    policies = replace(load(given.names), ordering=ordering)
    state = given.state
    for number in range(200):
        name, at = f"w{number}", 1.0 + 60.0 * number
        state.apply(facts.Submitted(at, work(name, estimated_runtime_s=9000.0 + number * 7)))
        launch = decisions.Launch(f"{name}/0", 1, (Placed("workers", given.nodes[0].id, 0),))
        state.apply(launch)
        state.apply(facts.Bound(at, f"{name}/0", 1))
        state.apply(decisions.Preempt(f"{name}/0", 1, 0.0, "in_queue_priority", ""))
        state.apply(facts.Released(at + 1.0 + number % 50, f"{name}/0", 1))
    assert state.waiting.count == 200 and all(gang.served_s for gang in state.gangs.values())
    plan = turn(state, [facts.Tick(12_100.0)], policies)
    assert len(plan.decisions) == 2 and ordering.asked <= 30


def test_when_one_ends_only_classes_whose_best_may_be_next_are_looked_through() -> None:
    """Twelve queues without quota, by rank, each with jobs of one and of two GPUs: 24 classes."""
    given, ordering = cluster("2 nodes x 4"), Counted()
    for number in range(12):
        given.queues.append(Queue(f"q{number}"))
    given.scheduling(preemption=PreemptionRules("by_rank"), order="best_effort", quantum_s=3600.0)
    policies = replace(load(given.names), ordering=ordering)
    for number in range(240):
        group = (Group("workers", 1 + number % 2, ONE[0].options),)
        spec = work(f"w{number}", queue=f"q{number // 2 % 12}", estimated_runtime_s=600.0 + 7 * number)
        spec = replace(spec, groups=group, min_size=group[0].count, max_size=group[0].count)
        given.state.apply(facts.Submitted(1.0 + number / 1000, spec))
    turn(given.state, [facts.Tick(10.0)], policies)
    ordering.asked = 0
    (name, *_) = given.state.holding
    plan = turn(given.state, [facts.Finished(20.0, name, given.state.gangs[name].attempt, "succeeded")], policies)
    assert len(plan.decisions) == 1 and ordering.asked <= 3


def test_of_a_queue_that_can_take_nothing_only_the_place_in_line_is_asked_for() -> None:
    """Eight queues own an eighth each and hold it; four classes wait in each. One GPU becomes free."""
    given, ordering = cluster("4 nodes x 8"), Counted()
    for queue in range(8):
        given.queue(f"q{queue}", gpus=4)
    given.rules(within_queue="lower_priority", reclaim="any").scheduling(hold_after_s=0.0)
    policies = replace(load(given.names), ordering=ordering)
    for number in range(32):
        given.running(f"r{number}", 1, queue=f"q{number % 8}")
    for number in range(320):
        count = 1 + number // 8 % 4
        group = (Group("workers", count, ONE[0].options),)
        spec = work(f"w{number}", queue=f"q{number % 8}", estimated_runtime_s=600.0 + 7 * number)
        given.state.apply(facts.Submitted(given.now, replace(spec, groups=group, min_size=count, max_size=count)))
    turn(given.state, [facts.Tick(given.now)], policies)
    ordering.asked = 0
    given.after(1.0, facts.Finished(given.now, "r3/0", given.state.gangs["r3/0"].attempt, "succeeded"))
    plan = turn(given.state, [], policies)
    assert [type(one).__name__ for one in plan.decisions] == ["Launch"]
    assert ordering.asked <= 16
    told = {shape.reason.code for shape in given.state.waiting.live.values() if shape.reason is not None}
    assert told == {"quota"} and all(shape.reason for shape in given.state.waiting.live.values())


class Lies:
    """An index that gives somebody twice, a stranger, too few, nothing but an exception, or a bound that is none."""

    def __init__(self, lie: str) -> None:
        self.lie = lie
        self.names: list[str] = []

    def put(self, gang: Any) -> None:
        self.names.append(gang.id)

    def drop(self, gang: str) -> None:
        self.names.remove(gang)

    def bound(self, now: float) -> Any:
        return (float("nan"),) if self.lie == "bound" else (0,)

    def first(self, now: float, key: Any) -> Any:
        told = {"bound": self.names, "twice": [*self.names[:1] * 2], "stranger": ["x/7"], "few": self.names[:1]}
        return iter([((0,), name) for name in told[self.lie]])


@pytest.mark.parametrize("lie", ["twice", "stranger", "few", "raises", "bound"])
def test_an_index_that_lies_leaves_nobody_out(lie: str) -> None:
    class Lying(FinishTimeFair):
        def index(self) -> Any:
            return Lies(lie)

    given = cluster("1 node x 4")
    policies = replace(load(given.names), ordering=Lying())
    for name in "abc":
        given.pending(name, 1)
    plan = turn(given.state, [], policies)
    assert [decision.gang for decision in plan.decisions] == ["a/0", "b/0", "c/0"]  # type: ignore[union-attr]
    assert lie == "few" or plan.troubles
