"""Random commands, facts and ticks against the real core: no invariant breaks, deciding changes nothing, replaying the
journal gives the same state, and in small worlds a naive ledger agrees that whoever waits does not fit."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from naive_book import NaiveBook, booked

from llmsched.core import decisions, facts
from llmsched.core.archive import is_gone, is_needed
from llmsched.core.commands import Cancel, Refusal, ScaleTo, Submit, check
from llmsched.core.configuration import Configuration, PolicyNames, PreemptionRules, Queue, Quota, Scheduling
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.records import size_of
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide, turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.status import TERMINAL, Status
from llmsched.core.workload import Group, Option, Topology, Workload
from llmsched.policies.registry import load
from llmsched.store import snapshots

QUEUES = ("default", "a", "b")
GPUS = (500, 1000, 1000, 2000)


def configuration(version: int, preemption: str, backfill: str, fair: str | None, strict: bool) -> Configuration:
    rules = {
        "never": PreemptionRules(),
        "priority": PreemptionRules("lower_priority", "lower_priority"),
        "any": PreemptionRules("lower_or_newer_equal_priority", "any", "lower_priority", 40),
    }[preemption]
    queues = (
        Queue("default"),
        Queue("a", quotas=(("*", Quota(3000, 2000, 1000)),)),
        Queue("b", quotas=(("*", Quota(2000)),), weight=2.0),
    )
    order = "strict_fifo" if strict else "priority"
    knobs = Scheduling(order=order, backfill=backfill, preemption=rules, fair_share=fair)
    return Configuration(version, queues, scheduling=knobs)


class World(RuleBasedStateMachine):
    """Facts arrive in any order an executor might send them, late and twice as well."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.naive = NaiveBook()
        self.journal: list[Any] = []
        self.policies = load(PolicyNames())
        self.now = 0.0
        self.serial = 0
        self.outcomes: dict[str, str] = {}

    def apply(self, entry: Any) -> None:
        self.naive.before(self.state, entry)
        self.state.apply(entry)
        self.naive.after(self.state, entry)
        self.journal.append(entry)
        assert violations(self.state) == []

    @initialize(
        preemption=st.sampled_from(["never", "priority", "any"]),
        backfill=st.sampled_from(["off", "easy", "conservative"]),
        fair=st.sampled_from([None, None, "weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"]),
        strict=st.booleans(),
        nodes=st.integers(1, 3),
    )
    def begin(self, preemption: str, backfill: str, fair: str | None, strict: bool, nodes: int) -> None:
        self.apply(facts.Configured(0.0, configuration(1, preemption, backfill, fair, strict)))
        for number in range(nodes):
            self.join(number)

    @rule(
        kind=st.sampled_from(["train", "train", "serve"]),
        gpus=st.sampled_from(GPUS),
        low=st.integers(1, 3),
        more=st.integers(0, 2),
        priority=st.sampled_from([10, 50, 90]),
        queue=st.sampled_from(QUEUES),
        limit=st.sampled_from([None, 30.0, 300.0]),
        preemptible=st.sampled_from([True, True, False]),
        near=st.sampled_from([None, None, "node", "rack"]),
        after=st.booleans(),
    )
    def submit(
        self, kind: str, gpus: int, low: int, more: int, priority: int, queue: str, limit: float | None,
        preemptible: bool, near: str | None, after: bool,
    ) -> None:  # fmt: skip
        self.serial += 1
        name = f"w{self.serial}"
        group = Group("workers", 1, (Option("A100", Resources(gpus, 1000)),))
        shape: dict[str, Any] = {"min_size": low, "max_size": low + more} if kind == "train" else {"max_replicas": low}
        before = [w for w, record in self.state.workloads.items() if record.workload.kind == "train"]
        workload = Workload(
            name, name, kind, (group,), queue=queue, priority=priority, max_runtime_s=limit, preemptible=preemptible,
            topology=Topology(near), after=tuple(before[-1:]) if after else (), **shape,
        )  # fmt: skip
        fact = check(self.state, Submit(self.now, workload))
        if not isinstance(fact, Refusal):
            self.apply(fact)

    @rule(pick=st.integers(0, 50), size=st.integers(0, 4), cancel=st.booleans())
    def change(self, pick: int, size: int, cancel: bool) -> None:
        names = [*self.state.workloads]
        if names:
            name = names[pick % len(names)]
            command = Cancel(self.now, name) if cancel else ScaleTo(self.now, name, size)
            fact = check(self.state, command)
            if not isinstance(fact, Refusal):
                self.apply(fact)

    @rule(own=st.sampled_from([0, 1000, 2500, 4000]))
    def give_quota(self, own: int) -> None:
        """Who borrows may change while nobody takes or gives anything back."""
        old = self.state.configuration
        queues = tuple(replace(one, quotas=(("*", Quota(own)),)) if one.name == "b" else one for one in old.queues)
        self.apply(facts.Configured(self.now, replace(old, version=old.version + 1, queues=queues)))

    @rule(number=st.integers(0, 3))
    def join(self, number: int) -> None:
        labels = (("rack", f"r{number % 2}"),)
        self.apply(facts.NodeJoined(self.now, Node(f"n{number}", Resources(4000, 8000, 1 << 30), "A100", labels)))

    @rule(number=st.integers(0, 3), how=st.sampled_from(["lost", "draining", "drained", "open", "foreign", "clean"]))
    def trouble(self, number: int, how: str) -> None:
        name = f"n{number}"
        self.apply(
            {
                "lost": facts.NodeLost(self.now, name),
                "draining": facts.NodeDraining(self.now, name, self.now + 60),
                "drained": facts.DrainBegun(self.now, name, by="root"),
                "open": facts.DrainEnded(self.now, name, by="root"),
                "foreign": facts.ForeignUse(self.now, name, Resources(1000)),
                "clean": facts.ForeignUse(self.now, name, Resources()),
            }[how]
        )

    @rule(pick=st.integers(0, 50), what=st.integers(0, 8), late=st.booleans())
    def report(self, pick: int, what: int, late: bool) -> None:
        names = [*self.state.gangs]
        if not names:
            return
        gang = self.state.gangs[names[pick % len(names)]]
        attempt = gang.attempt - (1 if late else 0)
        size = size_of(gang.spec, gang.placement or ())
        now, name = self.now, gang.id
        said = [
            facts.Bound(now, name, attempt),
            facts.Finished(now, name, attempt, "succeeded"),
            facts.Finished(now, name, attempt, "failed", "broke"),
            facts.Lost(now, name, attempt, "gone"),
            facts.Released(now, name, attempt),
            facts.Resized(now, name, attempt, size),
            facts.LaunchFailed(now, name, attempt, "no-capacity"),
            facts.CheckpointPublished(now, name, attempt, 1),
            facts.Estimated(now, name, 60.0),
        ][what]
        before = self.state.digest()
        self.apply(said)
        if late and what < 8:
            assert self.state.digest() == before, "a fact of an older attempt changed the state"

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 400.0, 100_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.apply(facts.Tick(self.now))
        assert booked(self.state) == self.naive.found()

    @rule()
    def schedule(self) -> None:
        before = self.state.digest()
        plan = decide(self.state, self.policies)
        assert self.state.digest() == before, "deciding changed the state"
        fresh = State()
        for entry in self.journal:
            fresh.apply(entry)
        assert decide(fresh, self.policies).decisions == plan.decisions, "an answer was kept longer than its cause"
        for decision in plan.decisions:
            if isinstance(decision, decisions.Preempt):
                assert self.state.gangs[decision.gang].spec.preemptible or decision.reason in (
                    "node_lost",
                    "spot_notice",
                    "node_drain",
                )
                if decision.beneficiary:
                    assert decision.beneficiary in plan.nominations, "evicted for somebody who does not fit then"
            self.apply(decision)
        for name, gang in self.state.gangs.items():
            if gang.status is Status.QUEUED:
                assert gang.reason is not None, f"{name} does not know why it waits"
        again = decide(self.state, self.policies)
        created = any(isinstance(d, (decisions.Scale, decisions.RunAgain, decisions.GiveUp)) for d in plan.decisions)
        if not plan.decisions and not created:
            assert again.decisions == []

    @rule(pick=st.integers(0, 50), count=st.integers(1, 3))
    def put_aside(self, pick: int, count: int) -> None:
        """What has ended leaves the state, unless somebody still needs it."""
        found = [name for name in self.state.ended if not is_needed(self.state, name)]
        replicas = [
            gang for name in self.state.serving for gang in self.state.workloads[name].gangs
            if is_gone(self.state.gangs[gang])
        ]  # fmt: skip
        start = pick % (len(found) + 1)
        self.apply(facts.Archived(self.now, tuple(found[start : start + count]), tuple(replicas[:count])))

    @rule()
    def restart(self) -> None:
        """What a snapshot gives is the state: it looks the same, and decides the same as all of history folded."""
        digest = self.state.digest()
        again = thaw(snapshots.load(snapshots.dump(freeze(self.state))), self.state.archive)
        assert again.digest() == digest, "a snapshot gives another state"
        assert violations(again) == []
        refolded = folded(self.journal)
        assert decide(again, load(PolicyNames())).decisions == decide(refolded, load(PolicyNames())).decisions
        self.state = again
        self.policies = load(PolicyNames())

    @rule()
    def carry_out(self) -> None:
        """What a prompt executor would say of everything that is under way."""
        for gang in list(self.state.gangs.values()):
            if gang.status is Status.LAUNCHING:
                self.apply(facts.Bound(self.now, gang.id, gang.attempt))
            elif gang.status is Status.VACATING:
                self.apply(facts.Released(self.now, gang.id, gang.attempt))
            elif gang.status is Status.RESIZING:
                self.apply(facts.Resized(self.now, gang.id, gang.attempt, gang.size))

    @invariant()
    def terminal_is_final(self) -> None:
        for name, gang in self.state.gangs.items():
            if name in self.outcomes:
                assert gang.status.value == self.outcomes[name], f"{name} came back from {self.outcomes[name]}"
            elif gang.status in TERMINAL and gang.spec.kind != "serve":
                self.outcomes[name] = gang.status.value

    def teardown(self) -> None:
        again = folded(self.journal)
        assert again.digest() == self.state.digest(), "replaying the journal gives another state"
        kept = {name: snapshots.dump_ended(record) for name, record in again.archive.records.items()}
        assert kept == {name: snapshots.dump_ended(record) for name, record in self.state.archive.records.items()}


