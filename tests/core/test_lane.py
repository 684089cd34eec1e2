"""By rank nobody starves: the lane of those who have waited long, and the bound that it keeps at any load."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, cluster

from llmsched.core import decisions, facts, lane
from llmsched.core.configuration import PreemptionRules, Queue, Quota
from llmsched.core.invariants import violations
from llmsched.core.lane import PART, PATIENCE, SHARE, due, part_s
from llmsched.core.nodes import Node
from llmsched.core.scheduler import decide, turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placement, Resources, Topology, Workload
from llmsched.policies.registry import load

HOLD_S = 600.0
QUANTUM_S = 60.0


def work(name: str, gpus: int = 1, flavors: tuple[str | None, ...] = (None,), **more: Any) -> Workload:
    group = Group("workers", 1, tuple(Option(flavor, Resources(1000)) for flavor in flavors))
    return Workload(name, name, "task", (group,), min_size=gpus, max_size=gpus, **more)


def ranked(text: str, ordering: str = "finish_time_fair", **more: Any) -> Given:
    given = cluster(text).policies(ordering=ordering)
    rules = PreemptionRules("by_rank")
    return given.scheduling(
        preemption=rules, order="best_effort", quantum_s=QUANTUM_S, hold_after_s=HOLD_S, elastic=False, **more
    )


def debt(given: Given, queue: str = "", flavor: str | None = None) -> float:
    """In seconds x thousandths of GPUs."""
    lanes, key = given.state.lanes, (queue, flavor)
    return lanes.pools[key].debt_at(given.state.now, lanes.pays(key, given.state.ledgers))


def place(given: Given, name: str) -> Placement:
    with Trial(given.state) as trial:
        found = find(Pass(trial, load(given.names)), given.state.gangs[f"{name}/0"], 1)
    assert not isinstance(found, Refused)
    return found


def test_who_was_owed_a_start_is_paid_for_before_the_next_one_is() -> None:
    """On two GPUs the lane has SHARE x 2 GPU-seconds a second."""
    given = ranked("1 node x 2", "priority").running("runs", 2)
    given.pending("first", 2).after(1.0).pending("second", 2).after(PATIENCE * HOLD_S + 2 * QUANTUM_S)
    stream = Stream(given, [])
    stream.left |= {"runs/0": 1e6, "first/0": 1e6, "second/0": 1e6}
    stream.began["runs/0"] = given.now
    stream._later(given.now, None)
    stream.until("none", given.now + 30.0)
    state = given.state
    assert given.phase("first") == "running" and state.gangs["first/0"].owed_s == HOLD_S
    begins = state.now + HOLD_S / SHARE
    stream.until("none", begins - 3 * QUANTUM_S)
    assert given.phase("second") == "waiting"
    stream.until("none", begins + QUANTUM_S)
    assert given.phase("second") == "running"


def test_what_a_gang_was_owed_and_has_not_used_is_given_back() -> None:
    given = ranked("1 node x 1")
    given.state.apply(facts.Submitted(0.0, work("a")))
    given.state.apply(decisions.Launch("a/0", 1, place(given, "a"), owed_s=100.0))
    given.state.apply(facts.Submitted(1.0, work("b")))
    given.state.apply(facts.Bound(1.0, "a/0", 1))
    assert debt(given) == pytest.approx(100_000.0 - SHARE * 1000)
    given.state.apply(facts.Finished(11.0, "a/0", 1, "succeeded"))
    assert debt(given) == pytest.approx(10_000.0 - SHARE * 11_000)
    given.after(1e5)
    assert debt(given) == 0.0


def test_places_that_are_promised_are_paid_for_at_once_and_given_back_with_the_promise() -> None:
    given = ranked("1 node x 1")
    given.state.apply(facts.Submitted(0.0, work("a")))
    places = place(given, "a")
    given.state.apply(decisions.Nominate("a/0", places, (), owed_s=100.0))
    given.state.apply(decisions.Nominate("a/0", places, (), owed_s=100.0))
    assert debt(given) == 100_000.0
    given.state.apply(decisions.Withdraw("a/0"))
    assert debt(given) == 0.0 and given.state.gangs["a/0"].owed_s == 0.0
    given.state.apply(decisions.Nominate("a/0", places, (), owed_s=50.0))
    given.state.apply(decisions.Launch("a/0", 1, places, owed_s=50.0))
    assert debt(given) == 50_000.0


def test_what_it_is_owed_is_what_it_seems_to_need_and_no_more_than_as_long_again_as_it_has_run() -> None:
    given = ranked("1 node x 1").running("a", 1).pending("b", 1, estimated_runtime_s=40.0)
    assert part_s(given.state.gangs["b/0"], HOLD_S) == 80.0, "run times may be wrong"
    a = given.state.gangs["a/0"]
    assert part_s(a, HOLD_S) == HOLD_S, "nobody knows how long it takes"
    given.state.apply(facts.Finished(3.0 * HOLD_S, "a/0", 1, "error"))
    assert part_s(a, HOLD_S) == pytest.approx(3.0 * HOLD_S - 1.0)


def test_who_has_run_for_its_part_is_not_behind() -> None:
    given = ranked("1 node x 1")
    given.state.apply(facts.Submitted(0.0, work("a")))
    given.state.apply(decisions.Launch("a/0", 1, place(given, "a")))
    given.state.apply(facts.Bound(0.0, "a/0", 1))
    given.state.apply(decisions.Preempt("a/0", 1, 0.0, "in_queue_rank"))
    given.state.apply(facts.Released(300.0, "a/0", 1))
    assert due(given.state.gangs["a/0"]) == pytest.approx(300.0 / PART)
    pool = given.state.lanes.pools["", None]
    moment = 300.0 / PART + PATIENCE * HOLD_S
    assert [*given.state.lanes.behind(pool, HOLD_S, True, (moment - 1.0).__ge__)] == []
    assert [row[1] for row in given.state.lanes.behind(pool, HOLD_S, True, (moment + 1.0).__ge__)] == ["a/0"]


def test_who_may_not_start_does_not_grow_older() -> None:
    given = ranked("1 node x 1")
    given.state.apply(facts.Submitted(0.0, work("a")))
    given.state.apply(decisions.Launch("a/0", 1, place(given, "a")))
    given.state.apply(facts.Finished(100.0, "a/0", 1, "error"))
    gang = given.state.gangs["a/0"]
    assert gang.stake is None and given.state.lanes.pools == {}, "a pool that nobody is in is forgotten"
    given.after(500.0)
    assert due(gang) == pytest.approx(given.now - 100.0)


def test_a_pool_is_of_a_flavor_that_has_enough_and_of_what_a_queue_owns() -> None:
    given = ranked("1 node x 2 A, 1 node x 4 B")
    for number, flavors in enumerate((("A",), ("A", "B"), ("C", "B"), (None,))):
        given.state.apply(facts.Submitted(0.0, work(f"w{number}", 3 if number else 1, flavors)))
    stakes = [gang.stake for gang in given.state.gangs.values()]
    assert [stake and stake.pool for stake in stakes] == [("", "A"), ("", "B"), ("", "B"), ("", None)]
    owned = ranked("1 node x 4").queue("few", 1).queue("many", 3)
    owned.state.apply(facts.Submitted(0.0, work("f", queue="few")))
    lanes, ledgers = owned.state.lanes, owned.state.ledgers
    assert {key: lanes.capacity(key, ledgers) for key in lanes.pools} == {("few", None): 1000}


def test_gangs_that_want_the_same_gpus_are_in_one_pool_whatever_was_there_when_they_came() -> None:
    """Who came while its flavor was away stood in a pool of its own for good, with a debt of its own."""
    given, joins = ranked("1 node x 2 A"), facts.NodeJoined(1.0, Node("n1", Resources(4000, 64000, 1 << 40), "B"))
    for name, fact in (("before", None), ("after", joins)):
        if fact is not None:
            given.state.apply(fact)
        given.state.apply(facts.Submitted(1.0, work(name, 2, ("B",))))
    pools = given.state.lanes.pools
    assert {key: pool.members for key, pool in pools.items()} == {("", "B"): 2}
    pools["", "B"].lend(700.0, 1.0, 0.0)
    again = thaw(freeze(given.state))
    for state in (given.state, again):
        state.apply(facts.NodeLost(1.0, "n1"))  # one flavor is left, which is one pool
        assert [(key, pool.members, pool.debt) for key, pool in state.lanes.pools.items()] == [(("", None), 2, 700.0)]
        stake = state.gangs["before/0"].stake
        assert stake is not None and stake.pool == ("", None) and stake.since == 1.0, "its age is as it was"
    assert given.state.digest() == again.digest()


@pytest.mark.parametrize("elasticity", ["even", "marginal_throughput", "goodput"])
@pytest.mark.parametrize("ordering", ["finish_time_fair", "priority", "fifo", "fair_share"])
@pytest.mark.parametrize("high", [50, 90])
def test_whose_queue_was_there_first_decides_nothing(elasticity: str, ordering: str, high: int) -> None:
    """Of two queues that are owed what one node has, the one whose line began first got it: who had come later, and had
    a lower priority. The line had begun with one that was cancelled."""
    given = ranked("0 nodes x 1", ordering).queue("a", 1).queue("b", 1).policies(elasticity=elasticity)
    given.scheduling(elastic=True)
    policies = load(given.names)
    rows = [("early", "a", 2, 2, 50), ("second", "b", 2, 4, high), ("third", "a", 2, 7, 50)]
    for at, (name, queue, least, most, priority) in enumerate(rows):
        spec = replace(work(name, queue=queue, priority=priority), kind="train", min_size=least, max_size=most)
        turn(given.state, [facts.Submitted(10.0 * at, spec)], policies)
    given.state.apply(facts.Cancelled(41.0, "early", "ann"))
    turn(given.state, [facts.Tick(PATIENCE * HOLD_S + 100.0)], policies)
    given.state.apply(facts.NodeJoined(2.5 * PATIENCE * HOLD_S, Node("n", Resources(3000, 64000, 1 << 40))))
    again = thaw(freeze(given.state))
    for state in (given.state, again):
        launched = [each.gang for each in decide(state, policies).decisions if isinstance(each, decisions.Launch)]
        assert launched == ["second/0"]


def test_work_without_gpus_is_in_a_pool_as_well() -> None:
    given = ranked("1 node x 1")
    none = (Group("workers", 1, (Option(None, Resources(0, 1000)),)),)
    for name in ("a", "b"):
        given.state.apply(facts.Submitted(0.0, replace(work(name), groups=none)))
    given.state.apply(facts.Cancelled(1.0, "a"))
    assert given.turn().decisions == [Launch("b", 0.0)]
    assert given.state.lanes.pools["", None].members == 1


def test_lanes_are_of_the_state() -> None:
    given = ranked("1 node x 2").running("a", 1).running("b", 1)
    for number in range(5):
        given.state.apply(facts.Submitted(given.now + number, work(f"w{number}")))
    given.state.apply(facts.Finished(given.now + 9.0, "a/0", 1, "succeeded"))
    given.state.apply(decisions.Launch("w4/0", 1, place(given, "w4"), owed_s=700.0))
    again = thaw(freeze(given.state))
    assert again.lanes.parts() == given.state.lanes.parts() != () and again.digest() == given.state.digest()
    rows = []
    for state in (again, given.state):
        state.apply(facts.Finished(given.now + 500.0, "b/0", 1, "succeeded"))
        rows.append([*state.lanes.behind(state.lanes.pools["", None], HOLD_S, True, (5000.0).__ge__)])
    assert again.digest() == given.state.digest()
    assert rows[0] == rows[1] and [row[1] for row in rows[0]] == [f"w{number}/0" for number in range(4)]


class Stream:
    """A cluster by rank on which work does at once what it is told; `ends` says when each gang ended."""

    def __init__(self, given: Given, jobs: list[tuple[float, Workload, float]]) -> None:
        self.state: State = given.state
        self.policies = load(given.names)
        self.left = {f"{job.id}/0": seconds for _, job, seconds in jobs}
        self.events: list[tuple[float, int, Any]] = [
            (at, number, facts.Submitted(at, job)) for number, (at, job, _) in enumerate(jobs)
        ]
        heapq.heapify(self.events)
        self.serial = len(jobs)
        self.began: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.starts: dict[str, list[float]] = {}
        self.wakes: set[float] = set()

    def until(self, ended: str, latest: float) -> float | None:
        while self.events and self.events[0][0] <= latest:
            at, _, fact = heapq.heappop(self.events)
            gang = self.state.gangs.get(getattr(fact, "gang", ""))
            if isinstance(fact, facts.Finished):
                if gang is None or gang.attempt != fact.attempt or gang.leaving:
                    fact = None
                else:
                    self.ends[fact.gang] = at
            plan = turn(self.state, [facts.Tick(at), *([fact] if fact else [])], self.policies)
            for decision in plan.decisions:
                self._carry_out(at, decision)
            if ended in self.ends:
                return self.ends[ended]
            if plan.wake_at is not None and plan.wake_at not in self.wakes:
                self.wakes.add(plan.wake_at)
                self._later(max(plan.wake_at, at), None)
        return None

    def _carry_out(self, at: float, decision: Any) -> None:
        if isinstance(decision, decisions.Launch):
            self.began[decision.gang] = at
            self.starts.setdefault(decision.gang, []).append(at)
            self._later(at, facts.Bound(at, decision.gang, decision.attempt))
            end = at + self.left[decision.gang]
            self._later(end, facts.Finished(end, decision.gang, decision.attempt, "succeeded"))
        elif isinstance(decision, decisions.Preempt):
            self.left[decision.gang] -= at - self.began[decision.gang]
            self._later(at + 1.0, facts.Released(at + 1.0, decision.gang, decision.attempt))
        elif isinstance(decision, decisions.Resize):
            self._later(at, facts.Resized(at, decision.gang, decision.attempt, len(decision.placement)))

    def _later(self, at: float, fact: Any) -> None:
        self.serial += 1
        heapq.heappush(self.events, (at, self.serial, fact))


ORDERINGS = ["finish_time_fair", "priority", "shortest_remaining", "least_attained", "fair_share"]


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("told", [True, False])
def test_by_rank_a_large_gang_is_not_starved_by_single_gpus_that_stream_by(ordering: str, told: bool) -> None:
    """They ask for 15/16 of four GPUs without a pause. It has its part, but for HOLD_S, a quantum and what is lost when
    it is evicted."""
    runs_s, every_s = 75.0, 20.0
    known = {"estimated_runtime_s": runs_s} if told else {}
    jobs = [(every_s * number, work(f"s{number}", **known), runs_s) for number in range(390)]
    jobs.append((305.0, work("large", 4, **({"estimated_runtime_s": 150.0} if told else {})), 150.0))
    given = ranked("1 node x 4", ordering)
    ended = Stream(given, jobs).until("large/0", 8000.0)
    assert ended is not None and ended <= 305.0 + 150.0 / PART + PATIENCE * HOLD_S + 4 * QUANTUM_S


@pytest.mark.parametrize(("load", "seed"), [(0.6, 0), (1.0, 1), (1.2, 2), (1.5, 3), (1.2, 4)])
def test_by_rank_everybody_ends_within_the_bound_at_any_load(
    load: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random streams of equal priority, mostly the shortest first: some may not be evicted, some are elastic, some take
    either of two flavors, some tell how long they run. What comes later adds nothing to the bound of who came early."""
    monkeypatch.setattr(lane, "SHARE", 0.2)  # so that the bound of many is within a short stream
    chance = random.Random(seed)
    hold_s, lasts_s, gpus = 100.0, 1800.0, {"A": 4, "B": 2}
    jobs: list[tuple[float, Workload, float]] = []
    at = 0.0
    while at < lasts_s:
        runs_s = chance.choice([20.0, 50.0, 90.0])
        size = chance.choice([1, 1, 1, 2])
        told = {"estimated_runtime_s": runs_s * chance.choice([0.3, 1.0, 4.0])} if chance.random() < 0.5 else {}
        flavors = chance.choice([("A",), ("A", "B"), ("B",), ("C", "A")])
        job = work(f"w{len(jobs)}", size, flavors, preemptible=chance.random() < 0.7, **told)
        if len(jobs) == 1:
            job, runs_s = work("large", 4, ("A",), estimated_runtime_s=200.0), 50.0  # all of A
        if chance.random() < 0.3:
            job = replace(job, max_size=size + 1)
        jobs.append((at, job, runs_s))
        at += chance.expovariate(load * sum(gpus.values()) / (53.3 * 1.4))
    given = ranked("1 node x 4 A, 1 node x 2 B", ["shortest_remaining", "finish_time_fair"][seed % 3 == 2])
    given.scheduling(elastic=seed > 3, hold_after_s=hold_s, quantum_s=20.0)
    stream = Stream(given, jobs)
    stream.until("none", 2 * lasts_s)
    before, fixed_s = {"A": 0.0, "B": 0.0}, 0.0
    looked_at = []
    for came, job, runs_s in jobs[:20]:
        pool = next(option.flavor for option in job.groups[0].options if option.flavor in gpus)
        before[pool] += job.min_size * max(hold_s, 2 * runs_s)
        fixed_s += 0.0 if job.preemptible else runs_s
        owed_s = before[pool] / (0.2 * gpus[pool])
        bound = came + PATIENCE * hold_s + runs_s / PART + owed_s + fixed_s + 5 * 20.0
        if bound <= lasts_s:
            looked_at.append(job.id)
            assert stream.ends.get(f"{job.id}/0", 1e9) <= bound, f"{job.id} at {load}"
    assert "large" in looked_at and len(looked_at) > 2


