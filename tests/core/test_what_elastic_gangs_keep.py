"""Where an elastic gang keeps what it must: who counts what could start, and who makes the room, ask the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, Resize, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import Reservation
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Placed, Topology, Workload


def nodes(*sizes: int, cpus: tuple[int, ...] = ()) -> Given:
    found = []
    for number, gpus in enumerate(sizes):
        there = Resources(gpus * 1000, (cpus[number] if cpus else 64) * 1000, 1 << 40)
        found.append(Node(f"n{number}", there, None, (), f"n{number}"))
    return Given(found)


def on(given: Given, name: str) -> dict[str, int]:
    held = [placed.node for placed in given.state.gangs[f"{name}/0"].held]
    return {node: held.count(node) for node in sorted(set(held))}


def placed_on(given: Given, name: str, elastic: tuple[int, int], places: tuple[int, ...]) -> None:
    """One that runs on so many GPUs of each node, those of the first node first."""
    given.now += 1.0
    given.state.apply(facts.Submitted(given.now, given._workload(name, 1, elastic, 1, {})))
    there = [Placed("workers", f"n{number}", 0) for number, count in enumerate(places) for _ in range(count)]
    given.state.apply(decisions.Launch(f"{name}/0", 1, tuple(there)))
    given.state.apply(facts.Bound(given.now, f"{name}/0", 1))


def halves(given: Given, name: str, low: int, high: int) -> None:
    group = Group("workers", 1, (Option(None, Resources(500)),))
    given.state.apply(facts.Submitted(given.now, Workload(name, name, "train", (group,), min_size=low, max_size=high)))


@pytest.mark.parametrize(
    ("sizes", "elastic", "wanted", "left"),
    [
        ((8, 4), (1, 12), 8, {"n1": 4}),
        ((4, 8), (1, 12), 8, {"n0": 4}),
        ((8, 4, 4), (4, 16), 8, {"n1": 4, "n2": 4}),
        ((8, 4), (1, 12), 6, {"n0": 2, "n1": 4}),
    ],
)
def test_one_of_fixed_size_starts_on_the_only_node_large_enough_though_the_first_ranks_of_an_elastic_one_are_there(
    sizes: tuple[int, ...], elastic: tuple[int, int], wanted: int, left: dict[str, int]
) -> None:
    """It waited for ever: its start was counted only where the elastic gang let go of its last ranks' nodes."""
    given = nodes(*sizes).pending("tune", 1, elastic).settle()
    assert sum(on(given, "tune").values()) == sum(sizes)
    given.pending("fixed", wanted)
    decided = given.decide()
    assert decided.decisions == [Resize("tune", to=sum(sizes) - wanted), Nominate("fixed", gpus=wanted)]
    assert decided.why("fixed") == f"waits for tune to release {wanted} GPUs"
    given.settle()
    assert sum(on(given, "fixed").values()) == 1 and sum(on(given, "tune").values()) == sum(sizes) - wanted
    if wanted == max(sizes):
        assert on(given, "tune") == left


@pytest.mark.parametrize("elasticity", ["goodput", "even", "marginal_throughput"])
@pytest.mark.parametrize("order", ["1 node x 4 A, 1 node x 4 B", "1 node x 4 B, 1 node x 4 A"])
def test_who_names_a_flavor_starts_wherever_the_first_ranks_of_an_elastic_one_are(order: str, elasticity: str) -> None:
    given = cluster(order).policies(elasticity=elasticity).pending("tune", 1, (1, 8)).settle()
    given.pending("fixed", 4, flavor="A").settle()
    assert on(given, "tune") == {"b-0": 4} and on(given, "fixed") == {"a-0": 1}


def test_an_elastic_one_that_names_a_flavor_starts_there_too() -> None:
    given = cluster("1 node x 4 A, 1 node x 4 B").pending("tune", 1, (1, 8)).settle()
    given.pending("named", 1, (3, 4), flavor="A").settle()
    assert on(given, "named") == {"a-0": 3} and on(given, "tune") == {"a-0": 1, "b-0": 4}


def test_what_is_beyond_a_share_is_let_go_of_where_others_lack_it() -> None:
    """It let go of its last ranks' node, three GPUs of which stood idle, and the other never grew."""
    given = cluster("1 node x 4 A, 1 node x 4 B").policies(elasticity="even").pending("tune", 1, (1, 8)).settle()
    given.pending("named", 1, (1, 4), flavor="A").settle().after(600.0).settle()
    assert on(given, "named") == {"a-0": 4} and on(given, "tune") == {"b-0": 4}


