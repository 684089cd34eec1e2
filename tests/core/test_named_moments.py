"""Nobody waits for the clock without knowing until when: the reason says so, and the plan asks again then."""

from __future__ import annotations

import ast
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from ledger import Decided, Given, cluster
from world_maker import Maker
from worlds import Play

from llmsched.core import facts, scheduler
from llmsched.core.configuration import Reservation
from llmsched.core.explain import Reason
from llmsched.core.run_times import presumed_end
from llmsched.core.scheduler import decide, plan_starts
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.workload import Retry
from llmsched.policies.registry import load

CORE = Path(scheduler.__file__).parent
CLOCKS = ("now", "at")


def told(given: Given, name: str, decided: Decided) -> tuple[float, str]:
    """(seconds from now, what is so then) as people read them, once the plan is known to ask again by then."""
    plan_starts(given.state, load(given.names))
    reason: Reason | None = given.state.gangs[f"{name}/0"].reason
    assert reason is not None and reason.eta is not None and reason.eta_basis is not None, reason
    assert decided.plan.wake_at is not None and decided.plan.wake_at <= reason.eta
    return reason.eta - given.now, reason.eta_basis.code


def test_who_may_not_make_others_leave_yet() -> None:
    given = cluster("1 node x 1").rules("lower_priority").scheduling(preemption_delay_s=30.0)
    given.running("low", gpus=1, priority=10).pending("high", gpus=1, priority=90)
    assert told(given, "high", given.turn()) == (30.0, "eta.delay")


def test_others_are_left_alone_for_a_while() -> None:
    given = cluster("1 node x 1").rules("lower_priority").running("low", gpus=1, priority=10, min_runtime_s=100.0)
    given.pending("high", gpus=1, priority=90)
    assert told(given, "high", given.turn()) == (99.0, "eta.shield")
    assert given.after(99.0).turn().decisions != []


def test_others_have_been_evicted_as_often_as_they_may_in_an_hour() -> None:
    given = cluster("1 node x 1").rules("lower_priority").running("low", gpus=1, priority=10, retry=Retry(1000, 0.0))
    given.state.gangs["low/0"].evicted_at = (100.0, *(200.0 + number for number in range(5)))
    given.after(500.0).pending("high", gpus=1, priority=90)
    assert told(given, "high", given.turn()) == (100.0 + 3600.0 - given.now, "eta.evictions")


def test_a_reservation_is_in_the_way() -> None:
    given = cluster("1 node x 1").queue("own", gpus=1).queue("other", gpus=1).scheduling(backfill="off")
    configuration = given.state.configuration
    booked = Reservation("booked", 100.0, 50.0, queue="own", gpus_milli=1000)
    given.state.apply(facts.Configured(0.0, replace(configuration, version=2, reservations=(booked,))))
    given.pending("long", gpus=1, queue="other")
    assert told(given, "long", given.turn()) == (150.0 - given.now, "eta.window")


def test_a_planned_start_that_may_move_when_somebody_should_have_ended() -> None:
    given = cluster("1 node x 4").rules().scheduling(backfill="easy")
    given.running("now", gpus=2, ends_in=100.0).pending("head", gpus=4).pending("behind", gpus=2)
    decided = given.turn()
    assert decided.code("behind") == "order"
    assert told(given, "behind", decided) == (98.0, "eta.planned")


def test_everybody_is_ranked_once_a_quantum() -> None:
    given = cluster("1 node x 1").rules("by_rank").scheduling(quantum_s=60.0).policies(ordering="least_attained")
    given.running("now", gpus=1)
    given.after(10.0).pending("next", gpus=1)
    assert told(given, "next", given.turn()) == (60.0 - given.now, "eta.ranking")


def test_past_use_is_counted_once_in_a_while() -> None:
    given = cluster("1 node x 1").queue("a", gpus=0).queue("b", gpus=0).rules(reclaim="any")
    given.scheduling(fair_share="guarantee_then_weight", usage_half_life_s=600.0, usage_k=1.0, usage_window_s=6000.0)
    given.running("a1", gpus=1, queue="a").pending("b1", gpus=1, queue="b")
    assert told(given, "b1", given.turn()) == (600.0 - given.now, "eta.count")


