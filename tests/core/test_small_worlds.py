"""Every schedule of a small world: three workloads, two queues, two nodes, all orders of what can happen to them.

After each step the turn is taken, every invariant is checked, deciding again must change nothing, the folded journal
must be the state, and whoever waits must have a reason. Worlds that look alike at the same depth are visited once.

    python tests/core/test_small_worlds.py 7      # 1,309,486 worlds, an hour of one core; the suite goes to DEPTH
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmsched.core import facts
from llmsched.core.configuration import (
    Cohort,
    Configuration,
    PolicyNames,
    PreemptionRules,
    Queue,
    Quota,
    Scheduling,
)
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide, turn
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Retry, Workload
from llmsched.policies.registry import load

DEPTH = 4
STEP_S = 100.0
POLICIES = load(PolicyNames())
NODES = ("n0", "n1")


def configuration() -> Configuration:
    rules = PreemptionRules("lower_priority", "any")
    queues = (Queue("own", "all", (("*", Quota(2000)),)), Queue("lent", "all", (("*", Quota(2000)),)))
    return Configuration(1, queues, (Cohort("all"),), scheduling=Scheduling(preemption=rules))


def workload(name: str, queue: str, gpus: int, low: int, high: int, priority: int) -> Workload:
    group = Group("workers", 1, (Option("A100", Resources(gpus)),))
    return Workload(
        name, name, "train", (group,), queue=queue, min_size=low, max_size=high, priority=priority,
        retry=Retry(max_restarts=9, backoff_s=STEP_S / 2),
    )  # fmt: skip


WORK = (
    workload("wide", "own", 2000, 2, 2, 10),  # a gang over both nodes: half of it is borrowed
    workload("elastic", "lent", 1000, 1, 3, 50),
    workload("urgent", "own", 1000, 1, 1, 90),
)


def node(name: str) -> Node:
    return Node(name, Resources(2000, 8000, 1 << 30), "A100")


@dataclass
class World:
    journal: list[Any]

    def state(self) -> State:
        state = State()
        for entry in self.journal:
            state.apply(entry)
        return state


def begin() -> World:
    happened = [facts.Configured(0.0, configuration()), *(facts.NodeJoined(0.0, node(name)) for name in NODES)]
    return World([*happened, *turn(World([]).state(), happened, POLICIES).decisions])


def possible(state: State, now: float) -> Iterator[Any]:
    """Whatever users, nodes and the executor could say next."""
    yield facts.Tick(now)
    for spec in WORK:
        if spec.id not in state.workloads:
            yield facts.Submitted(now, spec)
            continue
        record, gang = state.workloads[spec.id], state.gangs[f"{spec.id}/0"]
        if not record.outcome and not record.cancelled:
            yield facts.Cancelled(now, spec.id)
        if gang.status is Status.RESIZING:
            yield facts.Resized(now, gang.id, gang.attempt, gang.size)
        if gang.status is Status.LAUNCHING:
            yield facts.Bound(now, gang.id, gang.attempt)
            yield facts.LaunchFailed(now, gang.id, gang.attempt, "no-capacity", "Ray had no room")
        if gang.status is Status.VACATING:
            yield facts.Released(now, gang.id, gang.attempt)
        if gang.is_holding():
            yield facts.Finished(now, gang.id, gang.attempt, "succeeded", artifact="file:///x")
            yield facts.Lost(now, gang.id, gang.attempt, "gone")
    for name in NODES:
        yield facts.NodeLost(now, name) if name in state.nodes else facts.NodeJoined(now, node(name))


def step(world: World, fact: Any) -> tuple[World, str]:
    state = world.state()
    plan = turn(state, [fact], POLICIES)
    after = World([*world.journal, fact, *plan.decisions])
    assert violations(state) == [], after.journal
    digest = state.digest()
    assert after.state().digest() == digest, after.journal
    decide(state, POLICIES)
    assert state.digest() == digest, after.journal
    for gang in state.gangs.values():
        if gang.status is Status.QUEUED:
            told = plan.nominations.get(gang.id) or gang.nomination or gang.reason
            assert told is not None, (gang.id, after.journal)
    return after, digest


def explore(depth: int) -> list[int]:
    """The number of different worlds after each step."""
    worlds = [begin()]
    counts = []
    for level in range(1, depth + 1):
        found: dict[str, World | None] = {}
        for world in worlds:
            for fact in possible(world.state(), level * STEP_S):
                after, digest = step(world, fact)
                found.setdefault(digest, after if level < depth else None)
        worlds = [world for world in found.values() if world is not None]
        counts.append(len(found))
    return counts


def test_no_schedule_of_a_small_world_breaks_a_promise() -> None:
    counts = explore(DEPTH)
    assert counts[0] == 6  # a tick, three submissions, two nodes that may be lost
    assert counts == sorted(counts) and counts[-1] > 1000


if __name__ == "__main__":
    print(explore(int(sys.argv[1])))