@pytest.mark.parametrize("booked", [{"gpus": 4}, {"gpus": 2}, {"nodes": ("n-1",)}])
@pytest.mark.parametrize("opens", [0.0, 1000.0])
def test_a_holder_keeps_what_is_reserved_for_it_and_makes_room_beside(booked: dict[str, Any], opens: float) -> None:
    given = cluster("2 nodes x 4").reserve(opens, 5000.0, "bob", **booked)
    given.pending("tune", 1, (1, 8), user="bob").settle()
    given.pending("fixed", 4, user="zoe").settle()
    assert on(given, "tune") == {"n-1": 4} and on(given, "fixed") == {"n-0": 1}


def test_parts_of_devices_are_let_go_of_device_by_device() -> None:
    """Two halves of one device and two of another were held in turns, and a half of each let go of: no GPU was free."""
    given = nodes(2)
    halves(given, "tune", 2, 4)
    given.settle()
    gang = given.state.gangs["tune/0"]
    first = gang.held[0]
    assert [placed.gpu_index for placed in gang.held] == [0, 0, 1, 1]
    given.pending("fixed", 1).settle()
    left = {placed.gpu_index for placed in gang.held}
    assert len(left) == 1 and first.gpu_index in left and on(given, "fixed") == {"n0": 1}


def test_two_elastic_ones_both_make_room_where_their_first_ranks_are_together() -> None:
    """By number four GPUs were each one's share, and of one only two were elsewhere."""
    given = nodes(8, 2, 6)
    for name, places in {"one": (6, 2, 0), "two": (2, 0, 6)}.items():
        placed_on(given, name, (1, 8), places)
    given.after(300.0).turn()
    given.pending("fixed", 8)
    assert given.turn().decisions == [Resize("one", to=2), Resize("two", to=6), Nominate("fixed", gpus=8)]


def test_one_keeps_a_bundle_on_each_of_two_nodes_where_that_leaves_room_on_both() -> None:
    given = nodes(4, 4).pending("tune", 1, (2, 8)).settle()
    group = Group("workers", 1, (Option(None, Resources(3000)),))
    fixed = Workload("fixed", "fixed", "train", (group,), min_size=2, max_size=2)
    given.state.apply(facts.Submitted(given.now, fixed))
    given.settle()
    assert on(given, "tune") == {"n0": 1, "n1": 1} and on(given, "fixed") == {"n0": 1, "n1": 1}


def test_where_nobody_can_make_room_nobody_becomes_smaller() -> None:
    given = nodes(4, 4).pending("one", 1, (1, 4)).pending("two", 1, (1, 4)).settle()
    given.pending("fixed", 4).settle()
    assert (on(given, "one"), on(given, "two"), on(given, "fixed")) == ({"n0": 4}, {"n1": 4}, {})


def test_a_size_that_a_user_asked_for_is_kept() -> None:
    given = nodes(8, 4).pending("tune", 1, (1, 12)).settle()
    given.state.gangs["tune/0"].wanted_size = 12
    given.pending("fixed", 8).settle()
    assert sum(on(given, "tune").values()) == 12


def test_what_a_lower_priority_would_start_on_does_not_keep_out_a_higher_one() -> None:
    """The lower one was counted first, on the node that the elastic one was to keep."""
    given = nodes(8, 4).pending("tune", 1, (1, 12)).settle()
    given.pending("low", 4, priority=10).pending("high", 8, priority=60)
    assert given.turn().decisions == [Resize("tune", to=4), Nominate("high", gpus=8)]


def test_where_one_node_cannot_have_all_of_it_a_part_of_it_starts_on_another() -> None:
    """Both bundles were to be on the second node, where the elastic one must keep two GPUs, and none on the first."""
    given = nodes(3, 4, 1)
    placed_on(given, "tune", (3, 5), (0, 4, 1))
    group = Group("workers", 1, (Option(None, Resources(2000)),))
    fixed = Workload("fixed", "fixed", "train", (group,), min_size=2, max_size=2)
    given.after(600.0, facts.Submitted(given.now, fixed)).settle()
    assert on(given, "fixed") == {"n0": 1, "n1": 1} and on(given, "tune") == {"n1": 2, "n2": 1}


def test_of_two_that_hold_parts_of_a_node_the_one_that_can_leaves_it_to_the_other() -> None:
    given = nodes(1, 3)
    for name, low, places in (("stays", 2, "n1:0 n1:0 n1:1 n1:1 n1:2"), ("leaves", 1, "n1:2 n0:0 n0:0")):
        given.now += 1.0
        halves(given, name, low, 5)
        there = tuple(Placed("workers", each[:2], 0, int(each[3:])) for each in places.split())
        given.state.apply(decisions.Launch(f"{name}/0", 1, there))
        given.state.apply(facts.Bound(given.now, f"{name}/0", 1))
    given.after(600.0).pending("fixed", 2).settle()
    assert on(given, "fixed") == {"n1": 1} and "n1" not in on(given, "leaves")


