"""What was asked or promised before something changed does not outlive the change."""

from __future__ import annotations

from dataclasses import replace

from ledger import cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import Quota, Reservation
from llmsched.core.invariants import violations
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load


def test_a_size_that_was_asked_for_ends_with_the_spec_that_allowed_it() -> None:
    given = cluster("1 node x 8").running("w", 2, elastic=(1, 4))
    given.turn(facts.Scaled(given.now, "w", 1))
    narrower = replace(given.state.workloads["w"].workload, min_size=2, max_size=3)
    given.after(1.0, facts.Submitted(given.now, narrower, replaces=True)).settle()
    assert given.state.gangs["w/0"].wanted_size is None
    assert 2 <= given.state.gangs["w/0"].size <= 3


def test_a_size_that_the_spec_does_not_allow_is_noted_and_ignored() -> None:
    given = cluster("1 node x 8").running("w", 2, elastic=(2, 4))
    given.turn(facts.Scaled(given.now, "w", 1))
    assert given.state.gangs["w/0"].wanted_size is None
    assert "may not have that size" in given.state.notes[-1]


def test_a_promise_ends_when_a_quota_is_lowered_under_it() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.policies(ordering="priority")
    given.running("low", 4, priority=10).pending("high", 4, priority=90)
    given.turn()
    assert given.state.gangs["high/0"].nomination is not None
    queue = replace(given.state.configuration.queues[0], quotas=(("*", Quota(2000, 0)),))
    lowered = replace(given.state.configuration, version=2, queues=(queue,))
    decided = turn(given.state, [facts.Configured(given.now, lowered)], load(given.names)).decisions
    assert [each.gang for each in decided if isinstance(each, decisions.Withdraw)] == ["high/0"]
    assert given.state.gangs["high/0"].nomination is None and violations(given.state) == []
    assert given.state.gangs["high/0"].reason is not None


def test_who_is_promised_again_what_was_taken_back_in_the_same_pass_has_it() -> None:
    """Another one leaves for it as well, as the quota is lower now; and its place has the same name as before."""
    given = cluster("1 node x 2").queue("q", gpus=2).rules(within_queue="lower_priority")
    given.policies(ordering="priority")
    given.running("a", 1, priority=10).running("b", 1, priority=10).pending("high", 1, priority=90)
    [before, _] = given.turn().decisions
    queue = replace(given.state.configuration.queues[0], quotas=(("*", Quota(1000, 0)),))
    lowered = replace(given.state.configuration, version=2, queues=(queue,))
    decided = given.turn(facts.Configured(given.now, lowered)).decisions
    assert [type(each).__name__ for each in decided] == ["Other", "Preempt", "Nominate"]
    assert {before.name, decided[1].name} == {"a", "b"}
    promised = given.state.gangs["high/0"].nomination
    assert promised is not None and promised.victims == ("a/0", "b/0")
    for left in ("a/0", "b/0"):
        decided = given.turn(facts.Released(given.now, left, 1)).decisions
    assert given.state.gangs["high/0"].held == promised.placement


def test_no_group_of_a_gang_goes_where_others_have_reserved() -> None:
    given = cluster("1 node x 2 A, 1 node x 2 B")
    booked = Reservation("booked", 500.0, 1000.0, queue="other", nodes=("b-0",))
    given.state.apply(facts.Configured(0.0, replace(given.state.configuration, version=2, reservations=(booked,))))
    groups = (
        Group("workers", 1, (Option("A", Resources(1000)),)),
        Group("beside", 1, (Option("B", Resources(1000)),)),
    )
    given.after(400.0, facts.Submitted(400.0, Workload("two", "two", "train", groups)))
    assert given.turn().decisions == []
    assert given.decide().code("two") == "reservation"


def test_a_gang_that_becomes_smaller_comes_back_to_no_node_that_was_lost_meanwhile() -> None:
    """It was told to stay on two nodes; one is lost, comes back, and is given to somebody else before it says so."""
    given = cluster("2 nodes x 4").scheduling(stale_gang_grace_s=1000.0)
    given.running("wide", 8, elastic=(2, 8)).pending("first", 2).turn()
    wide = given.state.gangs["wide/0"]
    assert wide.status is Status.RESIZING and {placed.node for placed in wide.placement or ()} == {"n-0", "n-1"}
    lost = given.state.nodes["n-1"].node
    given.turn(facts.NodeLost(given.now, "n-1"))
    given.turn(facts.NodeJoined(given.now, lost))
    given.pending("other", 2).turn()
    assert given.state.capacity.free_gpus(given.state.capacity.open) == 0, "what wide has lost is others' now"
    given.turn(facts.Resized(given.now, "wide/0", wide.attempt, 6))
    assert violations(given.state) == []


def test_what_a_lost_node_leaves_of_a_gang_that_becomes_smaller_is_looked_at_as_it_is() -> None:
    """It holds more than it was told to keep, and was told to keep something on the node that is not there."""
    given = cluster("1 node x 6 A, 1 node x 2 B").running("wide", 8, elastic=(2, 8)).pending("first", 3)
    given.turn()
    wide = given.state.gangs["wide/0"]
    gone = next(node for node in ("b-0", "a-0") if any(placed.node == node for placed in wide.placement or ()))
    given.turn(facts.NodeLost(given.now, gone))
    assert violations(given.state) == []
    given.pending("next", 1, priority=90).turn()
    assert violations(given.state) == []