@pytest.mark.parametrize("wide_at", [None, 100.5, 300.5])
def test_by_rank_one_that_borrows_takes_no_turn_of_those_that_its_queue_owns_enough_for(wide_at: float | None) -> None:
    """All of another queue's work was taken to make way for it as well, whose own that is: so it was owed a start in
    every ranking, never got one, and nobody after it in its queue was owed any."""
    given = ranked("1 node x 8").queue("a", 4).queue("b", 4).scheduling(preemption=PreemptionRules("by_rank", "any"))
    jobs = [(7.0 * number, work(f"s{number}", queue="ab"[number % 2]), 60.0) for number in range(300)]
    jobs += [(wide_at, work("wide", 5, queue="a"), 300.0)] if wide_at is not None else []
    jobs.append((200.5, work("large", 4, queue="a"), 300.0))
    stream = Stream(given, jobs)
    assert stream.until("large/0", 2000.0) is not None
    assert stream.starts["large/0"][0] <= 200.5 + PATIENCE * HOLD_S + QUANTUM_S


def test_of_those_held_for_who_asks_for_what_its_queue_owns_comes_before_an_older_one_that_borrows() -> None:
    """One that borrowed was overdue first, and its places, which nobody would let go of, were kept from the gang, so
    that this had no planned start at all: newer work of its own queue went past it for ever."""
    given = cluster("1 node x 8 A, 1 node x 4 B").queue("a", 11).queue("b", 1).rules("lower_priority", "any")
    given.scheduling(hold_after_s=HOLD_S, order="best_effort")
    jobs = [(1.0 + 4.2 * number, work(f"s{number}", queue="a"), 60.0) for number in range(600)]
    jobs += [(2.0 + 92.3 * number, work(f"two{number}", 2, queue="b"), 60.0) for number in range(27)]
    whole = Group("workers", 1, (Option(None, Resources(8000)),))
    jobs.append((300.0, Workload("large", "large", "task", (whole,), queue="a"), 300.0))
    stream = Stream(given, sorted(jobs, key=lambda job: job[0]))
    assert stream.until("large/0", 2500.0) is not None
    assert stream.starts["large/0"][0] <= 300.0 + HOLD_S + 2 * 60.0