def test_of_two_that_could_start_each_by_itself_one_counts_and_the_elastic_one_has_the_rest() -> None:
    given = nodes(8, 4).pending("tune", 1, (1, 12)).settle()
    given.pending("first", 8).pending("second", 4)
    given.settle().after(600.0).settle()
    assert (on(given, "tune"), on(given, "first"), on(given, "second")) == ({"n1": 4}, {"n0": 1}, {})


@pytest.mark.parametrize("queues", [{"a": 8}, {"a": 8, "b": 0}])
@pytest.mark.parametrize("quantum_s", [0.0, 60.0])
def test_what_a_user_has_it_let_go_of_lies_where_somebody_waits(queues: dict[str, int], quantum_s: float) -> None:
    """It let go of its last ranks, on nodes of the other flavor, and the one that waited for these waited for ever."""
    given = cluster("1 node x 4 A, 1 node x 4 B").scheduling(quantum_s=quantum_s)
    for name, gpus in queues.items():
        given.queue(name, gpus, borrow=8)
    given.pending("tune", 1, (1, 8), queue="a").settle()
    given.after(1.0).pending("fixed", 4, flavor="A", queue=[*queues][-1])
    given.after(1.0, facts.Scaled(given.now, "tune", 4)).settle()
    assert on(given, "tune") == {"b-0": 4} and on(given, "fixed") == {"a-0": 1}


def test_what_a_user_has_it_let_go_of_lies_where_another_one_can_grow() -> None:
    """It let go of its last ranks, on nodes of the other flavor."""
    given = cluster("1 node x 4 A, 1 node x 4 B").pending("tune", 1, (1, 8)).settle()
    given.pending("named", 1, (1, 4), flavor="A").after(0.0, facts.Scaled(given.now, "tune", 7))
    given.after(0.0, facts.Scaled(given.now, "named", 1)).settle()
    assert on(given, "tune") == {"a-0": 3, "b-0": 4} and on(given, "named") == {"a-0": 1}
    given.after(1.0, facts.Scaled(given.now, "tune", 4), facts.Scaled(given.now, "named", 4)).settle()
    assert on(given, "named") == {"a-0": 4} and on(given, "tune") == {"b-0": 4}


def test_what_a_user_has_it_let_go_of_is_reserved_for_others_and_it_is_not_evicted_when_that_opens() -> None:
    """It kept the node that another user had reserved, and had to leave whole when the window opened."""
    given = cluster("2 nodes x 4").pending("tune", 1, (1, 8), grace_s=10.0).settle()
    last = given.state.gangs["tune/0"].held[0].node
    booked = Reservation("booked", 1000.0, 5000.0, users=("bob",), nodes=(last,))
    made = replace(given.state.configuration, version=2, reservations=(booked,))
    given.after(1.0, facts.Configured(given.now, made), facts.Scaled(given.now, "tune", 4)).settle()
    assert last not in on(given, "tune")
    given.after(2000.0)
    assert given.turn().decisions == []


@pytest.mark.parametrize(("dearer", "its"), [(20, True), (10, False)])
def test_who_makes_room_beside_victims_keeps_what_it_must_where_the_cheapest_of_them_are_not(
    dearer: int, its: bool
) -> None:
    """It kept its first rank on the node of the cheapest victim: so one of a higher priority was evicted; or where that
    one may not be, it was evicted itself. And it gave seven GPUs where four were enough."""
    given = nodes(8, 8).rules("lower_priority")
    placed_on(given, "tune", (1, 8), (4, 4))
    given.running("cheap", 4, priority=10).running("dear", 4, priority=dearer, preemptible=its)
    assert on(given, "cheap") == {"n0": 1}
    given.after(600.0).pending("wide", 8, priority=90)
    decided = given.decide()
    assert decided.decisions == [
        Resize("tune", to=4),
        Preempt("cheap", "in_queue_priority"),
        Nominate("wide", gpus=8),
    ]
    given.settle()
    assert on(given, "tune") == {"n1": 4} and on(given, "wide") == {"n0": 1}


def test_by_rank_who_holds_more_than_its_share_lets_go_where_one_of_a_higher_priority_can_be() -> None:
    """It kept its first ranks: nine of twelve GPUs stood idle, and the other one waited for ever."""
    given = nodes(8, 4).rules("by_rank").pending("tune", 1, (1, 12)).settle()
    given.pending("wide", 1, (8, 9), priority=60, topology=Topology("node")).settle()
    assert on(given, "wide") == {"n0": 8} and on(given, "tune") == {"n1": 3}


