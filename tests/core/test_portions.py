"""However much comes at once, one pass decides a portion and the next one goes on from there at the same instant."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Decision, Drain, Launch, Nominate
from llmsched.core.facts import Bound, Cancelled, Fact, NodeJoined, Released, Submitted
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.plan import PORTION
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.whatif import forecast
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())
MANY = 5 * PORTION // 2


def work(name: str, kind: str = "task", gpus: int = 0, **more: object) -> Workload:
    return Workload(name, name, kind, (Group("workers", 1, (Option(None, Resources(gpus)),)),), **more)  # type: ignore[arg-type]


def passes(state: State, facts: Sequence[Fact]) -> list[list[Decision]]:
    """The passes that follow each other at once, as the controller and the simulator have them."""
    found = []
    wanted: Sequence[Fact] = facts
    while True:
        plan = turn(state, wanted, POLICIES)
        assert violations(state) == []
        found.append(plan.decisions)
        if plan.wake_at != state.now:
            return found
        wanted = ()


def world(nodes: int = 1, gpus: int = 0) -> State:
    state = State()
    for number in range(nodes):
        state.apply(NodeJoined(0.0, Node(f"n{number}", Resources(gpus * 1000, 8000, 1 << 34))))
    return state


def test_thousands_that_start_at_once_start_in_their_order_a_portion_a_pass() -> None:
    names = [f"t{number:03}" for number in range(MANY)]
    found = passes(world(), [Submitted(float(number), work(name)) for number, name in enumerate(names)])
    assert [len(each) for each in found] == [PORTION, PORTION, PORTION // 2]
    assert [decision.gang for each in found for decision in each if isinstance(decision, Launch)] == [
        f"{name}/0" for name in names
    ]


def test_a_pass_that_was_cut_lets_nobody_later_or_lower_go_ahead() -> None:
    state = world(gpus=MANY)
    facts = [Submitted(1.0, work(f"low{number:03}", gpus=1000)) for number in range(MANY)]
    facts += [Submitted(2.0, work(f"high{number:03}", gpus=1000, priority=90)) for number in range(MANY)]
    launched = [decision.gang for each in passes(state, facts) for decision in each if isinstance(decision, Launch)]
    assert len(launched) == MANY and all(name.startswith("high") for name in launched)
    assert all(gang.reason for gang in state.gangs.values() if gang.id.startswith("low")), "they know why they wait"


def test_who_must_leave_at_once_leaves_in_portions_and_is_taken_by_nobody_meanwhile() -> None:
    state = world(gpus=MANY)
    endpoint = work("talks", "serve", gpus=1000, min_replicas=MANY, max_replicas=MANY)
    passes(state, [Submitted(1.0, endpoint)])
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)])
    found = passes(state, [Cancelled(3.0, "talks", "ann"), Submitted(3.0, work("next", gpus=1000, priority=90))])
    drained = [[decision for decision in each if isinstance(decision, Drain)] for each in found]
    assert [len(each) for each in drained[:3]] == [PORTION, PORTION, PORTION // 2]
    (promised,) = found[2][PORTION // 2 :]  # only when all of them are known to leave
    assert isinstance(promised, Nominate) and promised.gang == "next/0"
    passes(state, [Released(4.0, gang, 1) for gang in state.workloads["talks"].gangs])
    assert state.workloads["talks"].outcome == "cancelled" and state.workloads["next"].phase == "starting"


def test_a_forecast_looks_through_all_passes_that_follow_at_once() -> None:
    endpoint = work("talks", "serve", min_replicas=MANY, max_replicas=MANY)
    assert sum(each.starts_now for each in forecast(world(), [endpoint], POLICIES)) == MANY
