"""By rank two gangs exchange a place once, whatever the ordering policy says."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import PreemptionRules
from llmsched.core.exchanges import made_way
from llmsched.core.policy import GangView, View
from llmsched.core.scheduler import turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.workload import Group, Option, Resources, Workload
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
    assert state.gangs["other/0"].made_way_for == ("better/0",)
    state.gangs["other/0"].spec = replace(state.gangs["other/0"].spec, priority=90)  # it is urgent now
    state.waiting.discard(state.gangs["other/0"])
    state.gangs["other/0"].shape = None
    state.waiting.add(state.gangs["other/0"])
    decided = given.after(2 * QUANTUM_S).turn().decisions
    assert decided == [Preempt("first", "in_queue_rank"), Nominate("other", 1)], "better stays where it is"


def test_a_class_is_not_held_up_by_one_of_it_that_has_made_way() -> None:
    given = ranked("1 node x 1", "least_attained").running("runs", 1)
    given.pending("old", 1).pending("new", 1).after(QUANTUM_S)
    given.state.gangs["old/0"].made_way_for = ("runs/0",)
    given.state.gangs["runs/0"].served_gpu_s = 4000.0  # both that wait come first now
    assert given.turn().decisions == [Preempt("runs", "in_queue_rank"), Nominate("new", 1)]


def test_it_is_of_the_state_and_only_of_those_that_are_there() -> None:
    given = ranked("1 node x 1").running("a", 1).pending("b", 1)
    gang = given.state.gangs["a/0"]
    gang.made_way_for = ("gone/0", "b/0")
    assert thaw(freeze(given.state)).gangs["a/0"].made_way_for == gang.made_way_for
    assert made_way(gang, "c/0", given.state.gangs) == ("b/0", "c/0")
