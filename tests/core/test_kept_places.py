"""Whoever is moved has its new places while it leaves the old ones, in the ledgers that all stages count by."""

from __future__ import annotations

from ledger import Given, Launch, Preempt, cluster

from llmsched.core import decisions, facts
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.workload import Group, Option, Workload

EITHER = (Option("A100", Resources(4 * MILLI), ((1, 4.0),)), Option("T4", Resources(4 * MILLI), ((1, 1.0),)))


def moving(given: Given, queue: str = "default", others: str = "") -> Given:
    """One that runs on T4 is told to leave for A100, where somebody was before."""
    group = Group("w", 1, EITHER)
    mover = Workload("a", "a", "train", (group,), queue=queue, estimated_runtime_s=9000.0, grace_s=10.0)
    given.running("b", 4, flavor="A100", queue=others or queue).turn(facts.Submitted(given.now, mover))
    given.after(1.0, facts.Bound(given.now, "a/0", 1))
    given.after(200.0, facts.Finished(given.now, "b/0", 1, "succeeded"))
    assert given.turn().decisions == [Preempt("a", "faster_flavor")]
    [goes_to] = given.state.gangs["a/0"].goes_to
    assert goes_to.node == "a100-0"
    return given


def both() -> Given:
    return cluster("1 node x 4 A100, 1 node x 4 T4")


def test_nobody_else_is_let_start_there_and_it_begins_there() -> None:
    given = moving(both())
    assert given.state.nodes["a100-0"].free_whole == 0
    assert given.pending("other", 4, flavor="A100").turn().decisions == []
    decided = given.turn(facts.Released(given.now, "a/0", 1))
    assert decided.decisions == [Launch("a", 4)] and given.state.gangs["a/0"].held[0].node == "a100-0"


def test_by_rank_nobody_else_is_counted_there() -> None:
    given = moving(both().rules(within_queue="by_rank").scheduling(quantum_s=10.0))
    given.pending("other", 4, flavor="A100", priority=90).after(30.0)
    assert given.turn().decisions == []


def test_quota_counts_it_once() -> None:
    """It moves though its queue has no more than what it holds, and nobody takes what it will hold."""
    given = moving(both().queue("q", 4, borrow=0).queue("other", 4, borrow=0), "q", others="other")
    assert given.state.quota.available("q", "A100") == 0
    assert given.pending("next", 1, queue="q").turn().decisions == []
    assert given.turn(facts.Released(given.now, "a/0", 1)).decisions == [Launch("a", 4)]


def test_they_are_given_up_where_their_node_goes_or_is_to_be_empty() -> None:
    for happens in (facts.NodeLost(300.0, "a100-0"), facts.NodeDraining(300.0, "a100-0", 900.0)):
        given = moving(both())
        given.turn(happens)
        assert given.state.gangs["a/0"].goes_to == () and not given.state.moved
        assert given.turn(facts.Released(given.now, "a/0", 1)).decisions == [Launch("a", 4)]
        assert given.state.gangs["a/0"].held[0].node == "t4-0"


def test_they_are_given_up_where_it_ends_or_is_cancelled_meanwhile() -> None:
    for happens in (facts.Finished(300.0, "a/0", 1, "succeeded"), facts.Cancelled(300.0, "a", "ann")):
        given = moving(both())
        given.turn(happens, facts.Released(301.0, "a/0", 1))
        assert given.state.gangs["a/0"].is_ended() and given.state.nodes["a100-0"].free_whole == 4


def test_they_are_in_a_snapshot_and_under_another_configuration() -> None:
    given = moving(both().queue("q", 8), "q")
    again = thaw(freeze(given.state))
    assert again.digest() == given.state.digest() and violations(again) == []
    given.turn(facts.Configured(given.now, given.state.configuration))
    given.turn(facts.NodeJoined(given.now, Node("new", Resources(4 * MILLI), "A100")))
    assert given.turn(facts.Released(given.now, "a/0", 1)).decisions == [Launch("a", 4)]


def test_a_journal_in_which_the_mover_began_elsewhere_is_folded() -> None:
    """As earlier versions decided, which kept places pass by pass."""
    given = moving(both())
    given.state.apply(facts.Released(given.now, "a/0", 1))
    promised = given.state.gangs["a/0"].nomination
    assert promised is not None and promised.moves
    elsewhere = promised.placement[0]._replace(node="t4-0", option=1)
    given.state.apply(decisions.Launch("a/0", 2, (elsewhere,)))
    assert violations(given.state) == [] and given.state.nodes["a100-0"].free_whole == 4


def test_what_it_holds_of_them_is_counted_once() -> None:
    """Whoever waited for the rest of the node did so although that was free."""
    given = cluster("1 node x 4").running("a", 2).running("b", 1)
    held = given.state.gangs["a/0"].held
    given.state.apply(decisions.Preempt("a/0", 1, 10.0, "consolidation", "b/0", None, held))
    assert given.state.nodes["n-0"].free_whole == 1 and violations(given.state) == []
    given.state.apply(facts.Released(given.now, "a/0", 1))
    assert given.state.nodes["n-0"].free_whole == 1 and violations(given.state) == []


def test_it_begins_where_it_is_faster_still_if_others_have_left_that_meanwhile() -> None:
    """By way of a place that was free sooner it moved twice."""
    given = cluster("1 node x 4 A100, 1 node x 4 V100, 1 node x 4 T4").running("fast", 4, flavor="A100")
    given.running("middle", 4, flavor="V100")
    speeds = {"A100": 4.0, "V100": 2.0, "T4": 1.0}
    options = tuple(Option(flavor, Resources(4 * MILLI), ((1, speed),)) for flavor, speed in speeds.items())
    mover = Workload("a", "a", "train", (Group("w", 1, options),), estimated_runtime_s=9000.0, grace_s=10.0)
    given.turn(facts.Submitted(given.now, mover))
    given.after(1.0, facts.Bound(given.now, "a/0", 1))
    given.after(200.0, facts.Finished(given.now, "middle/0", 1, "succeeded"))
    assert given.turn().decisions == [Preempt("a", "faster_flavor")]
    assert [placed.node for placed in given.state.gangs["a/0"].goes_to] == ["v100-0"]
    given.turn(facts.Finished(given.now, "fast/0", 1, "succeeded"))
    assert given.turn(facts.Released(given.now, "a/0", 1)).decisions == [Launch("a", 4)]
    assert given.state.gangs["a/0"].held[0].node == "a100-0" and given.state.nodes["v100-0"].free_whole == 4
