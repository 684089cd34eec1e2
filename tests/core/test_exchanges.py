"""Two gangs exchange a place once before something changes from outside, for whatever reason one makes way."""

from __future__ import annotations

import ast
import heapq
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster

import llmsched
from llmsched.core import decisions, facts
from llmsched.core.configuration import PreemptionRules, Reservation
from llmsched.core.exchanges import Exchange
from llmsched.core.explain import TAKEN
from llmsched.core.policy import GangView, View
from llmsched.core.scheduler import turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.stages import evict
from llmsched.core.trial import Trial
from llmsched.core.turns import has_turned
from llmsched.core.windows import Windows
from llmsched.core.workload import Group, Option, Resources, Workload
from llmsched.errors import Bug
from llmsched.policies.registry import load

QUANTUM_S = 60.0


class Rounds:
    """Everybody is first in turn, a quantum each: an order that never comes to rest."""

    static = False

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        return ((hash_of(gang.id) + int(view.now // QUANTUM_S)) % 5,)


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def ranked(text: str, ordering: str = "finish_time_fair") -> Given:
    given = cluster(text).policies(ordering=ordering)
    return given.scheduling(preemption=PreemptionRules("by_rank"), order="best_effort", quantum_s=QUANTUM_S)


def work(name: str, gpus: int, **more: Any) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    return Workload(name, name, "task", (group,), min_size=gpus, max_size=gpus, **more)


def played(given: Given, jobs: list[tuple[float, Workload, float]], policies: Any = None) -> list[Any]:
    """Preemptions until all of (comes at, what, takes seconds) have ended; each does what it is told at once."""
    state, policies = given.state, policies or load(given.names)
    left = {f"{workload.id}/0": seconds for _, workload, seconds in jobs}
    events: list[tuple[float, int, Any]] = [(at, n, facts.Submitted(at, job)) for n, (at, job, _) in enumerate(jobs)]
    heapq.heapify(events)
    serial, preempted = len(events), []
    began: dict[str, float] = {}
    while events:
        at, _, fact = heapq.heappop(events)
        gang = state.gangs.get(getattr(fact, "gang", ""))
        if isinstance(fact, facts.Finished) and (gang is None or gang.attempt != fact.attempt or gang.leaving):
            fact = None
        plan = turn(state, [facts.Tick(at), *([fact] if fact else [])], policies)
        said: list[tuple[float, Any]] = [] if plan.wake_at is None else [(max(plan.wake_at, at), None)]
        for each in plan.decisions:
            if isinstance(each, decisions.Launch):
                said.append((at, facts.Bound(at, each.gang, each.attempt)))
                said.append((at + left[each.gang], facts.Finished(at, each.gang, each.attempt, "succeeded")))
                began[each.gang] = at
            elif isinstance(each, decisions.Preempt):
                preempted.append(each)
                left[each.gang] -= at - began[each.gang]
                said.append((at + 1.0, facts.Released(at + 1.0, each.gang, each.attempt)))
        for when, one in said:
            serial += 1
            heapq.heappush(events, (when, serial, replace(one, at=when) if one else None))
        if all(state.workloads[job.id].outcome for _, job, _ in jobs if job.id in state.workloads) and at > jobs[-1][0]:
            break
    assert all(state.workloads[job.id].outcome == "succeeded" for _, job, _ in jobs)
    return preempted


@pytest.mark.parametrize("told", [{}, {"estimated_runtime_s": 20_000.0}])
def test_two_that_are_alike_do_not_take_turns(told: dict[str, Any]) -> None:
    jobs = [(0.0, work("a", 4, **told), 20_000.0), (10.0, work("b", 4, **told), 20_000.0)]
    assert len(played(ranked("1 node x 4"), jobs)) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_exchanges_a_place_once_under_an_order_that_goes_round_in_circles(seed: int) -> None:
    chance = random.Random(seed)
    jobs = [(1.0 * n, work(f"w{n}", chance.choice([1, 1, 2, 3, 4])), chance.uniform(600, 6000)) for n in range(9)]
    given = ranked(chance.choice(["1 node x 4", "2 nodes x 4", "3 nodes x 2, 1 node x 4"]))
    preempted = played(given, jobs, replace(load(given.names), ordering=Rounds()))
    pairs = [frozenset((each.gang, each.beneficiary)) for each in preempted]
    assert preempted and len(pairs) == len(set(pairs)) and all(len(pair) == 2 for pair in pairs)
    assert all(one.reason == other.reason == "in_queue_rank" for one, other in pairwise(preempted))


def test_who_has_made_way_for_somebody_takes_the_place_of_somebody_else() -> None:
    given = ranked("1 node x 2", "priority").running("first", 1, priority=10).running("other", 1, priority=10)
    given.pending("better", 1, priority=50).after(QUANTUM_S)
    assert given.turn().decisions == [Preempt("other", "in_queue_rank"), Nominate("better", 1)]
    state = given.state
    for fact in (facts.Released(given.now, "other/0", 1), facts.Estimated(given.now, "other/0", 1.0)):
        state.apply(fact)
    given.after(1.0)
    assert given.turn().decisions == [Launch("better", 1)]
    assert [*state.exchanges.of("other/0")] == ["better/0"]
    state.gangs["other/0"].spec = replace(state.gangs["other/0"].spec, priority=90)  # it is urgent now
    state.waiting.discard(state.gangs["other/0"])
    state.gangs["other/0"].shape = None
    state.waiting.add(state.gangs["other/0"])
    decided = given.after(2 * QUANTUM_S).turn().decisions
    assert decided == [Preempt("first", "in_queue_rank"), Nominate("other", 1)], "better stays where it is"


def test_a_class_is_not_held_up_by_one_of_it_that_has_made_way() -> None:
    given = ranked("1 node x 1", "least_attained").running("runs", 1)
    given.pending("old", 1).pending("new", 1).after(QUANTUM_S)
    given.state.exchanges.note(Exchange("old/0", "runs/0", given.now, by_rank=True))
    given.state.gangs["runs/0"].served_gpu_s = 4000.0  # both that wait come first now
    assert given.turn().decisions == [Preempt("runs", "in_queue_rank"), Nominate("new", 1)]


def test_by_rank_a_higher_priority_whose_node_was_lost_comes_before_who_has_made_way_for_it() -> None:
    """It waited until the other one had ended: the pair had exchanged a place before."""
    given = ranked("1 node x 1", "priority").running("low", 1, priority=10).pending("high", 1, priority=90)
    state, node = given.state, given.nodes[0]
    given.after(QUANTUM_S)
    assert given.turn().decisions == [Preempt("low", "in_queue_rank"), Nominate("high", 1)]
    assert given.turn(facts.Released(given.now, "low/0", 1)).decisions == [Launch("high", 1)]
    given.after(1.0, facts.NodeLost(given.now + 1.0, node.id), facts.NodeJoined(given.now + 1.0, node))
    assert given.turn().decisions == [Launch("low", 1)], "high waits a moment, as it has failed"
    assert given.after(20.0).turn().decisions == [] and state.gangs["high/0"].blocked_by == ""
    decided = given.after(2 * QUANTUM_S).turn().decisions
    assert decided == [Preempt("low", "in_queue_rank"), Nominate("high", 1)]
    assert [*state.exchanges.of("high/0")] == ["low/0"]


def test_it_is_of_the_state_and_ends_with_one_of_the_two() -> None:
    given = ranked("1 node x 1").running("a", 1).pending("b", 1)
    state = given.state
    state.exchanges.note(Exchange("a/0", "b/0", 5.0, by_rank=True))
    state.exchanges.note(Exchange("b/0", "a/0", 6.0, by_rank=False))
    again = thaw(freeze(state))
    assert again.exchanges.parts() == state.exchanges.parts() == (Exchange("b/0", "a/0", 6.0, by_rank=True),)
    assert again.digest() == state.digest()
    state.apply(facts.Cancelled(given.now, "b", "ann"))
    assert state.exchanges.parts() == () and not state.exchanges.of("a/0")
    assert again.digest() != state.digest()


def equals() -> Given:
    """The older one may evict the newer one of its priority, and was evicted for it a moment ago."""
    given = cluster("1 node x 1").rules("lower_or_newer_equal_priority").pending("older", 1).running("newer", 1)
    given.state.exchanges.note(Exchange("older/0", "newer/0", given.now, by_rank=False))
    return given


@pytest.mark.parametrize(
    "happens",
    [
        lambda given: facts.Submitted(given.now, work("third", 2)),
        lambda given: facts.Configured(given.now, replace(given.state.configuration, version=2)),
        lambda given: facts.NodeJoined(given.now, replace(given.nodes[0], id="other", total=Resources(0))),
        lambda given: facts.Scaled(given.now, "older", 1),
        lambda given: facts.ForeignUse(given.now, given.nodes[0].id, Resources(0, 1)),
        lambda given: facts.DrainBegun(given.now, "nobody", None, "root"),
    ],
)
def test_no_reason_makes_a_pair_exchange_a_place_twice_before_something_happens_from_outside(happens: Any) -> None:
    given = equals()
    assert given.turn().decisions == [] and given.after(100_000.0).turn().decisions == []
    fact = happens(given)
    decided = given.turn(fact).decisions
    changes_nothing = isinstance(fact, facts.DrainBegun)  # no node of that name is there
    assert decided == ([] if changes_nothing else [Preempt("newer", "in_queue_priority"), Nominate("older", 1)])


def test_what_is_no_news_from_outside_lets_no_pair_exchange_a_place_again() -> None:
    given = equals()
    node = given.nodes[0]
    told = [
        facts.Bound(given.now, "newer/0", 1),
        facts.CheckpointPublished(given.now, "newer/0", 1, "file:///x"),
        facts.Estimated(given.now, "newer/0", 500.0),
        facts.NodeJoined(given.now, node),
        facts.ForeignUse(given.now, node.id, Resources()),
    ]
    for fact in told:
        assert given.turn(fact).decisions == []


def test_one_of_its_class_that_has_made_way_for_nobody_may_evict() -> None:
    """What keeps one back is its own: the next one of its class is asked, and at the next news so is this one."""
    given = equals()
    given.state.exchanges.begin_anew()
    given.state.exchanges.note(Exchange("older/0", "newer/0", given.now, by_rank=False))
    given.state.gangs["newer/0"].submitted_at += 50.0
    given.pending("second", 1)
    given.state.exchanges.note(Exchange("older/0", "newer/0", given.now, by_rank=False))
    assert given.turn().decisions == [Preempt("newer", "in_queue_priority"), Nominate("second", 1)]


def test_a_window_and_a_count_of_past_use_turn_the_clock() -> None:
    configuration = cluster("1 node x 1").state.configuration
    assert not has_turned(configuration, 0.0, 1e9)
    once = Reservation("once", 100.0, 50.0, gpus_milli=1000)
    hourly = Reservation("hourly", 100.0, 600.0, gpus_milli=1000, repeat="0 * * * *")
    for booked, moments in ((once, (100.0, 150.0)), (hourly, (3600.0, 4200.0, 7200.0, 7800.0))):
        given = replace(configuration, reservations=(booked,))
        for moment in moments:
            assert has_turned(given, moment - 1.0, moment) and not has_turned(given, moment, moment + 40.0)
    counted = replace(
        configuration.scheduling, usage_half_life_s=600.0, usage_k=1.0, fair_share="guarantee_then_weight"
    )
    given = replace(configuration, scheduling=counted)
    assert has_turned(given, 599.0, 600.0) and not has_turned(given, 600.0, 1199.0)
    for other in ({"usage_k": 0.0}, {"fair_share": "drf_total"}):  # past use moves no share
        assert not has_turned(replace(given, scheduling=replace(counted, **other)), 0.0, 1e6)


def test_after_a_turn_of_the_clock_a_pair_may_exchange_a_place_once_more() -> None:
    given = cluster("2 nodes x 1").reserve(5000.0, 10.0, "nobody", nodes=("n-0",))
    given.rules("lower_or_newer_equal_priority").scheduling(hold_after_s=0.0)
    given.running("fixed", 1, preemptible=False).running("newer", 1)
    given.pending("older", 1)
    given.state.gangs["newer/0"].submitted_at = given.now + 1.0
    given.state.exchanges.note(Exchange("older/0", "newer/0", given.now, by_rank=False))
    plan = given.turn().plan
    assert plan.decisions == [] and plan.wake_at == 5000.0
    assert given.after(5000.0 - given.now - 1.0).turn().decisions == []
    assert given.after(1.0).turn().decisions == [Preempt("newer", "in_queue_priority"), Nominate("older", 1)]


def test_nothing_but_the_door_makes_an_eviction() -> None:
    assert {*TAKEN} - {"resize"} == {*evict.FOR_SOMEBODY, *evict.FOR_NOBODY}
    assert not evict.FOR_SOMEBODY & evict.FOR_NOBODY
    for file in sorted(Path(llmsched.__file__).parent.rglob("*.py")):
        if not {"core", "policies"} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if isinstance(node, ast.Call) and name == "Preempt":
                assert file.name == "evict.py", f"{file}:{node.lineno} evicts somebody past stages/evict.py"


def test_the_door_lets_nobody_through_twice_nor_for_a_reason_without_a_row() -> None:
    given = equals()
    state = given.state
    with Trial(state) as trial:
        this = Pass(trial, load(given.names))
        older, newer = state.gangs["older/0"], state.gangs["newer/0"]
        assert not evict.may(this, newer, older)
        for reason in sorted(evict.FOR_SOMEBODY):
            with pytest.raises(Bug, match=f"newer/0 may not be evicted: {reason}, for older/0"):
                evict.evict(this, newer, reason, None, older)
        for reason in ("in_queue_priority", "somehow"):
            with pytest.raises(Bug, match=f"{reason}, for nobody"):
                evict.evict(this, newer, reason, None)
        state.exchanges.begin_anew()
        with pytest.raises(Bug, match="node_drain, for older/0"):
            evict.evict(this, newer, "node_drain", None, older)
        told = decisions.Preempt(newer.id, 1, 0.0, "fair_share", "third/0")
        this.plan.decisions.append(told)
        state.exchanges.note(Exchange("older/0", "newer/0", given.now, by_rank=False))
        with pytest.raises(Bug, match="newer/0 may not be evicted for older/0"):
            evict.instead(this, told, older, None)


def test_a_journal_in_which_one_was_evicted_for_itself_is_folded_to_its_end() -> None:
    given = cluster("1 node x 1").running("a", 1)
    given.state.apply(decisions.Preempt("a/0", 1, 0.0, "in_queue_rank", "a/0"))
    with pytest.raises(Bug, match="may not be evicted"), Trial(given.state) as trial:
        gang = given.state.gangs["a/0"]
        evict.evict(Pass(trial, load(given.names)), gang, evict.RANK, None, gang)
    for fact in (facts.Cancelled(1.0, "a", "ann"), facts.Released(2.0, "a/0", 1)):
        given.turn(fact)
    assert given.phase("a") == "cancelled"


def test_nobody_is_moved_together_onto_what_others_have_reserved() -> None:
    """It was moved to a reserved GPU for one that then was not let start where it had been, as the reservation took
    that GPU instead; so it went back, and was moved again 49 times."""
    given = cluster("2 nodes x 1").scheduling(consolidation=True).reserve(1.0, 5000.0, "bob", gpus=1)
    given.rules("lower_or_newer_equal_priority").running("half", 0.5).pending("whole", 1).after(10.0)
    assert given.turn().decisions == []
    free = cluster("3 nodes x 1").scheduling(consolidation=True).reserve(1.0, 5000.0, "bob", gpus=1)
    free.rules("lower_or_newer_equal_priority").running("half", 0.5).running("other", 0.5).pending("whole", 1)
    assert Launch("whole", 1) in free.after(10.0).turn().decisions


def test_one_that_has_run_for_long_is_not_moved_onto_what_comes_to_be_reserved_again_and_again() -> None:
    """It was taken to have waited for that long, and so to begin between two windows: when it had left it had not."""
    given = cluster("2 nodes x 2").scheduling(consolidation=True, hold_after_s=60.0).policies(placement="spread")
    given.reserve(7200.0, 300.0, "bob", gpus=1, repeat="0 * * * *").rules("lower_or_newer_equal_priority")
    given.running("one", 1).running("other", 1).turn()
    assert len({gang.held[0].node for gang in given.state.gangs.values()}) == 2
    given.after(200.0).pending("both", 2)
    assert given.turn().decisions == []


def test_a_reservation_takes_no_gpu_that_is_promised_nor_one_to_which_somebody_is_moved() -> None:
    """Which GPUs it takes follows from who holds what: what those leave who make room for somebody looked as if nobody
    needed it."""
    given = cluster("3 nodes x 4").scheduling(consolidation=True).policies(placement="spread")
    given.reserve(50.0, 5000.0, "bob", gpus=4).rules("lower_priority")
    given.running("one", 2, grace_s=30.0).running("two", 2, grace_s=30.0).running("bobs", 4, user="bob")
    given.pending("whole", 4).after(60.0)
    decided = given.turn()
    [told] = [each for each in decided.plan.decisions if isinstance(each, decisions.Preempt)]
    assert decided.decisions == [Preempt(told.gang[:-2], "consolidation"), Nominate("whole", 4)]
    promised = given.state.gangs["whole/0"].nomination
    assert promised is not None and told.goes_to
    given.after(1.0, facts.Finished(given.now + 1.0, "bobs/0", 1, "succeeded"))
    with Trial(given.state) as trial:
        [row] = Windows(trial).rows
    busy = {placed.node for placed in (*promised.placement, *told.goes_to)}
    assert not {node for node, _ in row.parts} & busy
    assert not any(row.nodes >> given.state.nodes[node].slot & 1 for node in busy)
    decided = given.turn(facts.Released(given.now, told.gang, 1))
    assert decided.decisions == [Launch("whole", 4), Launch(told.gang[:-2], 2)]
    launched = [each for each in decided.plan.decisions if isinstance(each, decisions.Launch)]
    assert launched[0].placement == promised.placement and launched[1].placement == told.goes_to
