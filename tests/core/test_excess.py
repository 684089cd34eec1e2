"""An attempt that takes through Ray more than its gang was given: told, then ended, unless the operator says not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger import Given, Other, cluster

from llmsched.core.configuration import Flavor
from llmsched.core.facts import Configured, ExcessUse, Finished, ForeignUse, NodeLost, Released
from llmsched.core.invariants import violations
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.trial import Trial
from llmsched.core.usage import MICROS, Amounts

THREE = Resources(3000)


def hogging(**limits: object) -> Given:
    given = cluster("1 node x 4 A100")
    given.after(0.0, Configured(given.now, replace(given.state.configuration, version=1, **limits)))
    given.running("hog", gpus=1)
    node = next(iter(given.state.nodes))
    given.after(0.0, ForeignUse(given.now, node, THREE), ExcessUse(given.now, "hog/0", 1, ((node, THREE),)))
    return given


def test_it_is_warned_and_then_ended_with_the_figure() -> None:
    given = hogging()
    decided = given.turn()
    assert decided.decisions == [] and decided.plan.wake_at == given.now + 30.0
    given.after(30.0)
    assert given.turn().decisions == [Other("Stop", "hog")]
    given.after(1.0, Released(given.now + 1.0, "hog/0", 1))
    assert given.phase("hog") == "failed"
    said = text(given.state.workloads["hog"].message)
    assert said.startswith("stopped: through Ray it took 3 GPUs beyond what its gang was given, for 30 s; in a Ray of")
    assert not given.state.exceeding


def test_an_endpoint_that_is_ended_for_it_is_stopping_until_it_has_failed() -> None:
    given = cluster("1 node x 4").running("app", gpus=1, kind="serve", min_replicas=1, max_replicas=1)
    node = next(iter(given.state.nodes))
    given.after(0.0, ForeignUse(given.now, node, THREE), ExcessUse(given.now, "app/0", 1, ((node, THREE),)))
    assert given.phase("app") == "running"
    given.after(30.0).turn()
    assert given.phase("app") == "stopping"
    given.after(1.0, Released(given.now, "app/0", 1))
    assert given.phase("app") == "failed"


def test_what_it_took_counts_as_taken_for_those_who_wait() -> None:
    given = hogging()
    given.pending("next", gpus=1)
    assert given.turn().decisions == []
    given.after(30.0)
    given.turn()
    node = next(iter(given.state.nodes))
    given.after(1.0, ForeignUse(given.now + 1.0, node, Resources()), Released(given.now + 1.0, "hog/0", 1))
    assert [type(one).__name__ for one in given.turn().decisions] == ["Launch"]


def test_the_time_in_excess_adds_up_and_a_new_attempt_begins_anew() -> None:
    given = hogging()
    node = next(iter(given.state.nodes))
    given.after(20.0, ExcessUse(given.now + 20.0, "hog/0", 1, ()))
    given.after(100.0)
    assert given.turn().decisions == []
    given.after(0.0, ExcessUse(given.now, "hog/0", 1, ((node, THREE),)))
    given.after(9.0)
    assert given.turn().decisions == []
    given.after(1.0)
    assert given.turn().decisions == [Other("Stop", "hog")]


def test_an_operator_may_only_warn_or_end_sooner() -> None:
    given = hogging(excess="warn")
    given.after(10_000.0)
    assert given.turn().decisions == [] and given.state.exceeding
    assert hogging(excess_after_s=0.0).turn().decisions == [Other("Stop", "hog")]


@pytest.mark.parametrize(("gang", "attempt"), [("hog/0", 7), ("nobody/0", 1)])
def test_a_word_about_nobody_s_attempt_changes_nothing(gang: str, attempt: int) -> None:
    given = cluster("1 node x 4")
    given.running("hog", gpus=1)
    before = given.state.digest()
    given.state.apply(ExcessUse(given.now, gang, attempt, (("n0", THREE),)))
    assert given.state.digest() == before and not given.state.exceeding


# --- whose quota it is ------------------------------------------------------------------------------------------------


def two_queues(**rules: str) -> Given:
    """The gang of "hogs" was given 1 of the queue's 2 GPUs, and has taken 3 more of its node's 8 through Ray."""
    given = cluster("2 nodes x 8").queue("hogs", 2, borrow=0).queue("others", 14).scheduling(usage_half_life_s=3600.0)
    given.rules(**rules).running("hog", gpus=1, queue="hogs")
    node = given.state.gangs["hog/0"].held[0].node
    given.after(0.0, ForeignUse(given.now, node, THREE), ExcessUse(given.now, "hog/0", 1, ((node, THREE),)))
    return given


def test_it_is_charged_to_its_queue_while_it_lasts() -> None:
    given = two_queues()
    assert given.state.use["hogs"].gpus_milli == 4000 and violations(given.state) == []
    given.pending("next", gpus=1, queue="hogs").pending("else", gpus=1, queue="others")
    decided = given.turn()
    assert [one.name for one in decided.decisions] == ["else"], "a GPU is free, and its quota is not"
    assert decided.code("next") == "quota"
    (node, _), *_ = given.state.gangs["hog/0"].excess
    given.after(1.0, ForeignUse(given.now, node, Resources()), ExcessUse(given.now, "hog/0", 1, ()))
    assert given.state.use["hogs"].gpus_milli == 1000
    assert [one.name for one in given.turn().decisions] == ["next"]
    assert violations(given.state) == []


def test_past_use_by_which_queues_are_compared_counts_it() -> None:
    given = two_queues().after(3600.0)
    given.after(0.0, ExcessUse(given.now, "hog/0", 1, ()))
    with_excess = given.state.use["hogs"].decayed
    given.after(3600.0)
    given.state.ledgers.account("hogs", given.now)
    assert with_excess == pytest.approx(4 * (given.state.use["hogs"].decayed - with_excess / 2), rel=0.01)


@pytest.mark.parametrize("end", ["attempt", "node", "other node"])
def test_what_it_was_charged_is_given_back_when_its_attempt_or_the_node_is_gone(end: str) -> None:
    given = two_queues()
    (here, _), *_ = given.state.gangs["hog/0"].excess
    if end == "other node":
        here = next(node for node in given.state.nodes if node != here)
        given.after(0.0, ExcessUse(given.now, "hog/0", 1, ((here, THREE), ("no such node", THREE))))
    given.after(1.0, Finished(given.now, "hog/0", 1, "succeeded") if end == "attempt" else NodeLost(given.now, here))
    assert given.state.use["hogs"].gpus_milli == (1000 if end == "other node" else 0)
    assert given.state.quota.available("hogs", None) == (1000 if end == "other node" else 2000)
    assert violations(given.state) == [] and not given.state.exceeding


def test_it_stays_charged_over_a_snapshot_and_another_configuration() -> None:
    given = two_queues()
    back = thaw(freeze(given.state))
    for state in (given.state, back):
        state.apply(Configured(given.now, replace(state.configuration, version=2)))
        assert state.use["hogs"].gpus_milli == 4000 and state.quota.available("hogs", None) == -2000
        assert violations(state) == []
    assert back.digest() == given.state.digest()


# --- what is there again when it is evicted ---------------------------------------------------------------------------


def evicting(**more: object) -> Given:
    """A gang of one GPU on a node of four, of which it takes three more, for as long as the operator only warns."""
    given = cluster("1 node x 4").rules(within_queue="lower_priority")
    given.after(0.0, Configured(given.now, replace(given.state.configuration, version=1, excess="warn")))
    given.running("hog", gpus=1, priority=10, **more)
    node = next(iter(given.state.nodes))
    given.after(0.0, ForeignUse(given.now, node, THREE), ExcessUse(given.now, "hog/0", 1, ((node, THREE),)))
    return given


def test_who_is_evicted_gives_back_what_it_took_beyond_its_gang() -> None:
    given = evicting().pending("boss", gpus=4, priority=90)
    before = given.state.digest()
    assert [type(one).__name__ for one in given.decide().decisions] == ["Preempt", "Nominate"]
    assert given.state.digest() == before, "a look ahead leaves the ledgers as they were"
    given.turn()
    assert given.turn().decisions == [], "not before it has gone"
    node = next(iter(given.state.nodes))
    given.after(1.0, Released(given.now + 1.0, "hog/0", 1), ForeignUse(given.now + 1.0, node, Resources()))
    assert [one.name for one in given.turn().decisions] == ["boss"]
    assert violations(given.state) == []


def test_what_somebody_else_takes_there_is_not_given_back() -> None:
    given = evicting()
    node = next(iter(given.state.nodes))
    given.after(0.0, ExcessUse(given.now, "hog/0", 1, ((node, Resources(2000)),)))  # of the three, one is foreign
    given.pending("boss", gpus=4, priority=90)
    assert given.decide().decisions == []
    given.pending("less", gpus=3, priority=90)
    assert [one.name for one in given.decide().decisions if type(one).__name__ == "Nominate"] == ["less"]


def test_its_queue_has_its_quota_again_in_the_world_afterwards() -> None:
    given = two_queues(within_queue="lower_priority").pending("boss", gpus=2, queue="hogs", priority=90)
    hog = given.state.gangs["hog/0"]
    with Trial(given.state) as trial:
        trial.leaving["hog/0"] = None
        later = trial.afterwards().state
        assert later.use["hogs"].gpus_milli == 0 and later.nodes[hog.held[0].node].foreign == Resources()
        assert given.state.use["hogs"].gpus_milli == 4000
        mark = trial.mark()
        trial.hold(hog, ())
        assert given.state.use["hogs"].gpus_milli == 0
        trial.hold(hog, hog.held)
        assert given.state.use["hogs"].gpus_milli == 4000
        trial.rollback(mark)
        assert given.state.use["hogs"].gpus_milli == 4000
    assert violations(given.state) == []
    assert [type(one).__name__ for one in given.decide().decisions] == ["Preempt", "Nominate"]


def test_it_is_in_the_books_beside_what_the_gang_held_and_costs_as_much() -> None:
    given = hogging(excess="warn", flavors=(Flavor("A100", (), 3.6),))
    given.after(10.0)
    assert thaw(freeze(given.state)).digest() == given.state.digest()
    dearer = replace(given.state.configuration, version=2, flavors=(Flavor("A100", (), 36.0),))
    given.after(0.0, Configured(given.now, dearer))
    (node, _), *_ = given.state.gangs["hog/0"].excess
    given.after(10.0, ExcessUse(given.now + 10.0, "hog/0", 1, ((node, Resources(1000)),)))
    given.after(5.0, Finished(given.now + 5.0, "hog/0", 1, "succeeded"))
    given.after(100.0)
    (amounts,) = given.state.ledgers.meter.until(given.now)["hog"].values()
    held_s = amounts.held / MICROS
    assert amounts.excess == (3 * 20 + 1 * 5) * MICROS
    assert held_s >= 25
    with_excess_s = held_s - 15 + 3 * 10, 15 + 3 * 10 + 1 * 5  # at the price before, and after
    assert amounts.cost == pytest.approx((with_excess_s[0] * 3.6 + with_excess_s[1] * 36.0) / 3600 * MICROS)


def test_one_that_was_given_no_gpu_has_a_book_of_what_it_took() -> None:
    given = cluster("1 node x 4")
    given.running("hog", gpus=0)
    node = next(iter(given.state.nodes))
    given.after(0.0, ForeignUse(given.now, node, THREE), ExcessUse(given.now, "hog/0", 1, ((node, THREE),)))
    given.after(10.0, Finished(given.now + 10.0, "hog/0", 1, "succeeded"))
    (amounts,) = given.state.ledgers.meter.until(given.now)["hog"].values()
    assert amounts == Amounts(excess=30 * MICROS) and not given.state.ledgers.meter.attempts
