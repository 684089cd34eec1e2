"""A pass leaves nothing to decide: nobody is started whom the next one would evict, and nobody is left unasked."""

from __future__ import annotations

from ledger import Given, Launch, Nominate, Other, Preempt, cluster

from llmsched.core import facts
from llmsched.core.fair import guarantee_then_weight, usage_share


def two_that_disagree(nodes: str) -> Given:
    """The line goes by age, and evictions by priority: who is asked first has the lesser right."""
    return cluster(nodes).rules(within_queue="lower_priority").policies(ordering="fifo")


def test_who_would_be_evicted_at_once_does_not_start() -> None:
    given = two_that_disagree("1 node x 4").running("low", gpus=1, priority=10)
    given.pending("first", gpus=1, priority=10).pending("high", gpus=4, priority=50)
    decided = given.turn()
    assert decided.decisions == [Preempt("low", "in_queue_priority"), Nominate("high", 4)]
    assert decided.code("first") == "nodes"
    assert given.turn().decisions == []


def test_who_takes_the_place_of_one_that_does_not_start_starts_at_once() -> None:
    given = two_that_disagree("1 node x 4").pending("first", gpus=1, priority=10).pending("high", gpus=4, priority=50)
    assert given.turn().decisions == [Launch("high", 4)]
    assert given.turn().decisions == []


def test_what_is_left_beside_it_goes_to_the_one_that_did_not_start() -> None:
    given = two_that_disagree("2 nodes x 2").pending("a", gpus=1, priority=10).pending("b", gpus=1, priority=10)
    given.pending("high", gpus=2, priority=50).pending("low", gpus=2, priority=10).policies(placement="spread")
    assert given.turn().decisions == [Launch("a", 1), Launch("high", 2), Launch("b", 1)]
    assert given.turn().decisions == []


def test_a_promise_does_not_start_who_has_the_lesser_right_by_now() -> None:
    """Its owner came while the victim was still leaving. Started, it would be evicted in the next pass."""
    given = cluster("1 node x 4").queue("owner", gpus=4).queue("guest", gpus=0).rules("lower_priority", reclaim="any")
    given.running("low", gpus=4, queue="guest", priority=10).pending("high", gpus=4, queue="guest", priority=50)
    assert given.turn().decisions == [Preempt("low", "in_queue_priority"), Nominate("high", 4)]
    given.pending("mine", gpus=4, queue="owner")
    assert given.turn().decisions == []
    decided = given.turn(facts.Released(given.now, "low/0", 1))
    assert decided.decisions == [Other("Withdraw", "high"), Launch("mine", 4)]
    assert given.turn().decisions == []


def test_what_is_promised_is_wanted_once_and_no_use_in_the_past() -> None:
    given = cluster("1 node x 4").queue("a", gpus=0).queue("b", gpus=0).rules(reclaim="any")
    given.scheduling(fair_share="guarantee_then_weight", usage_half_life_s=600.0, usage_k=1.0, usage_window_s=6000.0)
    given.running("a1", gpus=4, queue="a").pending("b1", gpus=2, queue="b").pending("b2", gpus=2, queue="b")
    before = guarantee_then_weight(given.state)
    assert given.turn().decisions == [Preempt("a1", "quota_reclaim"), Nominate("b1", 2), Nominate("b2", 2)]
    assert guarantee_then_weight(given.state) == before == {"a": 2000.0, "b": 2000.0}
    given.after(1000.0)
    assert usage_share(given.state, "b") == 0.0 < usage_share(given.state, "a")
