"""Run times before they are over: who is believed, and what a run that goes on teaches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmsched.core import facts
from llmsched.core.configuration import Configuration, Scheduling
from llmsched.core.decisions import Launch
from llmsched.core.estimate import ENOUGH, KINDS_KEPT, RUNS_KEPT, History
from llmsched.core.nodes import Node
from llmsched.core.policy import View
from llmsched.core.records import expected_end
from llmsched.core.render import text
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies import registry

ONE = (Group("workers", 1, (Option(None, Resources(gpus_milli=MILLI)),)),)


def work(name: str = "w", **given) -> Workload:
    return Workload(name, name, "train", ONE, grace_s=0.0, **given)


def on(gpus: int, **given) -> Workload:
    return replace(work(**given), min_size=gpus, max_size=gpus, groups=(replace(ONE[0], count=gpus),))


def test_a_declared_run_time_is_believed_while_nothing_speaks_against_it() -> None:
    history = History()
    declared = work(estimated_runtime_s=100.0, model="m", steps=10.0)
    history.learn(replace(declared, estimated_runtime_s=None), 500.0)
    assert history.guess(declared).source == "declared"
    assert history.outlook(history.guess(declared), 30.0, 0.1, 0.9) == (100.0, 70.0, 70.0)


def test_measured_steps_are_believed_once_declared_times_have_proved_wrong() -> None:
    history = History()
    for factor in (0.5, 0.8, 1.0, 1.5, 2.0):
        history.learn(work(estimated_runtime_s=1000.0, model="m", steps=1000.0 * factor), 1000.0 * factor)
    guess = history.guess(work(estimated_runtime_s=1000.0, model="m", steps=3000.0))
    assert (guess.source, guess.seconds) == ("steps", 3000.0)
    assert text(guess.basis) == "3,000 steps as fast as in the last 5 runs of m"
    assert history.guess(work(estimated_runtime_s=1000.0, model="another", steps=3000.0)).source == "declared"


def test_a_size_that_nobody_ran_at_is_guessed_from_others_by_gpu_seconds() -> None:
    history = History()
    history.learn(work(model="m", steps=100.0), 400.0)
    assert history.guess(on(4, model="m", steps=100.0)).seconds == pytest.approx(100.0)
    history.learn(on(4, model="m", steps=100.0), 150.0)
    assert history.guess(on(4, model="m", steps=200.0)).seconds == pytest.approx(300.0)


def test_past_runs_are_believed_for_ordering_only_when_they_are_alike() -> None:
    history = History()
    for seconds in (100.0, 105.0, 98.0, 103.0):
        history.learn(work(user="ann", model="nightly"), seconds)
    for seconds in (10.0, 100.0, 1000.0, 10000.0):
        history.learn(work(user="bob", model="nightly"), seconds)
    assert history.guess(work(user="ann", model="nightly")).seconds == 105.0
    assert history.guess(work(user="bob", model="nightly")) is None
    assert history.plan(work(user="bob", model="nightly")).seconds == 10000.0
    assert history.guess(work(user="eve", model="nightly")) is None


def test_a_run_that_outlasts_its_estimate_is_measured_by_those_that_did_too() -> None:
    history = History()
    for ratio in (0.7, 0.8, 1.0, 1.2, 1.6, 2.0):
        history.learn(work(estimated_runtime_s=100.0), 100.0 * ratio)
    guess = history.guess(work(estimated_runtime_s=100.0))
    assert history.outlook(guess, 0.0, 0.0, 1.0) == pytest.approx((70.0, 121.66666, 200.0))
    assert history.outlook(guess, 130.0, 0.0, 1.0) == pytest.approx((160.0, 50.0, 70.0))
    assert history.outlook(guess, 400.0, 0.0, 1.0) == pytest.approx((400.0, 100.0, 100.0))


def test_what_is_remembered_is_bounded() -> None:
    history = History()
    for number in range(RUNS_KEPT + 10):
        history.learn(work(model="m", steps=1.0), float(number + 1))
    assert len(history.kinds["m", None]) == RUNS_KEPT
    assert history.kinds["m", None].sorted[0] == 11.0
    for number in range(KINDS_KEPT + 10):
        history.learn(work(model=f"m{number}"), 1.0)
    assert len(history.kinds) == KINDS_KEPT
    assert history.guess(work(model="m0", steps=1.0)) is None


def _run(state: State, policies, at: float, seconds: float, name: str, **given) -> None:
    turn(state, [facts.Submitted(at, work(name, **given))], policies)
    turn(state, [facts.Bound(at, f"{name}/0", 1)], policies)
    turn(state, [facts.Finished(at + seconds, f"{name}/0", 1, "succeeded")], policies)


def test_who_declares_nothing_gets_a_planned_start_from_history_and_says_so() -> None:
    configuration = Configuration(scheduling=Scheduling(time_resolution_s=0.0))
    policies = registry.load(configuration.policies)
    state = State()
    turn(state, [facts.Configured(0.0, configuration), facts.NodeJoined(0.0, Node("n", Resources(MILLI)))], policies)
    for number in range(ENOUGH):
        _run(state, policies, 1000.0 * number, 600.0, f"past{number}", user="ann", model="qwen")
    began = 1000.0 * ENOUGH
    turn(state, [facts.Submitted(began, work("now", user="ann", model="qwen"))], policies)
    turn(state, [facts.Bound(began, "now/0", 1)], policies)
    plan = turn(state, [facts.Submitted(began + 60.0, work("next"))], policies)
    reason = plan.reasons["next/0"]
    assert reason.eta == began + 600.0
    assert text(reason.eta_basis) == f"when now ends, as three in four of its last {ENOUGH} runs by ann of qwen"


def test_an_elastic_run_that_outlives_those_before_it_is_not_taken_for_nearly_done() -> None:
    policies = registry.load(Configuration().policies)
    state = State()
    turn(state, [facts.NodeJoined(0.0, Node("n", Resources(MILLI)))], policies)
    for number, seconds in enumerate((100.0, 101.0, 102.0)):
        _run(state, policies, 1000.0 * number, seconds, f"past{number}", user="ann", model="m")
    elastic = replace(work("long", user="ann", model="m"), max_size=4)
    turn(state, [facts.Submitted(5000.0, elastic)], policies)
    turn(state, [facts.Bound(5000.0, "long/0", 1)], policies)
    gang = state.gangs["long/0"]
    for now, left in ((5060.0, 41.0), (5400.0, 100.0)):  # beyond them all: a quarter of its time so far again
        state.apply(facts.Tick(now))
        assert View(state).work_left(gang) == pytest.approx(left)


def test_history_is_part_of_what_the_journal_determines() -> None:
    policies = registry.load(Configuration().policies)
    first, second = State(), State()
    for state, model in ((first, "a"), (second, "b")):
        turn(state, [facts.NodeJoined(0.0, Node("n", Resources(MILLI)))], policies)
        _run(state, policies, 1.0, 5.0, "x", model=model)
    assert first.history.parts() != second.history.parts()
    assert first.digest() != second.digest()


def test_progress_of_its_own_is_better_than_any_guess() -> None:
    policies = registry.load(Configuration().policies)
    state = State()
    turn(state, [facts.NodeJoined(0.0, Node("n", Resources(MILLI)))], policies)
    plan = turn(state, [facts.Submitted(0.0, work("x", estimated_runtime_s=100.0))], policies)
    assert [type(each) for each in plan.decisions] == [Launch]
    turn(state, [facts.Bound(0.0, "x/0", 1)], policies)
    turn(state, [facts.Estimated(50.0, "x/0", 500.0)], policies)
    state.apply(facts.Tick(60.0))
    assert View(state).outlook(state.gangs["x/0"], 0.1, 0.9) == (550.0, 490.0, 490.0)


FAST_OR_SLOW = (Group("workers", 1, (Option("A100", Resources(MILLI)), Option("T4", Resources(MILLI)))),)


def test_a_run_on_one_flavor_tells_nothing_of_another_until_the_model_has_run_on_both() -> None:
    history = History()
    asked = replace(work(model="m", steps=100.0), groups=FAST_OR_SLOW)
    history.learn(asked, 1000.0, "T4", 1000.0)
    assert history.guess(asked) is None  # which is told for A100
    assert history.speed(asked, 1, 1) == 1.0
    history.learn(asked, 200.0, "A100", 200.0)
    assert history.guess(asked).seconds == 200.0
    assert history.speed(asked, 1, 1) == 0.2
    only_slow = replace(asked, groups=(Group("workers", 1, FAST_OR_SLOW[0].options[1:]),))
    assert history.guess(only_slow).seconds == 1000.0


def test_who_asks_for_no_flavor_goes_by_the_runs_on_all_of_them() -> None:
    history = History()
    history.learn(work(model="m", steps=100.0), 1000.0, "T4", 1000.0)
    history.learn(work(model="m", steps=100.0), 200.0, "A100", 200.0)
    assert history.guess(work(model="m", steps=100.0)).sample.sorted == [2.0, 10.0]


def _clock(kinds: tuple[tuple[str, int], ...], *jobs: Workload, at: float = 0.0) -> tuple[State, object]:
    configuration = Configuration(scheduling=Scheduling(time_resolution_s=0.0))
    policies, state = registry.load(configuration.policies), State()
    nodes = [Node(f"{flavor}{n}", Resources(MILLI), flavor) for flavor, count in kinds for n in range(count)]
    turn(state, [facts.Configured(at, configuration), *(facts.NodeJoined(at, each) for each in nodes)], policies)
    for job in jobs:
        turn(state, [facts.Submitted(at, job)], policies)
    return state, policies


def test_work_goes_by_at_the_speed_of_the_flavor_that_it_is_on() -> None:
    told = (
        Option("A100", Resources(MILLI), ((1, 1.0),)),
        Option("T4", Resources(MILLI), ((1, 0.25),)),
    )
    job = replace(work("a", estimated_runtime_s=100.0), groups=(Group("workers", 1, told),))
    state, policies = _clock((("T4", 1), ("A100", 1)), job)
    turn(state, [facts.Submitted(1.0, replace(job, id="b", name="b"))], policies)
    for name in "ab":
        turn(state, [facts.Bound(2.0, f"{name}/0", 1)], policies)
    assert [state.gangs[f"{name}/0"].held[0].node for name in "ab"] == ["A1000", "T40"]  # the fastest that is free
    state.apply(facts.Tick(52.0))
    assert View(state).remaining_s(state.gangs["a/0"]) == pytest.approx(50.0)
    assert View(state).remaining_s(state.gangs["b/0"]) == pytest.approx(350.0)
    plan = turn(state, [facts.Submitted(60.0, replace(work("c"), groups=FAST_OR_SLOW))], policies)
    assert plan.reasons["c/0"].eta == pytest.approx(102.0)
    assert expected_end(state.gangs["b/0"]) == pytest.approx(402.0)


@pytest.mark.parametrize("most", [1, 2])
def test_one_begins_where_earlier_runs_of_its_model_were_fastest(most: int) -> None:
    """It began on the first flavor that it names, and was evicted for the other one when a pass looked who may move."""
    slow_first = (Group("workers", 1, tuple(Option(flavor, Resources(MILLI)) for flavor in ("T4", "A100"))),)
    state, policies = _clock((("T4", 2), ("A100", 2)))
    for flavor, seconds in (("T4", 1000.0), ("A100", 100.0)):
        spec = replace(
            work(f"known-{flavor}", model="m"), groups=(Group("workers", 1, (Option(flavor, Resources(MILLI)),)),)
        )
        for _ in range(3):
            state.history.learn(spec, seconds, flavor, seconds)
    asked = replace(work("e", model="m"), max_size=most, groups=slow_first)
    turn(state, [facts.Submitted(1.0, asked)], policies)
    assert {placed.node[:-1] for placed in state.gangs["e/0"].placement} == {"A100"}


def test_an_elastic_gang_takes_few_fast_gpus_rather_than_many_slow_ones() -> None:
    told = (
        Option("A100", Resources(MILLI), ((1, 1.0), (2, 2.0), (4, 4.0))),
        Option("T4", Resources(MILLI), ((1, 0.2), (2, 0.4), (4, 0.8))),
    )
    spec = replace(
        work("e", estimated_runtime_s=100.0), max_size=4, sizes=(1, 2, 4), groups=(Group("workers", 1, told),)
    )
    state, _ = _clock((("T4", 4), ("A100", 1)), spec)
    assert [placed.node for placed in state.gangs["e/0"].placement] == ["A1000"]