def test_a_policy_that_forbids_is_asked_again() -> None:
    class Forbids:
        def cost(self, victim: Any, beneficiary: Any, view: Any) -> int | None:
            return None

    given = cluster("1 node x 1").rules("lower_priority").running("low", gpus=1, priority=10)
    given.pending("high", gpus=1, priority=90)
    policies = replace(load(given.names), preemption=Forbids())
    plan = decide(given.state, policies)
    plan_starts(given.state, policies)
    reason = given.state.gangs["high/0"].reason
    assert reason is not None and reason.eta_basis is not None
    assert (reason.eta, reason.eta_basis.code) == (plan.wake_at, "eta.policy")


def test_who_may_not_grow_for_a_planned_start_is_asked_again_when_that_may_move() -> None:
    """It could take the free GPU as soon as somebody had outlived its presumed end, and was not asked before the next
    news: a controller that started again let it grow at once."""
    given = cluster("1 node x 3").queue("a", gpus=2).queue("b", gpus=3).policies(elasticity="even")
    given.rules().scheduling(backfill="easy", elastic=True, hold_after_s=0.0)
    given.running("runs", gpus=1, queue="b").running("grows", gpus=1, queue="a", elastic=(1, 2))
    given.pending("head", gpus=2, queue="b")
    plan = given.turn().plan
    assert plan.decisions == [] and plan.sizes == {"grows/0": 2}
    assert plan.by_clock and plan.wake_at == presumed_end(given.state, given.state.gangs["runs/0"])


def test_stages_compare_the_clock_through_what_names_the_moment() -> None:
    """Whoever compares a time with `now` by itself may turn its answer at a moment that nobody has named."""
    known = {
        "_patient": "it names the soonest of all that are to come",
        "is_due": "the plan names the next ranking",
        "_ended_by_clock": "words for people",
        "is_hopeless": "who is kept out by it is told `would_delay`, which is asked again",
        "looks_again": "is that moment",
    }
    for file in [*(CORE / "stages").glob("*.py"), CORE / "rules.py"]:
        for function in [one for one in ast.walk(ast.parse(file.read_text())) if isinstance(one, ast.FunctionDef)]:
            for compared in [one for one in ast.walk(function) if isinstance(one, ast.Compare)]:
                reads = [one for one in ast.walk(compared) if isinstance(one, ast.Attribute)]
                by_itself = any(ast.unparse(one).endswith((".now", "plan.at")) for one in reads if one.attr in CLOCKS)
                calls = any(isinstance(one, ast.Call) and one.func in reads for one in ast.walk(compared))
                where = f"{file.name}:{compared.lineno} {ast.unparse(compared)}"
                assert not by_itself or calls or function.name in known, where


@pytest.mark.parametrize("seed", range(6))
def test_between_two_moments_that_a_plan_names_a_fresh_state_decides_nothing_either(seed: int) -> None:
    Watched(Maker(seed).world(), folds=10**9).run()


class Watched(Play):
    """After each pass that decides nothing, many moments before the next one are looked at."""

    def hold_the_silence(self) -> None:
        until = min(self.agenda[0][0] if self.agenda else self.now, self.plan.wake_at or inf)
        if self.plan.decisions or until - self.now < 2.0:
            return
        for part in (0.0,) if self.plan.by_clock else (0.01, 0.3, 0.6, 0.9, 0.999):
            again = thaw(freeze(self.state))
            again.apply(facts.Tick(self.now + (until - self.now) * part))
            assert decide(again, self.policies).decisions == [], f"at {again.now}, and the plan named {until}"


@pytest.mark.parametrize("seconds", [0.0, 50.0, 7.0 * 3600, 30.0 * 3600])
def test_a_presumed_end_moves_only_when_it_has_passed(seconds: float) -> None:
    given = cluster("1 node x 1").running("now", gpus=1)
    gang = given.state.gangs["now/0"]
    end = presumed_end(given.after(seconds).state, gang)
    assert end > given.now
    between = given.now + (end - given.now) * 0.9
    assert presumed_end(given.after(between - given.now).state, gang) == end
