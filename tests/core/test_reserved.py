"""Which GPUs a reservation of so many takes is decided once, and again only for a reason (core/reserved.py)."""

from __future__ import annotations

from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import Taken
from llmsched.core.decisions import Assign
from llmsched.core.nodes import Node
from llmsched.core.render import text
from llmsched.core.reserved import LOOKED_AT_S, decided
from llmsched.core.resources import MILLI, Resources
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial

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
    assert said(given, facts.Finished(5.0, other.id, 1, "succeeded")) == [], "long before, nobody leaves for it"
    until = given.turn().plan.wake_at
    assert until is not None and until < FAR - other.spec.grace_s
    assert said(given.after(until - given.now)) == ["booked0"]
    assert taken(given) != {"booked0": ((first, 4),)}


def test_long_before_its_window_it_does_not_follow_who_comes_and_goes() -> None:
    """It moved each time a job of a minute began, and with it those whom it kept out: an elastic gang grew onto what it
    had left, and gave that back in the next second."""
    given = cluster("2 nodes x 4").reserve(FAR, 600.0, "ann", gpus=4).pending("big", 1, (2, 8)).settle()
    for number in range(20):
        given.pending(f"s{number}", 1)
    seen = {}
    for number in range(20):
        plan = given.settle().after(60.0).turn(facts.Finished(given.now, f"s{number}/0", 1, "succeeded")).plan
        seen[tuple(taken(given).items())] = plan
    assert len(seen) == 1


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
    with Trial(given.state) as one, Trial(thaw(freeze(given.state))) as other:
        assert decided(one) == decided(other)


# --- several on one node --------------------------------------------------------------------------------------------


def test_two_share_a_node_where_their_gpus_fit_beside_each_other() -> None:
    """The second one got nothing, in silence: of a node of which one had anything it could have none."""
    given = cluster("1 node x 5").reserve(100.0, 900.0, "bob", gpus=2).reserve(100.0, 900.0, "ann", gpus=2)
    given.pending("one", 1, user="zoe").pending("more", 1, user="zoe").settle()
    assert taken(given) == {"booked0": (("n-0", 2),), "booked1": (("n-0", 2),)}
    assert (given.phase("one"), given.phase("more")) == ("running", "waiting"), "the rest is for everybody"
    given.after(100.0).pending("his", 2, user="bob").pending("hers", 2, user="ann").settle()
    assert given.phase("his") == given.phase("hers") == "running"


def test_those_whose_windows_never_meet_take_the_same_gpus_and_leave_the_rest_open() -> None:
    given = cluster("1 node x 4").reserve(100.0, 100.0, "bob", gpus=2).reserve(300.0, 100.0, "ann", gpus=2)
    given.reserve(0.0, 3600.0, "eve", gpus=2, repeat="0 8 * * *").reserve(
        0.0, 3600.0, "dan", gpus=2, repeat="0 9 * * *"
    )
    given.pending("guest", 2, user="zoe").settle()
    assert set(taken(given).values()) == {(("n-0", 2),)} and len(taken(given)) == 4
    assert given.phase("guest") == "running"


def test_who_has_two_on_one_node_has_both() -> None:
    """What it ran counted for each of them, so that others took what was left of the second."""
    given = cluster("1 node x 5").reserve(50.0, 900.0, "bob", gpus=2).reserve(50.0, 900.0, "bob", gpus=2)
    given.running("first", 2, user="bob").after(50.0)
    given.pending("guest", 2, user="zoe").pending("one", 1, user="zoe").settle()
    assert (given.phase("guest"), given.phase("one")) == ("waiting", "running")
    given.pending("second", 2, user="bob").settle()
    assert given.phase("second") == "running"


def test_a_guest_leaves_when_both_are_open_and_no_holder_leaves_for_the_other() -> None:
    given = cluster("1 node x 5").reserve(100.0, 900.0, "bob", gpus=2).reserve(200.0, 900.0, "ann", gpus=2)
    given.running("his", 2, user="bob").running("guest", 2, user="zoe", grace_s=10.0)
    given.after(120.0 - given.now)
    assert given.turn().decisions == [], "beside the first one there is room for it"
    assert given.after(70.0).turn().decisions == [Preempt("guest", "reservation")]


