"""By rank, and in the shares of elastic work: whoever a reservation keeps out asks for nothing that is reserved.

GPUs that others have reserved stood idle and were counted as if they were for everybody, so that who waited was taken
to have room, and who ran in its place, with a lower priority, stayed there until the window closed."""

from __future__ import annotations

from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Resize, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import PreemptionRules, Queue, Quota
from llmsched.core.invariants import violations
from llmsched.core.records import size_of
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

LONG = 1e6


def ranked(text: str, **knobs: Any) -> Given:
    given = cluster(text).policies(ordering="priority", elasticity="even")
    given.scheduling(preemption=PreemptionRules("by_rank"), order="best_effort", quantum_s=60.0, **knobs)
    return given.scheduling(hold_after_s=LONG)


def two_quanta(given: Given) -> list[tuple[str, str]]:
    """What passes over two quanta decide; all of it is carried out at once."""
    policies, decided = load(given.names), list[tuple[str, str]]()
    for _ in range(6):
        given.now += 30.0
        happened: list[Any] = [facts.Tick(given.now)]
        for _ in range(20):
            plan = turn(given.state, happened, policies)
            assert violations(given.state) == []
            happened = []
            for each in plan.decisions:
                name = getattr(each, "gang", "").removesuffix("/0")
                if name:  # which GPUs a reservation takes is about nobody
                    decided.append((type(each).__name__, name))
                if isinstance(each, decisions.Launch):
                    happened.append(facts.Bound(given.now, each.gang, each.attempt))
                elif isinstance(each, decisions.Preempt):
                    happened.append(facts.Released(given.now, each.gang, each.attempt))
                elif isinstance(each, decisions.Resize):
                    size = size_of(given.state.gangs[each.gang].spec, each.placement)
                    happened.append(facts.Resized(given.now, each.gang, each.attempt, size))
            if not happened:
                break
    return decided


def size(given: Given, name: str) -> int:
    return given.state.gangs[f"{name}/0"].size


@pytest.mark.parametrize("opens", [0.0, 5000.0])
@pytest.mark.parametrize(("text", "booked"), [("2 nodes x 4", {"nodes": ("n-1",)}), ("2 nodes x 4", {"gpus": 4}),
                                              ("1 node x 8", {"gpus": 4}), ("2 nodes x 6", {"gpus": 8})])  # fmt: skip
def test_a_higher_priority_has_the_place_of_a_lower_one_though_reserved_gpus_stand_idle(
    text: str, booked: dict[str, Any], opens: float
) -> None:
    """A node, a part of one, and a node with a part of another; now, and as a window that begins later."""
    given = ranked(text).reserve(opens, LONG, "boss", **booked)
    given.running("low", 4, priority=10).pending("high", 4, priority=90)
    assert two_quanta(given) == [("Preempt", "low"), ("Nominate", "high"), ("Launch", "high")]


def test_who_ends_before_the_window_takes_the_reserved_gpus_and_evicts_nobody() -> None:
    given = ranked("2 nodes x 4").reserve(5000.0, LONG, "boss", nodes=("n-1",))
    given.running("low", 4, priority=10).pending("brief", 4, priority=90, max_runtime_s=600.0)
    assert two_quanta(given) == [("Launch", "brief")]


def test_the_holder_takes_the_reserved_gpus_and_evicts_nobody() -> None:
    given = ranked("2 nodes x 4").reserve(0.0, LONG, "boss", nodes=("n-1",))
    given.running("low", 4, priority=10).pending("theirs", 4, priority=90, user="boss")
    assert two_quanta(given) == [("Launch", "theirs")]


def test_where_the_gpus_of_one_flavor_are_reserved_it_has_its_second_choice() -> None:
    given = ranked("2 nodes x 4 A, 1 node x 4 B").reserve(0.0, LONG, "boss", nodes=("a-1",))
    given.running("first", 4, flavor="A", priority=95).running("low", 4, flavor="B", priority=10)
    given.pending("high", 4, priority=90)  # any flavor will do
    assert two_quanta(given) == [("Preempt", "low"), ("Nominate", "high"), ("Launch", "high")]


def test_who_runs_beside_its_own_reservation_counts_where_it_is() -> None:
    """It could be on its own GPUs, and is not: those that it leaves idle are nobody else's."""
    given = ranked("3 nodes x 4").reserve(500.0, LONG, "boss", nodes=("n-2",))
    given.running("theirs", 4, priority=95, user="boss").running("low", 4, priority=10).after(600.0)
    given.pending("high", 4, priority=90)
    assert {given.state.gangs[f"{name}/0"].held[0].node for name in ("theirs", "low")} == {"n-0", "n-1"}
    assert two_quanta(given) == [("Preempt", "low"), ("Nominate", "high"), ("Launch", "high")]


