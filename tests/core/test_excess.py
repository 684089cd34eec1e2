"""An attempt that takes through Ray more than its gang was given: told, then ended, unless the operator says not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger import Given, Other, cluster

from llmsched.core.facts import Configured, ExcessUse, ForeignUse, Released
from llmsched.core.render import text
from llmsched.core.resources import Resources

THREE = Resources(3000)


def hogging(**limits: object) -> Given:
    given = cluster("1 node x 4")
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
    assert said == "stopped: through Ray it took 3 GPUs beyond what its gang was given, for 30 s"
    assert not given.state.exceeding


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
