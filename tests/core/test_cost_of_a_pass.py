"""A pass asks about what has changed, however many wait. Counted in keys of the ordering policy, not in seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, cluster

from llmsched.core import facts
from llmsched.core.answers import Elasticity, Index
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import PreemptionRules
from llmsched.core.nodes import Node
from llmsched.core.policy import View
from llmsched.core.records import GangState
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.stages import place, victims
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.elasticity import goodput
from llmsched.policies.registry import load

WAITING = 200


class Counted:
    """An ordering whose keys move with the clock, and how often it was asked for one."""

    static = False

    def __init__(self) -> None:
        self.asked = 0

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]:
        self.asked += 1
        return (-gang.spec.priority, view.age_s(gang))


def full(given: Given) -> tuple[Given, Counted, Any]:
    """Everything is taken, and many wait for one GPU or for two."""
    ordering = Counted()
    policies = replace(load(given.names), ordering=ordering)
    for number in range(4):
        given.running(f"r{number}", 1)
    for number in range(WAITING):
        given.pending(f"w{number}", 1 + number % 2)
    turn(given.state, [facts.Tick(given.now)], policies)
    ordering.asked = 0
    return given, ordering, policies


def who_looks_for_places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each workload for which places are looked for from now on."""
    looked: list[str] = []
    find = place.find

    def counted(this: Any, gang: GangState, *more: Any, **options: Any) -> Any:
        looked.append(gang.workload_id)
        return find(this, gang, *more, **options)

    monkeypatch.setattr(place, "find", counted)
    return looked


@pytest.mark.parametrize("knobs", [{}, {"order": "best_effort"}, {"hold_after_s": 0.0}])
def test_a_submission_to_a_full_cluster_asks_nobody_who_was_refused(knobs: dict[str, Any]) -> None:
    given, ordering, policies = full(cluster("1 node x 4").scheduling(**knobs))
    given.pending("like", 1).pending("other", 3)
    plan = turn(given.state, [], policies)
    assert ordering.asked <= 2 and not plan.decisions
    assert given.state.gangs["like/0"].reason is not None and given.state.gangs["other/0"].reason is not None


def test_nor_does_it_where_a_higher_priority_evicts_a_lower_one() -> None:
    given, ordering, policies = full(cluster("1 node x 4").rules(within_queue="lower_priority"))
    given.pending("like", 1)
    assert not turn(given.state, [], policies).decisions
    assert ordering.asked <= 1