def test_nobody_is_evicted_for_itself() -> None:
    """One that was to grow was a victim in the same ranking, and so was taken to leave for itself; the fact of its end
    could then not be folded any more."""

    def of(name: str, queue: str, low: int, most: int, priority: int = 50, **more: Any) -> Workload:
        sizes = {"min_size": low, "max_size": most, "priority": priority, "queue": queue}
        return Workload(name, name, "train", (Group("w", low, (Option(None, Resources(1000)),)),), **sizes, **more)

    given = Given(
        [Node(f"n{number}", Resources(gpus), None, (), f"n{number}") for number, gpus in ((0, 4000), (1, 2000))]
    )
    given.policies(ordering="shortest_remaining", elasticity="even")
    given.queues += [Queue(name, "all", (("*", Quota(gpus)),)) for name, gpus in (("a", 1000), ("b", 0), ("c", 1000))]
    given.scheduling(
        preemption=PreemptionRules("by_rank", "any"), hold_after_s=300.0, quantum_s=60.0, restart_cost_s=0.0
    )
    one, curve = Topology("node"), ((2, 1.7), (4, 2.5))
    serve = Workload("s", "s", "serve", (Group("w", 1, (Option(None, Resources(1000)),)),), queue="c")
    jobs = [
        (183.0, serve),
        (300.1, of("wide", "b", 1, 2, 80, topology=one)), (307.9, of("fix", "a", 2, 2, 80, topology=one)),
        (659.5, of("low", "a", 2, 5, 20, speedup=curve)), (781.3, of("two", "c", 2, 2, 20)),
        (975.5, of("grows", "c", 1, 7, speedup=curve)),
    ]  # fmt: skip
    stream = Stream(given, [(at, job, 1e6) for at, job in jobs])
    evicted: list[tuple[str, str]] = []
    carry_out = stream._carry_out

    def watched(at: float, decision: Any) -> None:
        if isinstance(decision, decisions.Preempt):
            evicted.append((decision.gang, decision.beneficiary))
        carry_out(at, decision)

    stream._carry_out = watched  # type: ignore[method-assign]
    stream.until("none", 2100.0)
    assert evicted and all(gang != beneficiary for gang, beneficiary in evicted)


