"""Of those whom a pass tells to start, or promises places, some give way to one asked later: nothing of it is left."""

from __future__ import annotations

from ledger import Given, Launch, Nominate, Other, Resize, cluster

from llmsched.core import facts
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Workload


def on_both(given: Given, name: str, gpus: int) -> None:
    """Submit one that asks for so many GPUs twice, of whichever flavor."""
    group = Group("workers", 1, (Option(None, Resources(gpus * 1000)),))
    spec = Workload(name, name, "train", (group,), queue="default", priority=50, min_size=2, max_size=2)
    given.now += 1.0
    given.state.apply(facts.Submitted(given.now, spec))


def test_who_was_promised_places_begins_there_when_one_that_was_ready_before_it_gives_way() -> None:
    """It was asked first, while the other one was to begin there, and nobody looked again."""
    given = cluster("1 node x 4 A, 1 node x 2 B").rules("lower_priority")
    given.running("slow", 2, priority=10, grace_s=100.0, flavor="A")
    given.running("one", 2, priority=10, grace_s=10.0, flavor="B").running("two", 2, priority=20, flavor="A")
    on_both(given, "mid", 2)
    assert Nominate("mid", gpus=4) in given.turn().decisions
    assert Nominate("high", gpus=2) in given.pending("high", 2, priority=90, flavor="A").turn().decisions
    given.after(1.0, *(facts.Finished(given.now, f"{name}/0", 1, "succeeded") for name in ("one", "two")))
    decided = given.pending("top", 2, priority=90, flavor="B").turn()
    assert decided.decisions[:2] == [Other("Withdraw", "mid"), Launch("top", gpus=2)]
    assert decided.plan.wake_at == decided.plan.at
    assert Launch("high", gpus=2) in given.turn().decisions


def making_room_for_low() -> Given:
    """An elastic one has room made by it for `low`, which is asked first, as it is older."""
    given = cluster("1 node x 4 A, 1 node x 4 B").rules("lower_priority").policies(ordering="fifo")
    given.running("tune", 4, (1, 4), priority=10, flavor="A").after(600.0)
    on_both(given, "low", 3)
    return given


def test_nobody_becomes_smaller_for_one_that_gives_way() -> None:
    """Who was to leave for it stayed; who was to become smaller did so all the same."""
    given = making_room_for_low().pending("high", 4, priority=90, flavor="B")
    assert given.turn().decisions == [Launch("high", gpus=4)]


def test_who_takes_the_place_of_one_that_gives_way_is_the_one_for_whom_others_become_smaller() -> None:
    given = making_room_for_low().pending("high", 3, priority=90, flavor="A")
    decided = given.turn()
    assert decided.decisions == [Resize("tune", to=1), Nominate("high", gpus=3)]
    assert decided.plan.decisions[0].beneficiary == "high/0"
    assert decided.why("high") == "waits for tune to release 3 GPUs"