def test_by_rank_who_holds_more_than_its_share_lets_go_where_another_one_can_grow() -> None:
    given = cluster("1 node x 4 A, 1 node x 4 B").rules("by_rank").policies(elasticity="even")
    given.pending("tune", 1, (1, 8)).settle()
    given.pending("named", 1, (1, 4), flavor="A").settle().after(600.0).settle()
    assert on(given, "named") == {"a-0": 4} and on(given, "tune") == {"b-0": 4}


@pytest.mark.parametrize("is_elastic", [False, True])
def test_by_rank_an_elastic_one_that_has_its_share_makes_way_for_one_that_is_owed_a_start(is_elastic: bool) -> None:
    """What has a share is not ranked, and so was never a victim: who needed its node waited for ever."""
    given = nodes(8, 4).rules("by_rank")
    placed_on(given, "tune", (2, 3), (2, 0))
    if is_elastic:
        given.pending("wide", 1, (8, 9), topology=Topology("node"))
    else:
        given.pending("wide", 8)
    given.settle().after(3600.0).settle()
    assert set(on(given, "wide")) == {"n0"} and on(given, "tune") == {"n1": 3}


def test_by_rank_who_makes_way_for_one_that_is_owed_a_start_does_not_leave_where_less_would_do() -> None:
    given = nodes(8, 4).rules("by_rank")
    placed_on(given, "tune", (1, 3), (2, 1))
    given.running("other", 3, preemptible=False)
    assert on(given, "other") == {"n1": 1}
    given.pending("wide", 1, (8, 9), topology=Topology("node"))
    given.settle().after(3600.0)
    assert given.turn().decisions[:2] == [Resize("tune", to=1), Nominate("wide", gpus=8)]


@pytest.mark.parametrize("reclaim", ["never", "any"])
def test_by_rank_nobody_makes_way_for_one_that_is_owed_a_start_in_a_queue_with_which_it_does_not_compete(
    reclaim: str,
) -> None:
    given = nodes(8, 4).queue("theirs", 4).queue("mine", 8).rules("by_rank", reclaim=reclaim)
    placed_on(given, "tune", (2, 3), (2, 0))
    given.pending("wide", 1, (8, 9), topology=Topology("node"), queue="mine").settle().after(3600.0).settle()
    assert (set(on(given, "wide")) == {"n0"}) == ("n0" not in on(given, "tune")) == (reclaim == "any")


def test_so_many_become_smaller_as_it_takes() -> None:
    """Of thirty-two it was looked what they could let go of: what needs more of them never started."""
    given = cluster("9 nodes x 8")
    for number in range(36):
        given.running(f"e{number}", 2, (1, 2))
    given.pending("wide", 34, (34, 34))
    decided = given.turn().decisions
    assert len([each for each in decided if isinstance(each, Resize)]) == 34 and decided[-1] == Nominate("wide", 34)


def test_beside_any_number_of_classes_that_cannot_start_an_elastic_gang_grows() -> None:
    """Of a hundred and twenty-eight it was looked whether they could; the others were taken to."""
    given = cluster("1 node x 4 A, 1 node x 8 B").queue("a", 8).queue("b", 4, borrow=0)
    given.running("full", 4, queue="b", flavor="A").running("grows", 1, (1, 8), queue="a", flavor="B")
    for number in range(140):
        unlike = Resources(1000, memory_bytes=number << 20)
        group = Group("workers", 1, (Option("B", unlike),))
        given.state.apply(facts.Submitted(given.now, Workload(f"w{number}", f"w{number}", "task", (group,), queue="b")))
    assert given.after(60.0).turn().decisions == [Resize("grows", 8)]


@pytest.mark.parametrize(("where", "booked", "size"), [("1 node x 8", 2, 6), ("2 nodes x 4", 4, 4)])
def test_one_that_a_reservation_finds_while_it_is_launched_begins_anew_on_what_it_would_keep(
    where: str, booked: int, size: int
) -> None:
    """What it would have kept was anybody's, so that it waited for all whom the order prefers."""
    made = cluster(where).reserve(200.0, 500.0, "bob", gpus=booked).policies(ordering="shortest_remaining")
    made.pending("guest", 1, (1, 8), user="zoe", grace_s=120.0, estimated_runtime_s=50.0).turn()
    made.after(10.0, facts.Estimated(made.now, "guest/0", 10_000.0))
    assert made.state.gangs["guest/0"].status is Status.LAUNCHING and made.state.gangs["guest/0"].size == 8
    made.pending("short", 2, user="zoe", max_runtime_s=5.0)
    made.after(80.0)
    assert made.turn().decisions == [Preempt("guest", "reservation")]
    assert Launch("guest", size) in made.after(1.0).turn(facts.Released(made.now, "guest/0", 1)).decisions
