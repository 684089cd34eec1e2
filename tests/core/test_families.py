"""A parent and what it asks for, under random kills, ends, cancellations and facts that come twice or too late: nobody
outlives the parent, and what all of them took is counted once, as a book beside it has it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from llmsched.core.commands import CHILDREN_AT_ONCE, Cancel, Refusal, Submit, check
from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Launch
from llmsched.core.facts import Bound, Finished, Lost, NodeJoined, Released, Tick
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Retry, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())
PARENTS = ("search", "batch")
BUDGET_GPU_S = 400.0
STEPS = 120
AT_WORK = (Status.RUNNING, Status.RESIZING, Status.VACATING)


def work(name: str, gpus: int, **more: Any) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000 * gpus, 1)),))
    return Workload(name, name, "task", (group,), retry=Retry(max_restarts=1000), **more)


class Family:
    """The state, and a book of GPU-seconds by workload that looks only at who is at work."""

    def __init__(self, seed: int) -> None:
        self.chance, self.now, self.state = random.Random(seed), 0.0, State()
        self.book: dict[str, float] = {}
        self.at_work: set[str] = set()
        self.said: list[Any] = []
        self.tell(*(NodeJoined(0.0, Node(node, Resources(3000, 8000))) for node in "ab"))
        for name in PARENTS:
            self.submit(work(name, 0, budget_gpu_s=BUDGET_GPU_S))

    def submit(self, workload: Workload) -> None:
        fact = check(self.state, Submit(self.now, workload))
        if not isinstance(fact, Refusal):
            self.tell(fact)

    def tell(self, *facts: Any) -> None:
        over = {name for name in PARENTS if self.is_over(name)}
        plan = turn(self.state, facts, POLICIES)
        for one in plan.decisions:
            assert not isinstance(one, Launch) or self.parent_of(one.gang) not in over, "nothing begins for it any more"
        gangs = self.state.gangs.values()
        self.at_work = {one.id for one in gangs if one.status in AT_WORK and one.started_at is not None}
        self.check()

    def pass_time(self) -> None:
        seconds = self.chance.choice((0.0, 0.1, 1.0, 4.0))
        self.now += seconds
        for gang in self.at_work:
            one = self.state.gangs[gang]
            self.book[one.workload_id] = self.book.get(one.workload_id, 0.0) + seconds * one.gpus_milli() / 1000

    def parent_of(self, gang: str) -> str:
        workload = self.state.workloads[self.state.gangs[gang].workload_id].workload
        return workload.parent or workload.id

    def is_over(self, name: str) -> bool:
        record = self.state.workloads.get(name)
        return record is not None and bool(record.outcome or record.cancelled)

    def check(self) -> None:
        assert violations(self.state) == []
        for name in filter(self.state.workloads.get, PARENTS):
            there = self.state.children.get(name, {})
            assert len(there) <= CHILDREN_AT_ONCE
            assert not self.is_over(name) or all(self.state.workloads[child].cancelled for child in there)
            ended = [one for one in self.state.workloads.values() if one.workload.parent == name and one.outcome]
            taken = sum(self.book.get(one.workload.id, 0.0) for one in ended)
            counted = self.state.workloads[name].children_gpu_s
            assert counted == pytest.approx(taken), "each once, whatever was told twice"

    def happens(self) -> None:
        chance, at, state = self.chance, self.now, self.state
        gangs = [one for one in state.gangs.values() if one.is_holding()]
        one = chance.choice(gangs) if gangs else None
        match chance.choice(
            ("submit", "submit", "bound", "bound", "bound", "end", "lost", "left", "again", "cut", "tick")
        ):
            case "submit":
                parent = chance.choice(PARENTS)
                self.submit(work(f"{parent}.{len(state.workloads)}", chance.choice((0, 1, 1, 2)), parent=parent))
            case "bound" if one is not None:
                self.executor_says(Bound(at, one.id, one.attempt))
            case "end" if one is not None and one.workload_id not in PARENTS:
                how = chance.choice(("succeeded", "failed"))
                self.executor_says(Finished(at, one.id, one.attempt, how, event=chance.choice(("error", "input"))))
            case "lost" if one is not None:
                self.executor_says(Lost(at, one.id, one.attempt, "killed"))
            case "left" if one is not None and one.status is Status.VACATING:
                self.executor_says(Released(at, one.id, one.attempt))
            case "again" if self.said:
                self.executor_says(replace(chance.choice(self.said), at=at))
            case "cut":
                self.state = thaw(freeze(state))
            case _:
                self.tell(Tick(at))

    def executor_says(self, fact: Any) -> None:
        self.said.append(fact)
        self.tell(fact)

    def ends(self, name: str) -> None:
        record = self.state.workloads[name]
        gang = self.state.gangs_of(record)[0]
        if self.chance.random() < 0.5:
            fact = check(self.state, Cancel(self.now, name))
            assert not isinstance(fact, Refusal)
            self.tell(fact)
        else:
            self.tell(Bound(self.now, gang.id, gang.attempt))
            self.tell(Finished(self.now, gang.id, gang.attempt, "succeeded"))

    def leaves(self) -> None:
        """Whoever was told to does, and nobody is left."""
        for _ in range(200):
            leaving = [one for one in self.state.gangs.values() if one.status is Status.VACATING]
            if not leaving and not self.state.children:
                return
            self.pass_time()
            self.tell(*(Released(self.now, one.id, one.attempt) for one in leaving), Tick(self.now))
        raise AssertionError(f"they have outlived their parents: {self.state.children}")


@pytest.mark.parametrize("seed", range(12))
def test_nobody_outlives_a_parent_and_what_a_family_took_is_counted_once_whatever_dies(seed: int) -> None:
    world = Family(seed)
    for step in range(STEPS):
        world.pass_time()
        world.happens()
        if step == STEPS * 2 // 3:
            world.ends(PARENTS[0]) if not world.is_over(PARENTS[0]) else None
    if not world.is_over(PARENTS[1]):
        world.ends(PARENTS[1])
    world.leaves()
    records = [one for one in world.state.workloads.values() if one.workload.parent]
    assert len(records) > 10 and all(one.outcome for one in records) and sum(world.book.values()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_no_family_goes_on_with_its_budget_used_up_also_while_its_parent_waits_to_be_tried_again(seed: int) -> None:
    """What a search had asked for went on beyond the budget while the search itself was away."""
    world = Family(seed)
    is_told = False
    for _ in range(3 * STEPS):
        world.pass_time()
        for _ in range(2):  # the parent first, then all that it asked for
            world.tell(Tick(world.now))
        taken = sum(seconds for name, seconds in world.book.items() if name.startswith(f"{PARENTS[0]}."))
        goes_on = [one.id for one in world.state.gangs.values()
                   if one.status is Status.RUNNING and world.parent_of(one.id) == PARENTS[0]]  # fmt: skip
        assert taken < BUDGET_GPU_S or not goes_on, (taken, goes_on)
        is_told = is_told or taken >= BUDGET_GPU_S
        world.happens()
    assert is_told