def test_nobody_leaves_for_one_that_begins_on_a_node_where_another_is_already_held() -> None:
    """It takes the node on which fewer have to leave, all who have something there counted together."""
    given = cluster("2 nodes x 4").reserve(100.0, 900.0, "bob", gpus=2).reserve(100.0, 900.0, "ann", gpus=2)
    given.running("guest", 2, user="zoe", ends_in=FAR)
    for _ in range(12):
        assert given.turn().decisions == []
        given.after(10.0)


def test_who_lacks_gpus_is_told_how_many_were_found() -> None:
    given = cluster("1 node x 4").reserve(10.0, 900.0, "bob", gpus=3).reserve(10.0, 900.0, "ann", gpus=2)
    given.running("his", 3, user="bob").after(10.0).pending("hers", 2, user="ann").pending("too", 2, user="ann")
    given.pending("guest", 1, user="zoe")
    given.turn()
    for name in ("hers/0", "too/0"):
        reason = given.state.gangs[name].reason
        assert reason is not None and "booked1 has found 1 of 2 GPUs" in text(reason.message)
    reason = given.state.gangs["guest/0"].reason
    assert reason is not None and reason.message.code != "nodes.reserved"
    given.turn(facts.Finished(given.now, "his/0", 1, "succeeded"))
    node = Node("n-9", Resources(4 * MILLI, 64_000, 1 << 40))
    given.turn(facts.NodeJoined(given.now, node))
    assert taken(given)["booked1"] == (("n-9", 2),) or given.phase("hers") != "waiting"


def test_one_that_names_a_node_has_it_before_one_of_so_many_gpus() -> None:
    """That one took the same node, as it came first, and one of the two holders found it taken."""
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4).reserve(FAR, 100.0, "ann", nodes=("n-1",))
    said(given)
    assert taken(given) == {"booked0": (("n-0", 4),)}


@pytest.mark.parametrize("crons", [("*/10 * * * *", "*/5 * * * *"), ("*/5 * * * *", "*/10 * * * *")])
def test_those_that_come_again_take_no_turns_on_nodes(crons: tuple[str, str]) -> None:
    """After its window the second one's next did not meet the first's, so it took the same node; a guest began on the
    other one, and left when the second went back there: every ten minutes, for ever."""
    given = cluster("2 nodes x 4").scheduling(hold_after_s=1e6)  # else it begins in a gap once it has waited long
    for user, repeat in zip(("bob", "ann"), crons, strict=True):
        given.reserve(0.0, 60.0, user, gpus=3, repeat=repeat)
    assert said(given) == ["booked0", "booked1"]
    given.pending("guest", 4, user="zoe", grace_s=5.0)
    for _ in range(60):
        plan = given.after(31.0).turn().plan
        assert not plan.decisions


def test_a_pass_decides_again_only_when_what_it_depends_on_has_changed() -> None:
    given = cluster("4 nodes x 4").reserve(FAR, 100.0, "bob", gpus=3).running("guest", 2)
    given.turn()

    def found() -> dict[str, Taken]:
        with Trial(given.state) as trial:
            return decided(trial)

    before = found()
    given.pending("vast", 99).turn()
    given.after(10.0).turn()
    assert found() is before, "somebody waits, and time passes"
    given.turn(facts.Finished(given.now, "guest/0", 1, "succeeded"))
    assert found() is not before


def test_one_that_has_lost_its_gpus_closes_no_node_on_which_somebody_was_promised_places() -> None:
    """Somebody had just been evicted for that promise, and it was taken back in the same second."""
    given = cluster("2 nodes x 4").rules("lower_priority").reserve(FAR, 100.0, "bob", gpus=4)
    given.running("fixed", 3, preemptible=False, user="ann").running("low", 1, priority=10, user="ann")
    given.turn()
    assert given.state.taken["booked0"].parts == (("n-1", 4),)
    given.pending("high", 1, priority=90, user="ann")
    assert given.turn().decisions == [Preempt("low", "in_queue_priority"), Nominate("high", 1)]
    assert said(given, facts.NodeLost(given.now, "n-1")) == ["booked0"]
    assert given.state.taken["booked0"].closed == ()
    assert given.turn(facts.Released(given.now, "low/0", 1)).decisions == [Launch("high", 1)]


