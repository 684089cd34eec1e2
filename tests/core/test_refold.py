"""`decide` is a function of the journal: what passes remember saves time and changes nothing.

Beside every pass three states decide: the one that goes on, one that a snapshot was thawed to, one that the journal was
folded to. Random worlds (worlds.py) have gangs and queues of all kinds; the house here has endpoints, schedules and
rented nodes.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import worlds

from llmsched.core import decisions, facts
from llmsched.core.configuration import Configuration, NodeType, PreemptionRules, Queue, Scheduling
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide
from llmsched.core.state import State
from llmsched.core.whatif import copy_of
from llmsched.core.workload import Autoscaling, Group, Option, Workload
from llmsched.policies.registry import load

RENTED = NodeType("big", gpus=4, cpus=32, min=0, max=3, idle_timeout_s=60.0)
ONE_GPU = (Group("w", 1, (Option(None, Resources(1000)),)),)


class House:
    """A journal with a pass after each batch of facts, decided three times over. Whatever is decided is carried out at
    once, and told in the next batch."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        rules = PreemptionRules("lower_priority")
        scheduling = Scheduling(preemption=rules, order=self.random.choice(["priority", "strict_fifo", "best_effort"]))
        configuration = Configuration(1, (Queue("default"),), node_types=(RENTED,), scheduling=scheduling)
        self.policies, self.names = load(configuration.policies), configuration.policies
        self.state, self.journal, self.now, self.rented = State(), list[Any](), 0.0, 0
        self.coming: list[Any] = []
        self.one_pass([facts.Configured(0.0, configuration), facts.NodeJoined(0.0, Node("n", Resources(2000, 16000)))])

    def live(self, steps: int) -> None:
        for number in range(steps):
            self.now += self.random.choice([0.0, 1.0, 20.0, 70.0, 400.0])
            said, self.coming = self.coming, []
            happened = [facts.Tick(self.now), *said, *self.something(number)]
            self.one_pass(happened)

    def something(self, number: int) -> list[Any]:
        pick, at = self.random.choice, self.now
        what = pick(["train", "train", "serve", "nightly", "load", "load", "end", "lost", "scale", "cancel", "nothing"])
        name, known = f"{what}{number}", [*self.state.workloads]
        holding = [self.state.gangs[gang] for gang in self.state.holding if gang not in self.state.vacating]
        if what == "train":
            low = pick([1, 1, 2, 4])
            return [facts.Submitted(at, Workload(name, name, what, ONE_GPU, min_size=low, max_size=low + pick([0, 3]),
                                                 priority=pick([10, 50, 90])))]  # fmt: skip
        if what == "serve":
            scaled = Autoscaling(1.0, upscale_delay_s=10.0, downscale_delay_s=30.0)
            return [facts.Submitted(at, Workload(name, name, what, ONE_GPU, min_replicas=pick([0, 1, 2]),
                                                 max_replicas=4, autoscaling=scaled))]  # fmt: skip
        if what == "nightly":
            return [
                facts.Submitted(at, Workload(name, name, "task", ONE_GPU, schedule=pick(["*/2 * * * *", "0 * * * *"])))
            ]
        if what == "load" and self.state.serving:
            return [facts.LoadObserved(at, pick([*self.state.serving]), float(pick([0, 1, 3, 6])), float(pick([0, 2])))]
        if what == "end" and holding:
            gang = pick(holding)
            outcome, event = pick([("succeeded", "error"), ("failed", "error"), ("failed", "input")])
            return [facts.Finished(at, gang.id, gang.attempt, outcome, event=event)]
        if what == "lost" and len(self.state.nodes) > 1:
            return [facts.NodeLost(at, pick([name for name in self.state.nodes if name != "n"]))]
        if what == "scale" and self.state.serving:
            return [facts.Scaled(at, pick([*self.state.serving]), pick([1, 2, 3]))]
        return [facts.Cancelled(at, pick(known))] if what == "cancel" and known else []

    def one_pass(self, happened: list[Any]) -> None:
        self.apply(*happened)
        folded, thawed = State(), copy_of(self.state)
        for entry in self.journal:
            folded.apply(entry)
        before = self.state.digest()
        assert folded.digest() == thawed.digest() == before
        plan = decide(self.state, self.policies)
        for other in (folded, thawed):
            fresh = decide(other, load(self.names))
            assert (fresh.decisions, fresh.wake_at, codes(fresh)) == (plan.decisions, plan.wake_at, codes(plan))
        assert self.state.digest() == before
        for decision in plan.decisions:
            self.apply(decision)
            self.coming += self.carried_out(decision)
        assert violations(self.state) == []

    def apply(self, *entries: Any) -> None:
        for entry in entries:
            self.state.apply(entry)
            self.journal.append(entry)

    def carried_out(self, decision: Any) -> list[Any]:
        match decision:
            case decisions.Launch(gang=gang, attempt=attempt):
                return [facts.Bound(self.now, gang, attempt)]
            case decisions.Resize(gang=gang, attempt=attempt, placement=placement):
                return [facts.Resized(self.now, gang, attempt, len(placement))]
            case decisions.Preempt() | decisions.Drain() | decisions.Stop():
                return [facts.Released(self.now, decision.gang, decision.attempt)]
            case decisions.ReleaseNode(node=node):
                return [facts.NodeLost(self.now, node)]
            case decisions.RequestCapacity(counts=counts):
                here = sum(node.node.node_type == "big" for node in self.state.nodes.values())
                come = max(dict(counts).get("big", 0) - here, 0)
                self.rented += come
                total = Resources(4000, 32000, 1 << 40)
                made = [Node(f"big{self.rented - number}", total, node_type="big") for number in range(come)]
                return [facts.NodeJoined(self.now, node) for node in made if self.random.random() < 0.8]
        return []


def codes(plan: Plan) -> dict[str, str]:
    """Why each of those waits that go on waiting."""
    starts = {decision.gang for decision in plan.decisions if isinstance(decision, decisions.Launch)}
    return {gang: reason.code for gang, reason in plan.reasons.items() if gang not in starts}


@pytest.mark.parametrize("seed", [0, 1, 7, 9, 11])
def test_beside_every_pass_of_a_house_a_folded_and_a_thawed_state_decide_the_same(seed: int) -> None:
    house = House(seed)
    house.live(60)
    kinds = {type(entry).__name__ for entry in house.journal}
    assert {"Launch", "RequestCapacity"} <= kinds


@pytest.mark.parametrize("seed", range(20, 26))
def test_beside_every_pass_of_a_world_the_journal_folded_again_decides_the_same(seed: int) -> None:
    worlds.Play(worlds.made(seed), folds=1).run()


def test_a_pass_that_goes_by_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a pass remembers in place of looking at the state."""
    house = House(1)
    house.live(10)
    launches = decide

    def forgetful(state: State, policies: Any) -> Plan:
        plan = launches(state, policies)
        state.memo["passes"] = state.memo.get("passes", 0) + 1
        if state.memo["passes"] > 3:
            plan.decisions = plan.decisions[1:]
        return plan

    monkeypatch.setitem(globals(), "decide", forgetful)
    with pytest.raises(AssertionError):
        house.live(50)