def test_while_a_place_is_held_for_one_the_others_are_looked_at_up_to_a_bound() -> None:
    given, ordering, policies = full(cluster("1 node x 4"))
    given.after(1800.0)
    given.after(0.0, facts.Finished(given.now, "r0/0", 1, "succeeded"))
    turn(given.state, [], policies)
    ordering.asked = 0
    given.pending("like", 1)
    turn(given.state, [], policies)
    assert ordering.asked <= WAITING


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_of_equals_behind_a_planned_start_one_looks_for_places_and_a_shorter_one_still_starts(
    backfill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of fifty looked, at every pass, for what the one before it had been refused."""
    given = cluster("1 node x 8").scheduling(backfill=backfill, order="strict_fifo").policies(ordering="fifo")
    given.running("a", 4, ends_in=1000.0).running("b", 2, ends_in=3000.0)
    given.pending("head", 6, estimated_runtime_s=500.0)
    for number in range(50):
        given.pending(f"w{number}", 2, estimated_runtime_s=5000.0 + number)
    given.pending("other", 1, estimated_runtime_s=5000.0)
    given.pending("c", 4, estimated_runtime_s=50_000.0).pending("short", 2, estimated_runtime_s=900.0)
    looked = who_looks_for_places(monkeypatch)
    decided = given.decide().decisions
    assert Launch("short", 2) in decided
    assert len({name for name in looked if name.startswith("w")}) <= 12, "and those few that get a planned start"


def test_when_one_gpu_becomes_free_those_that_need_more_are_not_ordered() -> None:
    given, ordering, policies = full(cluster("1 node x 4"))
    given.after(1.0, facts.Finished(given.now, "r0/0", 1, "succeeded"))
    assert len(turn(given.state, [], policies).decisions) == 1
    assert ordering.asked == WAITING // 2
    assert given.decide().why("w1") == "needs 1 x 2 GPU; 0 fit now on 1 node"


def of_eight_queues(many: int) -> tuple[Given, Counted, Any]:
    """Each owns an eighth and holds it, and so many wait in each; whoever owns more than it has may take it back."""
    given, ordering = cluster("4 nodes x 8"), Counted()
    for queue in range(8):
        given.queue(f"q{queue}", gpus=4)
    given.rules(within_queue="lower_priority", reclaim="any")
    policies = replace(load(given.names), ordering=ordering)
    for queue in range(8):
        for number in range(4):
            given.running(f"r{queue}{number}", 1, queue=f"q{queue}")
    for number in range(many):
        given.pending(f"w{number}", 1 + number % 2, queue=f"q{number % 8}")
    turn(given.state, [facts.Tick(given.now)], policies)
    ordering.asked = 0
    return given, ordering, policies


def test_a_submission_to_one_of_several_queues_asks_nobody_of_the_others() -> None:
    given, ordering, policies = of_eight_queues(WAITING)
    given.pending("like", 2, queue="q3")
    assert not turn(given.state, [], policies).decisions
    assert ordering.asked == 0
    given.pending("other", 3, queue="q3")
    assert not turn(given.state, [], policies).decisions
    assert ordering.asked == 0, "nobody of its own queue can get anything either"


def test_when_one_ends_and_another_starts_nobody_who_could_take_nothing_is_asked_twice() -> None:
    given, ordering, policies = of_eight_queues(WAITING)
    ended = given.state.gangs["r30/0"]
    given.after(1.0, facts.Finished(given.now, ended.id, ended.attempt, "succeeded"))
    (launch,) = turn(given.state, [], policies).decisions
    assert launch.gang.startswith("w")  # type: ignore[union-attr]
    ordering.asked = 0
    started = given.state.gangs[launch.gang]  # type: ignore[union-attr]
    given.after(1.0, facts.Bound(given.now, started.id, started.attempt))
    assert not turn(given.state, [], policies).decisions
    assert ordering.asked <= 2 * (WAITING // 8), "those of its own queue, of which one is there less"


def test_a_promise_that_is_kept_where_it_was_made_gives_nobody_a_reason_to_ask() -> None:
    given, ordering, policies = full(cluster("1 node x 4").rules(within_queue="lower_priority"))
    given.pending("first", 1, priority=90)
    turn(given.state, [], policies)
    (victim,) = given.state.vacating
    given.after(1.0, facts.Released(given.now, victim, 1))
    assert [type(one).__name__ for one in turn(given.state, [], policies).decisions] == ["Launch"]
    ordering.asked = 0
    given.after(1.0, facts.Bound(given.now, "first/0", 1))
    assert not turn(given.state, [], policies).decisions
    assert ordering.asked == 0


@pytest.mark.parametrize("knobs", [{}, {"preemption": PreemptionRules("lower_priority", "any")}])
def test_requests_that_all_differ_are_counted_where_somebody_reads_of_them(
    knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a memory of its own, so each is a class: whoever cannot start is left out by the GPUs that it needs."""
    given = cluster("1 node x 4").scheduling(**knobs)
    for number in range(4):
        given.running(f"r{number}", 1)
    for number in range(WAITING):
        group = Group("workers", 1, (Option(None, Resources(2000, 0, number + 1)),))
        given.state.apply(facts.Submitted(given.now, Workload(f"w{number}", f"w{number}", "train", (group,))))
    told = 0
    explain = place.Search.explain

    def counted(search: place.Search, found: place.Refused) -> place.Refused:
        nonlocal told
        told += 1
        return explain(search, found)

    monkeypatch.setattr(place.Search, "explain", counted)
    given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded"))
    told = 0
    given.after(1.0)
    turn(given.state, [facts.Finished(given.now, "r1/0", 1, "succeeded")], load(given.names))
    assert told <= 2
    before = told
    reason = given.state.gangs["w199/0"].reason
    assert reason is not None and reason.code == "nodes" and told == before + 1
    assert given.state.gangs["w199/0"].reason is reason and told == before + 1


def test_a_reason_that_is_read_late_has_the_numbers_of_that_moment() -> None:
    given = cluster("2 nodes x 2")
    for number in range(4):
        given.running(f"r{number}", 1)
    given.pending("large", 2).pending("small", 1)
    given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded"))
    given.after(1.0, facts.NodeJoined(given.now, Node("more", Resources(1000))))
    assert given.state.gangs["large/0"].reason is not None
    assert ("nodes", 3) in given.state.gangs["large/0"].reason.counts


@pytest.mark.parametrize("knobs", [{}, {"preemption": PreemptionRules("by_rank"), "quantum_s": 60.0},
                                   {"fair_share": "drf_total"}])  # fmt: skip
def test_requests_that_differ_in_memory_alone_stand_in_one_order(
    knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each class somebody was looked for whenever one ended, though all of them needed as many GPUs."""
    given = cluster("1 node x 4").scheduling(**knobs)
    for number in range(4):
        given.running(f"r{number}", 1)
    for number in range(WAITING):
        group = Group("workers", 1, (Option(None, Resources(1000 + number % 2 * 1000, 0, number + 1)),))
        work = Workload(f"w{number}", f"w{number}", "train", (group,), estimated_runtime_s=60.0 + number)
        given.state.apply(facts.Submitted(given.now, work))
    given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded"))
    asked, bound = 0, Index.bound

    def counted(index: Index, now: float) -> tuple[Any, ...]:
        nonlocal asked
        asked += 1
        return bound(index, now)

    monkeypatch.setattr(Index, "bound", counted)
    given.after(1.0)
    assert len(given.turn(facts.Finished(given.now, "r1/0", 1, "succeeded")).decisions) == 1
    assert asked <= 8


def test_nor_is_anybody_of_them_asked_for_the_sake_of_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any reservation every one of them was asked, at every pass, though nothing was free."""
    given = cluster("2 nodes x 4").scheduling(preemption=PreemptionRules("lower_priority", "any"))
    given.reserve(90_000.0, 3600.0, "bob", gpus=1).reserve(95_000.0, 3600.0, "bob", gpus=2)
    for number in range(8):
        given.running(f"r{number}", 1)
    for number in range(WAITING):
        group = Group("workers", 1, (Option(None, Resources(1000 + number % 2 * 1000, 0, number + 1)),))
        work = Workload(f"w{number}", f"w{number}", "train", (group,), estimated_runtime_s=60.0 + number)
        given.state.apply(facts.Submitted(given.now, work))
    given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded"))
    looked = who_looks_for_places(monkeypatch)
    given.after(1.0)
    assert len(given.turn(facts.Finished(given.now, "r1/0", 1, "succeeded")).decisions) == 1
    assert len({*looked}) <= 3


def test_of_those_that_the_same_reservation_keeps_out_one_looks_for_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred of a class did at each end, as another one might run for less: 56 ms with three reservations. Those of
    which nobody knows how long they run get the same answer; one that ends before the window opens starts."""
    given = cluster("2 nodes x 4").reserve(20_000.0, 3600.0, "bob", gpus=8)
    for number in range(8):
        given.running(f"r{number}", 1)
    for number in range(WAITING):
        given.pending(f"w{number}", 1)
    given.turn()
    looked = who_looks_for_places(monkeypatch)
    given.after(1.0)
    assert given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded")).decisions == []
    assert len({*looked}) == 1
    told = [gang.reason.message.code for gang in given.state.gangs.values() if gang.reason is not None]
    assert told[:100] == ["reservation.no_end"] * 100
    given.after(1.0).pending("short", 1, estimated_runtime_s=60.0)
    assert given.turn().decisions == [Launch("short", 1.0)]


def one_ends(given: Given) -> None:
    """And who starts in its place runs."""
    gangs = given.state.gangs
    runs = next(name for name, gang in gangs.items() if gang.status is Status.RUNNING)
    given.after(10.0)
    assert given.turn(facts.Finished(given.now, runs, gangs[runs].attempt, "succeeded")).decisions
    begun = [name for name, gang in gangs.items() if gang.status is Status.LAUNCHING]
    given.turn(*(facts.Bound(given.now, name, gangs[name].attempt) for name in begun))


@pytest.mark.parametrize("users", [1, 5])
def test_the_end_of_a_run_of_a_model_does_not_look_at_each_that_waits_for_the_same_model(
    monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    """What is believed of all of them changes with every end, and was worked out for each: 97 ms with 16,000."""
    given = cluster("1 node x 4")
    for number in range(4):
        given.running(f"r{number}", 1, model="m")
    for number in range(WAITING):
        given.pending(f"w{number}", 1, model="m", user=f"user{number % users}")
        if number in (50, 100, 150):  # so that those after it come with another guess
            one_ends(given)
    given.turn()
    asked: list[str] = []
    outlook = View.outlook

    def counted(view: View, gang: Any, *more: Any) -> Any:
        asked.append(gang.id)
        return outlook(view, gang, *more)

    monkeypatch.setattr(View, "outlook", counted)
    for _ in range(3):
        asked.clear()
        one_ends(given)
        assert len(asked) <= 8 * (4 + users), "those that run, and one of each that are alike, a few times"


def held_for(queues: int, spread: float, ends_in: float | None = None) -> Given:
    """Each queue has what it owns, in single GPUs, and a gang that has waited long for a whole node."""
    given = cluster(f"{queues} nodes x 8")
    for queue in range(queues):
        given.queue(f"q{queue}", gpus=8)
    for number in range(8 * queues):
        ends = None if ends_in is None else ends_in + spread * (number * 37 % (8 * queues))
        given.running(f"r{number}", 1, queue=f"q{number % queues}", ends_in=ends)
    for queue in range(queues):
        given.pending(f"w{queue}", 8, queue=f"q{queue}")
    given.turn()
    return given.after(4000.0)


@pytest.mark.parametrize("ends_in", [None, 50_000.0])
def test_those_that_are_held_for_look_at_the_ends_of_the_others_once_for_all_of_them(
    ends_in: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took all who run out of the ledgers and put them back: 130 ms with 16 queues and 1,600 GPUs in use."""
    changed = [0]
    change = NodeState.change

    def counted(node: NodeState, *what: Any) -> None:
        changed[0] += 1
        change(node, *what)

    each = []
    for queues in (4, 8):
        given = held_for(queues, 10.0, ends_in)
        monkeypatch.setattr(NodeState, "change", counted)
        changed[0] = 0
        given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded"))
        assert sum(gang.reason is not None for gang in given.state.gangs.values()) >= queues - 1
        each.append(changed[0] / (8 * queues))
        monkeypatch.undo()
    assert each[1] <= 1.5 * each[0] and each[1] <= 16, "for each that runs, however many are held for"


@pytest.mark.parametrize("queues", [1, 2])
def test_requests_that_all_differ_and_have_waited_long_are_not_asked_either(
    queues: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two of them a place is held, and each queue keeps what it owns: so all were asked, 90 ms with 2,000."""
    given = cluster("1 node x 4")
    for queue in range(queues if queues > 1 else 0):
        given.queue(f"q{queue}", gpus=4 // queues)
    name = "q{}" if queues > 1 else "default"
    for number in range(4):
        given.running(f"r{number}", 1, queue=name.format(number % queues), ends_in=5000.0 + number)
    for number in range(WAITING):
        group = Group("workers", 1, (Option(None, Resources(1000, 0, number + 1)),))
        work = Workload(f"w{number}", f"w{number}", "train", (group,), queue=name.format(number % queues))
        given.state.apply(facts.Submitted(given.now, work))
    given.turn()
    given.after(2000.0).turn()
    looked = who_looks_for_places(monkeypatch)
    given.after(1.0)
    assert len(given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded")).decisions) == 1
    assert len({*looked}) <= 4
    looked.clear()
    given.pending("like", 1, queue=name.format(0)).turn()
    assert len({*looked}) <= 4
    reason = given.state.gangs["w1/0"].reason
    assert reason is not None and reason.eta is not None, "its start is planned, and told though it was not asked"


def test_where_shares_are_levelled_who_could_take_nothing_looks_at_no_victims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class of each queue went through all who run, at every end: 180 ms with 50 queues."""
    given = cluster("4 nodes x 8")
    for queue in range(8):
        given.queue(f"q{queue}", gpus=4)
    given.scheduling(preemption=PreemptionRules("lower_priority", "any"), fair_share="drf_total")
    for number in range(32):
        given.running(f"r{number}", 1, queue=f"q{number % 8}")
    for number in range(64):
        given.pending(f"w{number}", 1 + number // 8, queue=f"q{number % 8}")
    given.turn()
    looked, allowed = [0], victims.allowed
    asked = who_looks_for_places(monkeypatch)

    def counted(eligible: Any, rules: Any) -> Any:
        looked[0] += len(eligible)
        return allowed(eligible, rules)

    monkeypatch.setattr(victims, "allowed", counted)
    given.after(1.0)
    assert len(given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded")).decisions) == 1
    assert looked[0] <= 4 * 32, "64 classes, 32 who run"
    assert len({*asked}) <= 8


def waiting_elastic(**knobs: Any) -> Given:
    given = cluster("2 nodes x 4").scheduling(**knobs)
    for number in range(8):
        given.running(f"r{number}", 1, elastic=(1, 8) if knobs else None)
    for number in range(WAITING):
        given.pending(f"w{number}", 1, elastic=((1, 8), (2, 4))[number % 2], model=f"m{number % 5}")
    return given.after(1.0)


def test_elastic_work_that_cannot_even_have_its_least_is_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 4,000 were put to the policy at each end, 50 ms, to be given what they have in any case."""
    given = waiting_elastic()
    given.turn()
    asked, share = [0], Elasticity.share

    def counted(policy: Elasticity, gangs: Any, *more: Any) -> Any:
        asked[0] += len(gangs)
        return share(policy, gangs, *more)

    monkeypatch.setattr(Elasticity, "share", counted)
    given.after(1.0)
    assert given.turn(facts.Finished(given.now, "r0/0", 1, "succeeded")).decisions == [Launch("w0", 1.0)]
    assert asked[0] == 0


def test_by_rank_what_a_bundle_is_of_those_that_rest_is_asked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen times for each of thousands that wait, at each tick."""
    given = waiting_elastic(preemption=PreemptionRules("by_rank", "any"), quantum_s=60.0, order="best_effort")
    given.turn()
    asked, of = [0], View.gpus_per_bundle

    def counted(view: View, gang: Any) -> float:
        asked[0] += 1
        return of(view, gang)

    monkeypatch.setattr(View, "gpus_per_bundle", counted)
    given.after(1.0).turn()
    assert asked[0] <= 2 * WAITING


def test_by_rank_the_policy_offers_sizes_to_as_many_alike_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """To each of thousands that wait, at each tick, however few GPUs there were."""
    given = waiting_elastic(preemption=PreemptionRules("by_rank", "any"), quantum_s=60.0, order="best_effort")
    given.turn()
    made, offer = [0], goodput.Offer

    def counted(*about: Any) -> Any:
        made[0] += 1
        return offer(*about)

    monkeypatch.setattr(goodput, "Offer", counted)
    given.after(1.0).turn()
    assert 0 < made[0] < WAITING / 2