def test_it_does_not_follow_an_elastic_gang_that_grows_onto_it() -> None:
    """What that would only give back counted as if somebody had to leave, so the reservation moved to where others ran,
    and elastic work grew and became smaller again in the same second, some fifty times in ten minutes."""
    given = cluster("2 nodes x 4").reserve(FAR, 100.0, "bob", gpus=4)
    given.running("s0", 1, user="ann").running("s1", 1, user="ann")
    assert said(given) == ["booked0"] and given.state.taken["booked0"].parts == (("n-1", 4),)
    held = given.running("big", 2, (2, 8), user="ann").state.gangs["big/0"].held
    assert {placed.node for placed in held} == {"n-0"}
    given.state.apply(decisions.Resize("big/0", 1, held + (held[0]._replace(node="n-1"),) * 4))
    given.state.apply(facts.Resized(given.now, "big/0", 1, 6))
    assert said(given, facts.Finished(given.now, "s0/0", 1, "succeeded")) == []


def evictions(given: Given, until: float) -> list[tuple[float, str]]:
    """When whom a reservation makes leave. Work begins at once, and has left a second after it is told."""
    found: list[tuple[float, str]] = []
    while given.now < until:
        happened: list[Any] = []
        for name, gang in given.state.gangs.items():
            if gang.status is Status.LAUNCHING:
                happened.append(facts.Bound(given.now, name, gang.attempt))
            elif gang.status is Status.VACATING:
                happened.append(facts.Released(given.now, name, gang.attempt))
        plan = given.turn(*happened).plan
        found += [(given.now, each.gang) for each in plan.decisions if isinstance(each, decisions.Preempt)]
        acts = plan.decisions or happened
        given.after(1.0 if acts else max(1.0, min(plan.wake_at or until, until) - given.now))
    return found


@pytest.mark.parametrize("guests", [3, 4])
@pytest.mark.parametrize("grace_s", [0.0, 20.0])
def test_from_when_guests_are_told_to_leave_until_it_closes_it_stays_where_it_is(guests: int, grace_s: float) -> None:
    """Two of a holder who runs nothing took turns on two nodes: whoever had left for the one began where it had been,
    as the other opens later, and was then in the way of fewer. One of them left 602 times an hour."""
    given = cluster("2 nodes x 2").scheduling(quantum_s=60.0)
    given.reserve(600.0, 600.0, "ann", gpus=2, repeat="*/30 * * * *")
    given.reserve(600.0, 1200.0, "ann", gpus=1, repeat="0 * * * *")
    for number in range(guests):
        given.pending(f"s{number}", 1, grace_s=grace_s)
    left = evictions(given, 7500.0)
    windows = [(1800.0 * number - 25.0, 1800.0 * number + 1200.0) for number in range(6)]
    for opens, closes in windows:
        gone = [name for at, name in left if opens <= at < closes]
        assert all(gone.count(name) <= 2 for name in gone), left  # once for each of the two
    assert 0 < len(left) <= 3 * len(windows)


def test_a_reservation_is_looked_at_early_enough_for_one_that_begins_and_takes_long_to_leave() -> None:
    """The moment was worked out before it began, and between two moments that plans had named the choice changed."""
    given = cluster("2 nodes x 4").reserve(10_000.0, 100.0, "bob", gpus=2).scheduling(hold_after_s=1e6)
    assert said(given) == ["booked0"]
    plan = given.pending("slow", 4, user="zoe", grace_s=1000.0).turn().plan
    assert [type(each).__name__ for each in plan.decisions] == ["Launch"]
    assert plan.wake_at == 10_000.0 - 2 * 1000.0 - LOOKED_AT_S
