"""Core tests that read like a ledger: `cluster("2 nodes x 8 A100").queue(...).running(...).pending(...).decide()`.

`given.decide()` returns what one pass decides as short records that compare by what matters: who, how much, why. The
state behind it is made of facts, like every state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from llmsched.core import decisions, facts
from llmsched.core.configuration import (
    Configuration,
    PolicyNames,
    PreemptionRules,
    Queue,
    Quota,
    Reservation,
    Scheduling,
)
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.records import gpus_of, size_of
from llmsched.core.resources import Resources, parse_gpus_milli
from llmsched.core.scheduler import decide, turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load


@dataclass(frozen=True)
class Launch:
    name: str
    gpus: float | None = None


@dataclass(frozen=True)
class Resize:
    name: str
    to: int


@dataclass(frozen=True)
class Preempt:
    name: str
    reason: str


@dataclass(frozen=True)
class Nominate:
    name: str
    gpus: float


@dataclass(frozen=True)
class Other:
    """Any other decision, by its kind."""

    kind: str
    name: str


@dataclass
class Decided:
    plan: Plan
    decisions: list[Any] = field(default_factory=list)

    def why(self, name: str) -> str:
        return self.plan.why(name)

    def code(self, name: str) -> str:
        return self.plan.reasons[f"{name}/0"].code


class Given:
    """A cluster, its queues, what runs and what waits; nothing has been decided yet."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.queues: list[Queue] = []
        self.reservations: list[Reservation] = []
        self.knobs = Scheduling()
        self.names = PolicyNames()
        self.made: State | None = None
        self.now = 0.0

    # --- said before the first workload ---

    def queue(self, name: str, gpus: int, borrow: int | None = None, lend: int | None = None, **more: Any) -> Given:
        limits = (None if amount is None else amount * 1000 for amount in (borrow, lend))
        self.queues.append(Queue(name, quotas=(("*", Quota(gpus * 1000, *limits)),), **more))
        return self

    def reserve(self, opens: float, lasts: float, user: str, gpus: int = 0, **more: Any) -> Given:
        """For the work of a user: so many GPUs, or `nodes`."""
        name = f"booked{len(self.reservations)}"
        self.reservations.append(Reservation(name, opens, lasts, users=(user,), gpus_milli=gpus * 1000, **more))
        return self

    def rules(self, within_queue: str = "never", reclaim: str = "never", while_borrowing: str = "never") -> Given:
        return self.scheduling(preemption=PreemptionRules(within_queue, reclaim, while_borrowing))

    def scheduling(self, **knobs: Any) -> Given:
        self.knobs = Scheduling(**{**{f: getattr(self.knobs, f) for f in Scheduling.__slots__}, **knobs})
        return self

    def policies(self, **names: Any) -> Given:
        self.names = self.names._replace(**names)
        return self

    # --- workloads ---

    @property
    def state(self) -> State:
        if self.made is None:
            self.made = State()
            queues = tuple(self.queues) or (Queue("default"),)
            booked = tuple(self.reservations)
            made = Configuration(1, queues, reservations=booked, scheduling=self.knobs, policies=self.names)
            self.made.apply(facts.Configured(0.0, made))
            for node in self.nodes:
                self.made.apply(facts.NodeJoined(0.0, node))
        return self.made

    def _workload(self, name: str, gpus: float, elastic: tuple[int, int] | None, step: int, more: Any) -> Workload:
        queue = more.pop("queue", self.queues[0].name if self.queues else "default")
        flavor = more.pop("flavor", None)
        per_bundle = Resources(1000 if elastic else parse_gpus_milli(gpus))
        group = Group("workers", 1, (Option(flavor, per_bundle),))
        low, high = elastic or (1, 1)
        kind = more.pop("kind", "train")
        return Workload(name, name, kind, (group,), queue=queue, min_size=low, max_size=high, step=step, **more)

    def running(
        self, name: str, gpus: float, elastic: tuple[int, int] | None = None, step: int = 1,
        ends_in: float | None = None, **more: Any,
    ) -> Given:  # fmt: skip
        self.now += 1.0
        workload = self._workload(name, gpus, elastic, step, more)
        self.state.apply(facts.Submitted(self.now, workload))
        gang = self.state.gangs[f"{name}/0"]
        with Trial(self.state) as trial:
            size = int(gpus) if elastic else 1
            found = find(Pass(trial, load(self.names)), gang, size)
        assert not isinstance(found, Refused), found
        self.state.apply(decisions.Launch(gang.id, 1, found))
        self.state.apply(facts.Bound(self.now, gang.id, 1))
        if ends_in is not None:
            self.state.apply(facts.Estimated(self.now, gang.id, ends_in))
        return self

    def pending(
        self, name: str, gpus: float, elastic: tuple[int, int] | None = None, step: int = 1, **more: Any
    ) -> Given:
        self.now += 1.0
        self.state.apply(facts.Submitted(self.now, self._workload(name, gpus, elastic, step, more)))
        return self

    # --- passes ---

    def after(self, seconds: float, *happened: Any) -> Given:
        """Let time pass and facts arrive; a fact without a stamp of its own is made with `given.now`."""
        self.now += seconds
        self.state.apply(facts.Tick(self.now))
        for fact in happened:
            self.state.apply(fact)
        return self

    def decide(self) -> Decided:
        """What one pass proposes; nothing is applied."""
        return self._short(decide(self.state, load(self.names)))

    def turn(self, *happened: Any) -> Decided:
        """One pass, applied."""
        decided = self._short(turn(self.state, list(happened), load(self.names)))
        assert violations(self.state) == []
        return decided

    def settle(self) -> Given:
        """Passes until nothing changes, everything carried out at once."""
        happened: list[Any] = []
        for _ in range(100):
            plan = turn(self.state, happened, load(self.names))
            assert violations(self.state) == []
            if not plan.decisions:
                return self
            happened = []
            for decision in plan.decisions:
                if isinstance(decision, decisions.Launch):
                    happened.append(facts.Bound(self.now, decision.gang, decision.attempt))
                elif isinstance(decision, (decisions.Preempt, decisions.Stop, decisions.Drain)):
                    happened.append(facts.Released(self.now, decision.gang, decision.attempt))
                elif isinstance(decision, decisions.Resize):
                    size = size_of(self.state.gangs[decision.gang].spec, decision.placement)
                    happened.append(facts.Resized(self.now, decision.gang, decision.attempt, size))
        raise AssertionError("the world does not come to rest")

    def phase(self, name: str) -> str:
        return self.state.workloads[name].phase

    def _short(self, plan: Plan) -> Decided:
        short: list[Any] = []
        for decision in plan.decisions:
            if isinstance(decision, decisions.Assign):
                continue  # which GPUs a reservation takes is about nobody's work
            gang = getattr(decision, "gang", "")
            name = gang.removesuffix("/0")
            spec = self.state.gangs[gang].spec if gang else None
            if isinstance(decision, decisions.Launch) and spec:
                short.append(Launch(name, gpus_of(spec, decision.placement) / 1000))
            elif isinstance(decision, decisions.Resize) and spec:
                short.append(Resize(name, size_of(spec, decision.placement)))
            elif isinstance(decision, decisions.Preempt):
                short.append(Preempt(name, decision.reason))
            elif isinstance(decision, decisions.Nominate) and spec:
                short.append(Nominate(name, gpus_of(spec, decision.placement) / 1000))
            else:
                short.append(Other(type(decision).__name__, name))
        return Decided(plan, short)


def cluster(text: str) -> Given:
    """`2 nodes x 8 A100`, several parts separated by commas; the accelerator may be left out."""
    nodes = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+) nodes? x (\d+)\s*(\w*)\s*", part)
        assert found, f"not a cluster: {part!r}"
        count, gpus, flavor = int(found[1]), int(found[2]), found[3] or None
        for number in range(count):
            name = f"{(flavor or 'n').lower()}-{number}"
            nodes.append(Node(name, Resources(gpus * 1000, 64_000, 1 << 40), flavor, (), name))
    return Given(nodes)