def folded(journal: list[Any]) -> State:
    state = State()
    for entry in journal:
        state.apply(entry)
    return state


EXAMPLES = int(os.environ.get("EXAMPLES", "60"))  # thousands at night
World.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase


class SmallWorld(RuleBasedStateMachine):
    """One queue, rigid gangs of one bundle, nothing evicted: a list of numbers says what must happen."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.policies = load(PolicyNames())
        self.free = [4, 2, 3]
        self.where: dict[str, tuple[int, int]] = {}
        self.waiting: dict[str, int] = {}
        for number, gpus in enumerate(self.free):
            self.state.apply(facts.NodeJoined(0.0, Node(f"n{number}", Resources(gpus * 1000), "A100")))

    @rule(gpus=st.integers(1, 4), priority=st.integers(0, 2))
    def submit(self, gpus: int, priority: int) -> None:
        name = f"w{len(self.state.workloads)}"
        group = Group("workers", 1, (Option("A100", Resources(gpus * 1000)),))
        fact = check(self.state, Submit(self.state.now, Workload(name, name, "train", (group,), priority=priority)))
        assert isinstance(fact, facts.Submitted)
        self.waiting[f"{name}/0"] = gpus
        self.step(fact)

    @rule(pick=st.integers(0, 20))
    def finish(self, pick: int) -> None:
        if self.where:
            name = [*self.where][pick % len(self.where)]
            node, gpus = self.where.pop(name)
            self.free[node] += gpus
            self.step(facts.Finished(self.state.now, name, 1, "succeeded"))

    def step(self, fact: facts.Fact) -> None:
        plan = turn(self.state, [facts.Tick(self.state.now + 1), fact], self.policies)
        for decision in plan.decisions:
            assert isinstance(decision, decisions.Launch)
            (placed,) = decision.placement
            node, gpus = int(placed.node[1:]), self.waiting.pop(decision.gang)
            self.free[node] -= gpus
            assert self.free[node] >= 0, "a node gives more than it has"
            self.where[decision.gang] = (node, gpus)
        for name, gpus in self.waiting.items():
            assert gpus > max(self.free), f"{name} waits although {gpus} GPUs are free on a node"


SmallWorld.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
TestSmallWorld = SmallWorld.TestCase
