"""Nobody looks through the replicas of an endpoint of which nothing has changed, and nothing else is decided for it."""

from __future__ import annotations

from random import Random

import pytest

from llmsched.core import rollout
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import (
    Bound,
    Cancelled,
    Fact,
    Lost,
    NodeJoined,
    NodeLost,
    Published,
    Released,
    Scaled,
    Submitted,
)
from llmsched.core.lifecycle import Status
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide, turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())


def endpoint(name: str, replicas: int = 4, version: str = "1", kind: str = "serve") -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    return Workload(name, name, kind, (group,), min_replicas=1, max_replicas=replicas, parcel=version)


def world(*names: str) -> State:
    state = State()
    for node in ("n0", "n1"):
        state.apply(NodeJoined(0.0, Node(node, Resources(16000, 8000, 1 << 34))))
    happens(state, *(Submitted(1.0, endpoint(name)) for name in names))
    happens(state, *(Scaled(2.0, name, 4) for name in names))
    happens(state, *(Bound(3.0, gang, 1) for gang in list(state.gangs)))
    return state


def happens(state: State, *facts: Fact) -> None:
    """Until nothing more is decided; each pass decides what a pass that knows nothing of earlier ones does."""
    for fact in facts:
        state.apply(fact)
    for _ in range(20):
        fresh = decide(thaw(freeze(state), state.archive), POLICIES).decisions
        plan = turn(state, (), POLICIES)
        assert plan.decisions == fresh
        if plan.wake_at != state.now:
            return


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The endpoints whose replicas a pass went through."""
    found: list[str] = []

    def leaving(record: rollout.WorkloadState, *more: object) -> object:
        found.append(record.workload.id)
        return original(record, *more)  # type: ignore[arg-type]

    original = rollout.leaving
    monkeypatch.setattr(rollout, "leaving", leaving)
    return found


def test_a_pass_looks_through_the_replicas_of_endpoints_that_have_changed(looked_at: list[str]) -> None:
    state = world("a", "b")
    looked_at.clear()
    turn(state, [Submitted(4.0, endpoint("other", kind="task"))], POLICIES)
    assert looked_at == []
    turn(state, [Lost(5.0, "a/1", 1, "gone")], POLICIES)
    assert looked_at == ["a"]
    turn(state, [NodeLost(6.0, "n1")], POLICIES)
    assert {*looked_at} == {"a", "b"}


@pytest.mark.parametrize("seed", range(6))
def test_it_decides_what_a_pass_decides_that_looks_at_everybody(seed: int) -> None:
    state, chance = world("a", "b", "c"), Random(seed)
    for step in range(30):
        at, name = 10.0 + step, chance.choice("abc")
        gang = state.gangs[chance.choice(state.workloads[name].gangs)]
        happens(
            state,
            chance.choice(
                [
                    Submitted(at, endpoint(name, version=str(step)), True),
                    Scaled(at, name, chance.randint(1, 4)),
                    Lost(at, gang.id, gang.attempt, "gone"),
                    Bound(at, gang.id, gang.attempt),
                    Released(at, gang.id, gang.attempt),
                    Published(at, name, "adapter", "sql", f"s3://{step}", name),
                    Published(at, name, "model", "new", f"s3://{step}", name),
                    Cancelled(at, "c") if step > 20 else Bound(at, gang.id, gang.attempt),
                ]
            ),
        )
        if step % 3 == 0:  # what starts is there, and what leaves has left
            facts: list[Fact] = [Bound(at, one.id, one.attempt) for one in state.gangs.values() if starts(one.status)]
            facts += [Released(at, one.id, one.attempt) for one in state.gangs.values() if leaves(one.status)]
            happens(state, *facts)


def starts(status: Status) -> bool:
    return status is Status.LAUNCHING


def leaves(status: Status) -> bool:
    return status is Status.VACATING