def test_two_that_start_in_one_ranking_are_not_promised_the_same_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the sake of an elastic gang that came after it one of fixed size stood where it had been taken to start, and
    so no more where it was to start by then."""

    def checked(*args: Any) -> Any:
        plan = pass_of(*args)
        assert violations(given.state) == []
        return plan

    pass_of = turn
    monkeypatch.setitem(globals(), "turn", checked)
    nodes = enumerate((2000, 2000, 8000))
    given = Given([Node(f"n{number}", Resources(gpus), None, (), f"n{number}") for number, gpus in nodes])
    given.policies(ordering="priority").scheduling(
        preemption=PreemptionRules("by_rank", "any"), hold_after_s=300.0, quantum_s=60.0, backfill="easy"
    )

    def of(name: str, count: int, each: int, priority: int = 50, most: int = 0) -> Workload:
        group = Group("w", 1, (Option(None, Resources(each)),))
        return Workload(
            name, name, "train", (group,), priority=priority, min_size=count, max_size=max(count, most)
        )  # fmt: skip

    jobs = [
        (304.9, of("low", 1, 2000, 20)), (454.7, of("four", 4, 1000, 80)), (519.7, of("two", 2, 1000, 80)),
        (645.0, of("large", 4, 2000)), (770.0, of("half", 1, 500, 90)), (926.5, of("fixed", 1, 2000)),
        (953.7, of("grows", 2, 1000, most=3)),
    ]  # fmt: skip
    stream = Stream(given, [(at, job, 1e5) for at, job in jobs])
    stream.until("none", 1000.0)
    assert {"fixed/0", "grows/0"} <= stream.starts.keys()


def test_who_had_waited_long_runs_its_part_before_it_is_evicted_again() -> None:
    given = ranked("1 node x 1", "priority")
    given.running("runs", 1).pending("waits", 1).after(4 * HOLD_S)
    stream = Stream(given, [])
    stream.left |= {"runs/0": 50_000.0, "waits/0": 50_000.0, "urgent/0": 100.0}
    stream.began["runs/0"] = given.now
    stream._later(given.now, None)
    stream.until("none", given.now + QUANTUM_S)
    assert given.phase("waits") == "running" and given.state.gangs["waits/0"].owed_s
    stream._later(given.state.now + 1.0, facts.Submitted(given.state.now + 1.0, work("urgent", priority=90)))
    stream.until("urgent/0", given.state.now + 2 * HOLD_S)
    assert "urgent/0" in stream.ends, "whoever has a higher priority does not wait for it"


def test_it_may_be_switched_off() -> None:
    given = ranked("1 node x 1", "priority").scheduling(hold_after_s=0.0)
    given.running("runs", 1).pending("waits", 1).after(100 * HOLD_S)
    assert given.turn().decisions == []


def test_a_ranking_that_was_cut_goes_on_in_a_state_that_was_folded_again() -> None:
    given = ranked("40 nodes x 4", "priority")
    journal: list[Any] = []
    state = State()

    def say(*entries: Any) -> None:
        for entry in entries:
            state.apply(entry)
            journal.append(entry)

    say(facts.Configured(0.0, given.state.configuration))
    say(*(facts.NodeJoined(0.0, node) for node in given.nodes))
    say(*(facts.Submitted(1.0, work(f"low{number}", priority=10)) for number in range(160)))
    policies = load(given.names)
    cuts = 0
    for at in (1.0, 1.0, 2.0, 30.0, 130.0, 130.0, 131.0, 132.0, 140.0):
        if at == 30.0:
            say(*(facts.Submitted(30.0, work(f"high{number}", priority=50)) for number in range(150)))
        say(facts.Tick(at))
        plan = decide(state, policies)
        again = State()
        for entry in journal:
            again.apply(entry)
        assert decide(again, policies).decisions == plan.decisions
        assert decide(thaw(freeze(state)), policies).decisions == plan.decisions
        say(*plan.decisions)
        cuts += plan.is_cut
    assert cuts and sum(gang.is_holding() for gang in state.gangs.values()) == 160
    assert sum(isinstance(entry, decisions.Preempt) for entry in journal) == 150


@pytest.mark.parametrize("streams", ["singles", "elastic"])
def test_elastic_work_is_not_starved_either(streams: str) -> None:
    """By goodput it rests: small ones that come without a pause do more with the GPUs, or fixed ones take them all."""
    most = 2 if streams == "elastic" else 1
    small = [replace(work(f"s{number}"), max_size=most) for number in range(400 // most)]
    jobs = [(20.0 * most * number, each, 75.0) for number, each in enumerate(small)]
    jobs.append((305.0, replace(work("large", 4), max_size=8), 100.0))
    given = ranked("1 node x 4").scheduling(elastic=True)
    stream = Stream(given, jobs)
    ended = stream.until("large/0", 7900.0)
    assert ended is not None and ended <= 305.0 + 100.0 / PART + PATIENCE * HOLD_S + 4 * QUANTUM_S


@pytest.mark.parametrize("priority", [90, 50])
def test_elastic_work_that_has_waited_long_takes_from_its_own_priority_and_from_none_above(priority: int) -> None:
    """Two GPUs of four went to a lower priority, for whose sake the higher one ended 8,000 s later."""
    given = ranked("1 node x 4", "priority").scheduling(elastic=True)
    jobs = [(10.0 * number, replace(work(f"low{number}", 2), max_size=4), 400.0) for number in range(2)]
    jobs.append((30.0, replace(work("runs", 2, priority=priority), max_size=4), 4000.0))
    stream = Stream(given, jobs)
    stream.until("runs/0", 3500.0)
    sizes = {name: given.state.gangs[f"{name}/0"].size for name in ("runs", "low0", "low1")}
    if priority == 90:
        assert sizes == {"runs": 4, "low0": 0, "low1": 0}
    assert ("low0/0" in stream.ends) == (priority == 50)
