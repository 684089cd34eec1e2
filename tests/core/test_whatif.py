"""A forecast says what a submission would do and changes nothing."""

from __future__ import annotations

from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.whatif import forecast
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())


def work(name: str, **more: object) -> Workload:
    group = Group("workers", 1, (Option("A100", Resources(1000)),))
    return Workload(name, name, "train", (group,), **more)  # type: ignore[arg-type]


def test_a_forecast_says_who_starts_and_who_waits_and_leaves_the_state_alone() -> None:
    state = State()
    turn(state, [NodeJoined(0.0, Node("n0", Resources(2000), "A100")), Submitted(1.0, work("a"))], POLICIES)
    before = state.digest()
    first, second = forecast(state, [work("b"), work("c")], POLICIES)
    assert first.starts_now and first.placement and first.reason is None
    assert not second.starts_now and second.reason is not None and second.reason.code == "nodes"
    assert state.digest() == before and "b" not in state.workloads


def test_whoever_is_written_first_stands_first_in_line_whatever_its_name() -> None:
    state = State()
    turn(state, [NodeJoined(0.0, Node("n0", Resources(1000), "A100"))], POLICIES)
    assert [one.starts_now for one in forecast(state, [work("z"), work("a")], POLICIES)] == [True, False]


def test_a_forecast_says_who_else_would_wait() -> None:
    state = State()
    turn(state, [NodeJoined(0.0, Node("n0", Resources(1000), "A100"))], POLICIES)
    state.apply(Submitted(2.0, work("mine")))
    (urgent,) = forecast(state, [work("urgent", priority=90)], POLICIES)
    assert urgent.starts_now and [text(other) for other in urgent.others] == ["mine/0 waits"]