def test_the_holder_makes_way_for_a_higher_priority_and_goes_to_its_own_gpus() -> None:
    given = ranked("2 nodes x 4").reserve(500.0, LONG, "boss", nodes=("n-1",))
    given.running("theirs", 4, priority=10, user="boss").after(600.0).pending("high", 4, priority=90)
    decided = two_quanta(given)
    assert decided[0] == ("Preempt", "theirs") and sorted(decided[-2:]) == [("Launch", "high"), ("Launch", "theirs")]
    assert given.phase("theirs") == given.phase("high") == "running"


def test_of_one_class_who_ends_before_the_window_is_asked_though_the_first_is_kept_out() -> None:
    """They ask for the same, so what the first was refused the second was, too."""
    given = ranked("2 nodes x 4").reserve(9000.0, LONG, "boss", nodes=("n-1",))
    given.running("first", 4, priority=95).running("low", 4, priority=10, max_runtime_s=8000.0)
    given.pending("long", 4, priority=90).pending("brief", 4, priority=90, max_runtime_s=600.0)
    assert two_quanta(given) == [("Preempt", "low"), ("Nominate", "brief"), ("Launch", "brief")]


def test_two_reservations_keep_those_out_whom_each_of_them_does() -> None:
    """Who ends between them may have the GPUs of the second, who does not neither."""
    given = (
        ranked("3 nodes x 4").reserve(0.0, LONG, "boss", nodes=("n-1",)).reserve(9000.0, LONG, "boss", nodes=("n-2",))
    )
    given.running("low", 4, priority=10).pending("brief", 4, priority=80, max_runtime_s=600.0)
    given.pending("high", 4, priority=90)
    decided = two_quanta(given)
    assert ("Launch", "brief") in decided and ("Launch", "high") in decided and ("Preempt", "low") in decided
    assert len(decided) == 4


@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
@pytest.mark.parametrize(("text", "booked"), [("2 nodes x 4", {"nodes": ("n-1",)}), ("1 node x 8", {"gpus": 4})])
@pytest.mark.parametrize("low", [None, (1, 4)])
def test_an_elastic_gang_has_the_place_of_a_lower_priority_though_reserved_gpus_stand_idle(
    text: str, booked: dict[str, Any], elasticity: str, low: tuple[int, int] | None
) -> None:
    given = ranked(text).policies(elasticity=elasticity).reserve(0.0, LONG, "boss", **booked)
    given.running("low", 4, low, priority=10).pending("high", 4, (4, 8), priority=90)
    decided = two_quanta(given)
    assert decided[0] == ("Preempt", "low") and decided[-1] == ("Launch", "high") and size(given, "high") == 4


@pytest.mark.parametrize("opens", [0.0, 5000.0])
def test_an_elastic_gang_grows_though_one_waits_that_would_need_the_reserved_gpus_too(opens: float) -> None:
    """`vast` was taken for one that could start, and all of the cluster was kept for it."""
    given = ranked("2 nodes x 4").reserve(opens, LONG, "boss", nodes=("n-1",))
    given.running("grows", 1, (1, 8), priority=50).pending("vast", 8, (8, 8), priority=90).after(120.0)
    two_quanta(given)
    assert size(given, "grows") == 4 and given.phase("vast") == "waiting"


@pytest.mark.parametrize("by_rank", [True, False])
@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
def test_elastic_gangs_share_what_is_not_reserved_and_the_holder_has_all_of_its_own(
    by_rank: bool, elasticity: str
) -> None:
    given = ranked("3 nodes x 4") if by_rank else cluster("3 nodes x 4")
    given.policies(elasticity=elasticity).reserve(500.0, LONG, "boss", nodes=("n-1", "n-2"))
    for name in ("one", "two"):
        given.running(name, 1, (1, 12))
    given.after(600.0).pending("theirs", 1, (1, 12), user="boss")
    two_quanta(given)
    assert size(given, "one") + size(given, "two") == 4 and size(given, "theirs") >= 7


def test_queues_share_what_is_not_reserved() -> None:
    """Of twelve GPUs each was due four, of which only four were there for both: the first one had them all."""
    given = cluster("3 nodes x 4").queue("a", gpus=4).queue("b", gpus=4).queue("c", gpus=4)
    given.policies(elasticity="even").reserve(500.0, LONG, "boss", nodes=("n-1", "n-2"))
    for name in ("a", "b"):
        given.running(name, 1, (1, 12), queue=name)
    given.after(600.0).pending("theirs", 1, (1, 12), user="boss", queue="c")
    two_quanta(given)
    assert {name: size(given, name) for name in ("a", "b", "theirs")} == {"a": 2, "b": 2, "theirs": 8}


def test_who_is_on_gpus_that_are_reserved_for_later_keeps_them_until_then() -> None:
    given = ranked("2 nodes x 4")
    given.reserve(5000.0, LONG, "boss", nodes=("n-1",)).running("guest", 8, (1, 8), grace_s=60.0).after(1000.0)
    assert two_quanta(given) == [] and size(given, "guest") == 8
    given.after(5000.0 - given.now)
    assert given.decide().decisions == [Resize("guest", 4)], "it goes on beside them"
    assert two_quanta(given) == [("Resize", "guest")] and size(given, "guest") == 4


