"""Running work moves to a faster flavor that is free, when that pays; nobody waits longer for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster

from llmsched.core import facts
from llmsched.core.configuration import Reservation
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload

SPEEDS = {"A100": 4.0, "T4": 1.0}


def work(name: str, gpus: int = 1, left_s: float | None = 10_000.0, **more: Any) -> Workload:
    """Four times as fast on A100 as on T4; seconds are those on A100."""
    speeds: dict[str, float] = more.pop("speeds", SPEEDS)
    options = [Option(flavor, Resources(1000), ((gpus, value / 4.0),)) for flavor, value in speeds.items()]
    group = Group("workers", gpus, tuple(options))
    return Workload(
        name, name, "train", (group,), min_size=gpus, max_size=gpus, estimated_runtime_s=left_s, grace_s=10.0, **more
    )


def on_t4(given: Given, *works: Workload) -> Given:
    """They run on T4, because A100 is taken; then it is free again."""
    blocker = Workload("b", "b", "train", (Group("w", 1, (Option("A100", Resources(4000)),)),), priority=99)
    given.turn(facts.Submitted(given.now, blocker))
    for each in works:
        given.turn(facts.Submitted(given.now, each))
    given.after(1.0, *(facts.Bound(given.now, f"{each.id}/0", 1) for each in works))
    given.after(200.0, facts.Finished(given.now, "b/0", 1, "succeeded"))
    return given


def test_it_leaves_for_the_faster_one_and_starts_there() -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), work("a"))
    assert given.turn().decisions == [Preempt("a", "faster_flavor")]
    given.after(5.0, facts.Released(given.now, "a/0", 1))
    assert given.turn().decisions == [Launch("a", 1)]
    assert given.state.gangs["a/0"].flavor == "A100"
    given.after(1000.0, facts.Bound(given.now, "a/0", 2))
    assert given.turn().decisions == [] and not given.state.movable, "there is nothing faster"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"left_s": 60.0}, "what is left is done before a restart pays"),
        ({"preemptible": False}, "it may not be evicted"),
        ({"min_runtime_s": 5000.0}, "it has not run for as long as it is promised to"),
        ({"speeds": {"T4": 4.0, "A100": 1.0}}, "it is where it is fastest"),
        ({"gpus": 4, "left_s": 60.0}, "what is left is done before a restart pays"),
    ],
)
def test_it_stays(change: dict[str, Any], why: str) -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), work("a", **change))
    assert given.turn().decisions == [], why


def test_it_stays_where_it_would_not_be_let_start_again_on_the_faster_one() -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), work("a"))
    booked = Reservation("booked", given.now + 500.0, 1000.0, queue="prod", gpus_milli=4000, flavor="A100")
    given.after(1.0, facts.Configured(given.now, replace(given.state.configuration, version=9, reservations=(booked,))))
    assert given.turn().decisions == [], "it would run into the reservation"


def test_it_may_be_switched_off() -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4").scheduling(migration=False), work("a"))
    assert given.turn().decisions == []


def test_whoever_waits_for_the_faster_one_comes_first() -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4").policies(ordering="priority"), work("a"))
    only = Workload("w", "w", "train", (Group("w", 1, (Option("A100", Resources(4000)),)),), priority=1)
    assert given.turn(facts.Submitted(given.now, only)).decisions == [Launch("w", 4)]


def test_by_rank_whoever_ranks_higher_moves_before_the_next_in_line_starts() -> None:
    given = cluster("1 node x 4 A100, 1 node x 4 T4").policies(ordering="shortest_remaining")
    given = on_t4(given.rules(within_queue="by_rank").scheduling(quantum_s=100.0), work("a", 4, left_s=1000.0))
    decided = given.turn(facts.Submitted(given.now, work("long", 4, left_s=9000.0))).decisions
    assert decided == [Preempt("a", "faster_flavor")], "its place on A100 is kept while it leaves"
    given.after(5.0)
    assert given.turn().decisions == []
    given.after(1.0, facts.Released(given.now, "a/0", 1))
    assert given.turn().decisions == [Launch("a", 4), Launch("long", 4)]
    assert [given.state.gangs[name].flavor for name in ("a/0", "long/0")] == ["A100", "T4"]


def test_what_history_knows_of_a_model_is_enough() -> None:
    given = cluster("1 node x 4 A100, 1 node x 4 T4")
    group = Group("workers", 1, (Option("A100", Resources(1000)), Option("T4", Resources(1000))))
    for number, (flavor, took) in enumerate([("A100", 100.0), ("T4", 400.0)]):
        alone = Workload(
            f"r{number}", f"r{number}", "train", (Group("w", 1, (Option(flavor, Resources(1000)),)),), model="m"
        )
        given.turn(facts.Submitted(given.now, alone))
        given.after(1.0, facts.Bound(given.now, f"r{number}/0", 1))
        given.after(took, facts.Finished(given.now, f"r{number}/0", 1, "succeeded"))
    mine = Workload("a", "a", "train", (group,), model="m", estimated_runtime_s=10_000.0)
    assert on_t4(given, mine).turn().decisions == [Preempt("a", "faster_flavor")]


def test_nobody_moves_to_and_fro() -> None:
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), *(work(f"a{n}", 1) for n in range(4)))
    moves = 0
    for _ in range(40):
        plan = given.turn()
        moves += sum(isinstance(each, Preempt) for each in plan.decisions)
        state: State = given.state
        for gang in [state.gangs[name] for name in [*state.vacating]]:
            given.after(0.0, facts.Released(given.now, gang.id, gang.attempt))
        for gang in [*state.gangs.values()]:
            if gang.status.value == "launching":
                given.after(0.0, facts.Bound(given.now, gang.id, gang.attempt))
        given.after(100.0)
    assert moves == 4 and {gang.flavor for gang in given.state.gangs.values() if gang.is_active()} == {"A100"}


def test_what_it_leaves_is_asked_for_in_the_same_moment() -> None:
    """Who waited for it was refused before somebody moved, and was asked again at the next news."""
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), work("a"))
    waits = Workload("w", "w", "train", (Group("w", 1, (Option("T4", Resources(4000)),)),))
    decided = given.turn(facts.Submitted(given.now, waits))
    assert decided.decisions == [Preempt("a", "faster_flavor")] and decided.plan.wake_at == given.now
    assert given.turn().decisions == [Nominate("w", 4)]


def elastic(low: int, most: int, **more: Any) -> Workload:
    """Four times as fast on A100 as on T4, at any size."""
    each = [
        Option(flavor, Resources(1000), tuple((size, fast * size / low) for size in range(low, most + 1)))
        for flavor, fast in (("T4", 1.0), ("A100", 4.0))
    ]
    more = {"estimated_runtime_s": 20_000.0, "grace_s": 10.0} | more
    return Workload("e", "e", "train", (Group("w", low, tuple(each)),), min_size=low, max_size=most, **more)


def moved(given: Given) -> tuple[int, str | None]:
    """It has left as it was told, and begins again."""
    given.after(5.0, facts.Released(given.now, "e/0", 1))
    given.turn()
    gang = given.state.gangs["e/0"]
    given.after(5.0, facts.Bound(given.now, "e/0", gang.attempt)).turn()
    return gang.size, gang.flavor


@pytest.mark.parametrize(("low", "most"), [(1, 2), (1, 4), (2, 4)])
def test_an_elastic_gang_moves_to_as_many_of_the_faster_ones_as_are_free(low: int, most: int) -> None:
    """One that may change its size was looked at by elasticity alone, which knows of no other flavor than that where
    it is: it stayed on slow GPUs for good beside faster ones that were idle."""
    given = on_t4(cluster("1 node x 4 A100, 1 node x 4 T4"), elastic(low, most)).after(60.0)
    assert given.turn().decisions == [Preempt("e", "faster_flavor")]
    assert moved(given) == (most, "A100")


@pytest.mark.parametrize(("taken", "moves"), [(3, True), (2, False)])
def test_an_elastic_gang_moves_where_more_gpus_make_up_for_slower_ones(taken: int, moves: bool) -> None:
    """Eight of the slow ones are as fast as two of the fast ones."""
    given = cluster("1 node x 4 A100, 1 node x 8 T4").running("r", taken, flavor="A100").running("t", 8, flavor="T4")
    given.turn(facts.Submitted(given.now, elastic(1, 8)))
    given.after(1.0, facts.Bound(given.now, "e/0", 1)).turn()
    assert (given.state.gangs["e/0"].size, given.state.gangs["e/0"].flavor) == (4 - taken, "A100")
    given.after(200.0, facts.Finished(given.now, "t/0", 1, "succeeded")).after(60.0)
    assert given.turn().decisions == ([Preempt("e", "faster_flavor")] if moves else [])
    assert not moves or moved(given) == (8, "T4")


def test_an_elastic_gang_takes_no_faster_gpus_that_others_are_to_have() -> None:
    """Of four A100 that become free two are for one of fixed size that waits for six."""
    given = cluster("2 nodes x 4 A100, 1 node x 4 T4")
    given.running("b0", 4, flavor="A100").running("b1", 4, flavor="A100")
    given.turn(facts.Submitted(given.now, elastic(1, 4)))
    given.after(1.0, facts.Bound(given.now, "e/0", 1)).turn()
    given.pending("big", 4, flavor="A100", priority=10).turn()
    given.after(200.0, facts.Finished(given.now, "b0/0", 1, "succeeded"))
    assert given.turn().decisions == [Launch("big", 4)]
    assert given.after(200.0).turn().decisions == []


def test_a_gang_is_counted_by_the_gpus_of_the_option_that_it_has() -> None:
    """`["T4:2", "A100:1"]`, in order of preference, on A100: it was sized as if each bundle took two GPUs, and half of
    the cluster stayed idle for good."""
    options = (Option("T4", Resources(2000)), Option("A100", Resources(1000)))
    both = Workload("e", "e", "train", (Group("w", 1, options),), min_size=1, max_size=8)
    for nodes, size in (("1 node x 8 A100", 8), ("1 node x 8 T4", 4), ("1 node x 8 A100, 1 node x 8 T4", 8)):
        given = cluster(nodes)
        given.turn(facts.Submitted(given.now, both))
        given.after(1.0, facts.Bound(given.now, "e/0", 1)).turn()
        assert given.state.gangs["e/0"].size == size, nodes
    given = cluster("1 node x 8 T4")
    given.turn(facts.Submitted(given.now, replace(both, groups=(Group("w", 1, options[::-1]),))))
    given.after(1.0, facts.Bound(given.now, "e/0", 1)).pending("f", 4, flavor="T4").turn()
    assert given.after(100.0).turn().decisions in ([], [Launch("f", 4)])
    assert given.state.gangs["e/0"].placement is not None and len(given.state.gangs["e/0"].placement) == 2


@pytest.mark.parametrize("why", ["somebody waits for them", "it is switched off", ""])
def test_an_elastic_gang_moves_to_no_gpus_that_somebody_waits_for_nor_where_moves_are_switched_off(why: str) -> None:
    """It had places: one that waited for twice as many as were free waited for as long as the elastic gang then ran."""
    given = cluster("1 node x 4 A100, 1 node x 4 T4").scheduling(
        migration=why != "it is switched off", hold_after_s=0.0
    )
    given.running("b0", 2, flavor="A100").running("b1", 2, flavor="A100")
    given.turn(facts.Submitted(given.now, elastic(1, 4)))
    given.after(1.0, facts.Bound(given.now, "e/0", 1)).turn()
    if why == "somebody waits for them":
        given.pending("waits", 4, flavor="A100").turn()
    given.after(200.0, facts.Finished(given.now, "b0/0", 1, "succeeded")).after(60.0)
    assert given.turn().decisions == ([] if why else [Preempt("e", "faster_flavor")])


@pytest.mark.parametrize(("idle_s", "moves"), [(40.0, False), (80.0, True)])
def test_an_elastic_gang_moves_to_no_gpus_between_one_short_job_and_the_next(idle_s: float, moves: bool) -> None:
    """It moved to and fro, and began anew twice for each of them. What a move costs is gained there in a minute."""
    given = cluster("1 node x 4 A100, 1 node x 4 T4").scheduling(restart_cost_s=180.0)
    given = on_t4(given, elastic(1, 4)).after(400.0)
    for number in range(6):
        given.pending(f"s{number}", 4, flavor="A100").turn()
        given.after(100.0, facts.Finished(given.now, f"s{number}/0", 1, "succeeded"))
        assert given.turn().decisions == []
        assert given.after(idle_s).turn().decisions == ([Preempt("e", "faster_flavor")] if moves else [])
        if moves:
            break


@pytest.mark.parametrize(("priority", "moves"), [(80, False), (50, False), (10, True)])
def test_one_of_fixed_size_moves_to_no_gpus_for_which_one_waits_who_comes_before_it(priority: int, moves: bool) -> None:
    given = cluster("1 node x 4 A100, 1 node x 4 T4").scheduling(hold_after_s=0.0).policies(ordering="priority")
    given.running("b0", 2, flavor="A100").running("b1", 2, flavor="A100").pending(
        "waits", 4, flavor="A100", priority=priority
    )
    given.after(1.0).turn(facts.Submitted(given.now, work("a", 2)))
    given.after(1.0, facts.Bound(given.now, "a/0", 1)).turn()
    given.after(200.0, facts.Finished(given.now, "b0/0", 1, "succeeded"))
    assert given.turn().decisions == ([Preempt("a", "faster_flavor")] if moves else [])
