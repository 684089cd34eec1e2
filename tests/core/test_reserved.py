"""Which GPUs a reservation of so many takes is decided once, and again only for a reason (core/reserved.py)."""

from __future__ import annotations

from typing import Any

from ledger import Given, Launch, cluster

from llmsched.core import facts
from llmsched.core.configuration import Taken
from llmsched.core.decisions import Assign
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State

FAR = 5000.0


def taken(given: Given) -> dict[str, tuple[tuple[str, int], ...]]:
    return {name: each.parts for name, each in given.state.taken.items()}


def said(given: Given, *happened: Any) -> list[str]:
    """Of which reservations a pass, which is applied, says what they take."""
    return [each.reservation for each in given.turn(*happened).plan.decisions if isinstance(each, Assign)]


def test_it_takes_the_same_ones_whoever_comes_and_goes_beside_it() -> None:
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4).running("guest", 2)
    assert said(given) == ["booked0"] and taken(given) == {"booked0": (("n-1", 4),)}
    given.pending("more", 2)
    for happened in ([], [facts.Finished(5.0, "guest/0", 1, "succeeded")], [facts.Cancelled(6.0, "more", "ann")]):
        assert said(given, *happened) == []
    assert taken(given) == {"booked0": (("n-1", 4),)}


def test_who_has_begun_beside_a_reservation_is_not_on_what_it_takes_afterwards() -> None:
    """With several on the same nodes the last one took what somebody had just begun on, as less was left elsewhere
    by then: it left at once, began there again, and left."""
    sizes = ((2, 8000), (1, 64_000), (2, 8000), (4, 64_000))
    nodes = [Node(f"n{at}", Resources(gpus * MILLI, cpus, 1 << 40)) for at, (gpus, cpus) in enumerate(sizes)]
    given = Given(nodes).queue("q0", 9).queue("q1", 9)
    given.reserve(2000.0, 300.0, "ann", gpus=2).reserve(100.0, 50.0, "ann", gpus=5)
    given.reserve(100.0, 50.0, "nobody", gpus=3, queue="q0")
    given.pending("first", 3, (3, 3), user="ann", queue="q0").settle()
    given.pending("guest", 3, (3, 3), user="ann", queue="q1", grace_s=120.0)
    assert given.turn().decisions == [Launch("guest", 3)]
    assert [given.turn().decisions for _ in range(3)] == [[], [], []]


def test_it_takes_others_where_a_node_is_gone_or_somebody_is_there_whom_nobody_can_move() -> None:
    given = cluster("3 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4)
    said(given)
    assert said(given, facts.NodeLost(2.0, "n-2")) == ["booked0"] and taken(given) == {"booked0": (("n-1", 4),)}
    given.now = 3.0
    given.running("fixed", 4, preemptible=False, max_runtime_s=10.0).running("also", 4, preemptible=False)
    on = {gang.id: gang.held[0].node for gang in given.state.gangs.values()}
    assert said(given) == ["booked0"] and taken(given) == {"booked0": ((on["fixed/0"], 4),)}


def test_one_that_finds_nothing_is_looked_at_when_its_window_closes() -> None:
    """Until then others take all of it; the next time they do not. Nobody asked before something else happened."""
    given = cluster("1 node x 4").reserve(700.0, 50.0, "ann", gpus=4)
    given.reserve(300.0, 120.0, "bob", gpus=1, repeat="*/10 * * * *").after(690.0)
    assert said(given) == ["booked0", "booked1"] and taken(given) == {"booked0": (("n-0", 4),), "booked1": ()}
    assert given.after(10.0).turn().plan.wake_at == 720.0
    assert said(given.after(20.0)) == ["booked1"] and taken(given)["booked1"] == (("n-0", 1),)


def test_it_takes_others_where_fewer_would_have_to_leave() -> None:
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4).running("a", 4).running("b", 4)
    said(given)
    [(first, _)] = taken(given)["booked0"]
    [other] = [gang for gang in given.state.gangs.values() if gang.held[0].node != first]
    assert said(given, facts.Finished(5.0, other.id, 1, "succeeded")) == ["booked0"]
    assert taken(given) != {"booked0": ((first, 4),)}


def test_it_follows_its_holder_where_nobody_leaves_for_that() -> None:
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4)
    said(given)
    given.running("theirs", 2, user="bob")
    assert given.state.gangs["theirs/0"].held[0].node == "n-0"
    assert said(given) == ["booked0"] and taken(given) == {"booked0": (("n-0", 4),)}


def test_several_take_none_of_one_another_and_a_new_one_leaves_the_others_theirs() -> None:
    given = cluster("3 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4)
    said(given)
    before = given.state.configuration
    first = before.reservations[0]
    new = first.__class__("new", FAR, 100.0, users=("ann",), gpus_milli=4 * MILLI)
    both = before.__class__(2, before.queues, reservations=(first, new), scheduling=before.scheduling)
    assert said(given, facts.Configured(4.0, both)) == ["new"]
    assert taken(given) == {"booked0": (("n-2", 4),), "new": (("n-1", 4),)}
    given.state.apply(facts.Configured(5.0, before))
    assert taken(given) == {"booked0": (("n-2", 4),)}


def test_what_it_takes_is_thawed_as_it_was_and_a_journal_without_it_is_folded() -> None:
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=6)
    said(given)
    assert (
        thaw(freeze(given.state)).taken == given.state.taken == {"booked0": Taken(6000, None, (("n-1", 4), ("n-0", 2)))}
    )
    old = State()
    old.apply(facts.Configured(0.0, given.state.configuration))
    assert old.taken == {}