@pytest.mark.parametrize("leaves_at", [0.0, 500.0])
def test_who_has_room_once_somebody_has_left_is_promised_it_beside_what_is_reserved(leaves_at: float) -> None:
    """By rank, and three of eight GPUs are held by one that is cancelled: those are the holder's of a reservation then,
    and the other five free. Such a gang was neither started nor promised anything, and did not know why it waits."""
    given = ranked("1 node x 8").reserve(700.0, LONG, "boss", gpus=3).running("gone", 3, grace_s=30.0)
    given.pending("waits", 5).after(leaves_at)
    decided = given.turn(facts.Cancelled(given.now, "gone", "ann"))
    assert decided.decisions[1:] == [Nominate("waits", 5)] and decided.code("waits") == "victims_leaving"
    assert given.turn(facts.Released(given.now, "gone/0", 1)).decisions == [Launch("waits", 5)]


@pytest.mark.parametrize("order", ["priority", "best_effort", "strict_fifo"])
@pytest.mark.parametrize("backfill", ["off", "easy"])
def test_nothing_is_kept_for_one_that_a_reservation_keeps_out_again_and_again(order: str, backfill: str) -> None:
    """Two minutes of every ten are the boss's, and nobody knows how long `ours` runs: the GPU of its queue was kept for
    it for ever, as work of another queue could not be told to give it back."""
    given = cluster("1 node x 1").queue("a", gpus=1).queue("b", gpus=0).scheduling(order=order, backfill=backfill)
    given.reserve(0.0, 120.0, "boss", gpus=1, repeat="*/10 * * * *").after(200.0)
    given.pending("ours", 1, queue="a").pending("theirs", 1, queue="b", max_runtime_s=60.0)
    given.pending("boss", 1, queue="b", user="boss", max_runtime_s=60.0)
    assert given.turn().decisions == [Launch("theirs", 1)]
    done = facts.Bound(given.now, "theirs/0", 1), facts.Finished(given.now, "theirs/0", 1, "succeeded")
    assert given.turn(*done).decisions == [Launch("boss", 1)]


def test_in_line_nobody_stands_behind_one_that_a_reservation_keeps_out_again_and_again() -> None:
    given = cluster("1 node x 1").scheduling(order="strict_fifo")
    given.reserve(0.0, 120.0, "boss", gpus=1, repeat="*/10 * * * *").after(200.0)
    given.pending("first", 1).pending("second", 1, max_runtime_s=60.0)
    assert given.turn().decisions == [Launch("second", 1)]


def test_a_guarantee_is_kept_for_one_that_waits_for_the_end_of_a_window() -> None:
    given = cluster("1 node x 1").queue("a", gpus=1).queue("b", gpus=0).scheduling(order="best_effort")
    given.reserve(0.0, 1000.0, "boss", gpus=1).after(200.0)
    given.pending("ours", 1, queue="a").pending("theirs", 1, queue="b", user="boss")
    assert given.turn().decisions == []
    assert given.after(1000.0).turn().decisions == [Launch("ours", 1)]


@pytest.mark.parametrize("flavors", [("A", "B"), ("B", "A")])
def test_a_guarantee_is_kept_with_whichever_option_it_is_owned(flavors: tuple[str, str]) -> None:
    """Of the first option alone it was looked whether anything is idle: its queue owns the other one's GPUs."""
    given = cluster("1 node x 4 A, 1 node x 4 B")
    owns = {"a": (0, 4), "b": (4, 0)}
    given.queues += [
        Queue(name, quotas=(("A", Quota(on_a * 1000)), ("B", Quota(on_b * 1000))))
        for name, (on_a, on_b) in owns.items()
    ]
    given.running("full", 4, flavor="A", queue="b").running("lent", 1, flavor="B", queue="b")
    group = Group("workers", 1, tuple(Option(flavor, Resources(4000)) for flavor in flavors))
    given.turn(facts.Submitted(given.now, Workload("mine", "mine", "task", (group,), queue="a")))
    assert given.pending("later", 1, flavor="B", queue="b").turn().decisions == []


def test_who_has_waited_long_begins_between_windows_that_are_never_ten_minutes_apart() -> None:
    """It was to have ten minutes before the next one, and they come every five: it waited for ever. It begins while
    most of the gap is left, and not when it would have to leave at once."""
    given = cluster("1 node x 2 A").reserve(300.0, 120.0, "bob", 2, repeat="*/5 * * * *")
    given.scheduling(hold_after_s=1800.0).pending("long", 2).after(1799.0).settle()
    assert given.phase("long") == "waiting", "the one that opens at 1,800 s is open"
    assert given.after(2090.0 - given.now).settle().phase("long") == "waiting", "the next one opens in ten seconds"
    assert given.after(2221.0 - given.now).settle().phase("long") == "running"
    given.after(2290.0 - given.now).settle()
    assert given.phase("long") == "waiting", "it has left for the next one"
