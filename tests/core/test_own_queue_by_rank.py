"""By rank, in one queue: whether one ends inside what the queue owns or borrows does not change who comes first."""

from __future__ import annotations

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster


def two_queues(gpus: int) -> Given:
    """Each owns half of them, and gives the rest of it to the other one."""
    given = cluster(f"1 node x {gpus} A").queue("a", gpus // 2).queue("b", gpus // 2)
    return given.rules("by_rank", "any").scheduling(quantum_s=60.0, hold_after_s=600.0)


def test_a_higher_priority_that_borrows_comes_before_a_lower_one_inside_the_quota() -> None:
    """It needs one GPU more than its queue owns, and waited for ever for those that its queue had for less."""
    given = two_queues(6).running("low", 3, queue="b", priority=10).pending("high", 4, queue="b", priority=90)
    assert given.after(61.0).turn().decisions == [Preempt("low", "in_queue_rank"), Nominate("high", 4)]


def test_a_low_priority_does_not_take_the_place_of_a_high_one_for_being_small_enough() -> None:
    given = two_queues(6).running("high", 4, queue="b", priority=90).pending("low", 3, queue="b", priority=10)
    given.settle().after(61.0).settle().after(1801.0).settle()
    assert (given.phase("high"), given.phase("low")) == ("running", "waiting")


@pytest.mark.parametrize("gpus", [4, 6])
def test_what_another_queue_owns_and_asks_for_is_not_borrowed(gpus: int) -> None:
    """The owner comes first, whatever priority the one that would borrow has; then what is smaller has the rest."""
    given = two_queues(6).pending("high", 4, queue="b", priority=90).pending("low", 3, queue="b", priority=10)
    given.pending("owner", gpus // 2, queue="a", priority=10)
    started = {launch.name for launch in given.turn().decisions if isinstance(launch, Launch)}
    assert started == ({"owner", "high"} if gpus == 4 else {"owner", "low"})


def test_those_that_gave_to_one_that_borrows_have_what_it_leaves() -> None:
    """The last of them gives first, and only as many as it takes."""
    given = two_queues(8).running("first", 2, queue="b", priority=20).running("last", 2, queue="b", priority=10)
    given.running("theirs", 1, queue="a").pending("high", 5, queue="b", priority=90)
    given.settle().after(61.0).settle()
    assert [given.phase(name) for name in ("high", "first", "last", "theirs")] == [
        "running", "running", "waiting", "running",
    ]  # fmt: skip
