"""A cluster, its queues and an hour of work, users and accidents, made from one number: what worlds.py plays."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from llmsched.core.configuration import (
    Cohort,
    Configuration,
    PolicyNames,
    PreemptionRules,
    Queue,
    Quota,
    Reservation,
    Scheduling,
)
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Group, Option, Retry, Topology, Workload


@dataclass
class World:
    """What is there at first, and what happens from outside, in order of time: (seconds, what, arguments)."""

    seed: int
    nodes: list[Node]
    configuration: Configuration
    events: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    takes: dict[str, float] = field(default_factory=dict)  # seconds of each workload at its smallest size


DRAINED = 0.25  # of all worlds


class Maker:
    """Makes a world from a number."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.flavors = self.pick([None], [None], ["A"], ["A", "B"])

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def world(self) -> World:
        self.nodes = [self.node(number) for number in range(self.random.randint(1, 4))]
        self.gpus = [node.total.gpus_milli // MILLI for node in self.nodes]
        self.queues = [f"q{number}" for number in range(self.pick(1, 2, 2, 3))]
        made = World(self.seed, self.nodes, self.configuration(1))
        names: list[str] = []
        now = 0.0
        for number in range(self.how_many_events()):
            now += self.pick(0.0, 0.0, 0.5, 5.0, 30.0, 120.0)
            what = self.pick(*["submit"] * 13, "cancel", "cancel", "scale", "lost", "join", "join", "drain", "foreign",
                             "configure", "estimate", "replace")  # fmt: skip
            node, name = self.pick(*self.nodes), self.pick(*names) if names else ""
            if what == "submit" or not names:
                name = f"w{number}"
                names.append(name)
                made.takes[name] = self.pick(5.0, 30.0, 200.0, 1000.0, 5000.0)
                made.events.append((now, "submit", (self.workload(name, made.takes[name]),)))
            elif what == "replace":
                made.events.append((now, what, (self.workload(name, made.takes[name]),)))
            elif what == "configure":
                made.events.append((now, what, (self.configuration(number + 2),)))
            elif what in ("cancel", "estimate", "scale"):
                number = {"cancel": 0, "estimate": self.pick(10, 100, 1000), "scale": self.random.randint(1, 4)}[what]
                made.events.append((now, what, (name, number)))
            else:
                made.events.append((now, what, (node, self.pick(0, 1))))
        self.drains(made)
        return made

    def how_many_events(self) -> int:
        return self.random.randint(4, 16)

    def drains(self, made: World) -> None:
        """In one world of four an operator drains nodes, and opens some of them again. Drawn apart, so that the rest of
        a world is as it was before there were drains."""
        draw = random.Random(f"{self.seed} rest")
        if draw.random() >= DRAINED:
            return
        latest = max(at for at, _, _ in made.events)
        for _ in range(draw.randint(1, 3)):
            node, at = draw.choice(self.nodes), draw.uniform(0.0, latest)
            made.events.append((at, "close", (node, draw.randint(0, 1))))
            if draw.random() < 0.5:
                made.events.append((at + draw.choice((1.0, 40.0, 300.0)), "open", (node, 0)))
        made.events.sort(key=lambda event: event[0])

    def node(self, number: int) -> Node:
        labels = (("rack", f"r{number % 2}"), ("zone", f"z{number % 3 // 2}"))
        total = Resources(self.pick(1, 2, 4, 4, 8) * MILLI, self.pick(64_000, 64_000, 8_000), 1 << 40)
        return Node(f"n{number}", total, self.pick(*self.flavors), labels)

    def configuration(self, version: int) -> Configuration:
        style = self.pick("none", "*", "flavor")
        rows: list[str] = {"none": [], "*": ["*"], "flavor": [f or "*" for f in self.flavors]}[style]
        cohorts: list[Cohort] = []
        for depth in range(self.pick(0, 0, 1, 2, 3)):
            own = self.quotas(rows, 3) if self.often(0.4) else ()
            cohorts.append(Cohort(f"c{depth}", f"c{depth - 1}" if depth else None, own))
        queues = []
        for name in self.queues:
            cohort = self.pick(*cohorts).name if cohorts and self.often(0.7) else None
            quotas = self.quotas(rows, max(1, sum(self.gpus) // len(self.queues)))
            evictable = self.pick(*["yes"] * 8, "prefer_not", "no")
            queues.append(Queue(name, cohort, quotas, weight=self.pick(0.5, 1.0, 1.0, 2.0), evictable=evictable))
        within = self.pick("never", "lower_priority", "lower_priority", "lower_or_newer_equal_priority", "by_rank")
        across = self.pick("never", "lower_priority", "equal_or_lower_priority", "any", "any")
        rules = PreemptionRules(
            within, across, self.pick("never", "never", "lower_priority"), self.pick(None, None, 40)
        )
        scheduling = Scheduling(
            order=self.pick("priority", "priority", "strict_fifo", "best_effort"),
            fifo_scope=self.pick("per_queue", "per_flavor"),
            backfill=self.pick("off", "off", "easy", "conservative"),
            hold_after_s=self.pick(1800.0, 60.0),
            quantum_s=self.pick(30.0, 120.0) if within == "by_rank" else self.pick(0.0, 0.0, 60.0),
            preemption=rules,
            preemption_delay_s=self.pick(0.0, 0.0, 0.0, 30.0),
            reclaim_min_runtime_s=self.pick(0.0, 0.0, 0.0, 60.0),
            stale_gang_grace_s=self.pick(0.0, 0.0, 30.0),
            fair_share=self.pick(
                None, None, None, "weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"
            ),
            preempt_to_fair_share=self.often(0.3),
            fair_preempt_rule=self.pick(
                None, None, "preemptor_final_le_victim_final", "preemptor_final_lt_victim_initial"
            ),
            protected_fraction=self.pick(0.0, 0.0, 0.5),
            usage_half_life_s=self.pick(0.0, 0.0, 600.0),
            usage_k=self.pick(0.0, 1.0),
            usage_window_s=3600.0,
            elastic=self.often(0.7),
            consolidation=self.often(0.3),
            restart_cost_s=self.pick(0.0, 30.0),
        )  # fmt: skip
        policies = PolicyNames(
            ordering=self.pick("priority", "priority", "fifo", "fair_share", "finish_time_fair", "least_attained",
                               "shortest_remaining"),
            placement=self.pick("pack", "pack", "spread", "least_fragmentation", "topology"),
            preemption=self.pick("cheapest", "newest_first"),
            elasticity=self.pick("goodput", "even", "marginal_throughput"),
        )  # fmt: skip
        reservations: tuple[Reservation, ...] = ()
        if self.often(0.12):
            amount = self.random.randint(1, sum(self.gpus)) * MILLI
            opens, lasts = self.pick(100.0, 500.0, 2000.0), self.pick(100.0, 1000.0)
            reservations = (
                Reservation("booked", opens, lasts, queue=self.pick(*self.queues), gpus_milli=amount),
            )  # fmt: skip
        return Configuration(
            version, tuple(queues), tuple(cohorts), reservations, scheduling=scheduling, policies=policies
        )

    def quotas(self, rows: list[str], most: int) -> tuple[tuple[str, Quota], ...]:
        limits = [None, None, None, 0, 1000, 2000, 4000]
        return tuple(
            (row, Quota(self.random.randint(0, most) * MILLI, self.pick(*limits), self.pick(*limits))) for row in rows
        )

    def workload(self, name: str, takes: float) -> Workload:
        shape = self.pick("one", "one", "gang", "elastic", "fraction", "two", "big")
        gpus, low, high = self.random.randint(1, max(self.gpus)) * MILLI, 1, 1
        if shape == "gang":
            gpus, low = self.pick(1, 1, 2) * MILLI, self.random.randint(2, 4)
        elif shape == "big":
            gpus, low = MILLI, self.random.randint(1, sum(self.gpus))
        elif shape == "elastic":
            gpus, low = self.pick(1, 1, 2) * MILLI, self.random.randint(1, 2)
            high = low + self.random.randint(1, 4)
        elif shape == "fraction":
            gpus, low = self.pick(250, 500, 500, 750), self.pick(1, 1, 2, 3)
        elif shape == "two":
            gpus, low = MILLI, self.random.randint(1, 3)
        flavors = (
            self.flavors if self.flavors == [None] else self.pick([self.flavors[0]], self.flavors, self.flavors[::-1])
        )
        cpus = self.pick(0, 0, 0, 0, 1000, 4000)
        knows = len(flavors) > 1 and self.often(0.5)
        curves = [((low, fast), (max(low, high), fast)) if knows else () for fast in (1.0, self.pick(0.3, 3.0))]
        options = zip(flavors, curves, strict=False)
        groups = [Group("workers", 1, tuple(Option(flavor, Resources(gpus, cpus), fast) for flavor, fast in options))]
        if shape == "two":
            amount = Resources(self.pick(0, 1, 2) * MILLI, self.pick(0, 4000))
            groups.append(
                Group("beside", self.random.randint(1, 2), tuple(Option(flavor, amount) for flavor in flavors))
            )
        near = self.pick(("rack", None), (None, "rack"), ("zone", "rack"), ("node", None)) if self.often(0.2) else ()
        return Workload(
            name, name, "train", tuple(groups), queue=self.pick(*self.queues), priority=self.pick(10, 50, 50, 90),
            min_size=low, max_size=max(low, high), topology=Topology(*near), preemptible=not self.often(0.15),
            grace_s=self.pick(0.0, 10.0, 120.0), min_runtime_s=100.0 if self.often(0.1) else 0.0,
            max_runtime_s=takes * self.pick(1.1, 2.0, 10.0) + 60.0 if self.often(0.3) else None,
            estimated_runtime_s=takes * self.pick(0.5, 1.0, 2.0) if self.often(0.3) else None,
            retry=Retry(max_restarts=1000, backoff_s=1.0),
        )  # fmt: skip


class Rich(Maker):
    """More of what seldom meets: three flavors, several reservations of every kind, deadlines, groups with topologies
    of their own, work moved together beside evictions of equals; and now and then a history three times as long."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.flavors = self.pick([None], ["A", "B"], ["A", "B", "C"])

    def how_many_events(self) -> int:
        return self.random.randint(40, 50) if self.often(0.1) else self.random.randint(4, 16)

    def configuration(self, version: int) -> Configuration:
        made = super().configuration(version)
        scheduling = made.scheduling
        if self.often(0.3):
            rules = scheduling.preemption._replace(within_queue="lower_or_newer_equal_priority")
            scheduling = replace(scheduling, preemption=rules, consolidation=True)
        booked = tuple(self.reservation(f"r{number}") for number in range(self.pick(0, 1, 2, 3)))
        return replace(made, scheduling=scheduling, reservations=booked)

    def reservation(self, name: str) -> Reservation:
        opens, lasts = self.pick(50.0, 100.0, 300.0, 700.0, 2000.0), self.pick(50.0, 300.0, 1000.0)
        who = {"queue": self.pick(*self.queues)} if self.often(0.6) else {"users": (self.pick("ann", "bob"),)}
        kind = self.pick("nodes", "part", "part", "flavor", "repeat", "nobody")
        if kind == "nodes":
            nodes = tuple(sorted({self.pick(*self.nodes).id for _ in range(self.pick(1, 2))}))
            return Reservation(name, opens, lasts, nodes=nodes, **who)
        if kind == "nobody":
            return Reservation(name, opens, lasts, nodes=(self.pick(*self.nodes).id,))
        if kind == "repeat":
            return Reservation(name, opens, 120.0, repeat="*/10 * * * *", gpus_milli=self.pick(1, 2) * MILLI, **who)
        flavor = self.pick(*self.flavors) if kind == "flavor" else None
        return Reservation(name, opens, lasts, flavor=flavor, gpus_milli=self.pick(1, 1, 2, 3, 5) * MILLI, **who)

    def workload(self, name: str, takes: float) -> Workload:
        made = replace(super().workload(name, takes), user=self.pick("ann", "bob"))
        if self.often(0.15):
            made = replace(made, deadline=self.pick(30.0, 90.0, 200.0, 600.0, 1500.0, 4000.0))
        return self.grouped(made) if self.often(0.15) else made

    def grouped(self, made: Workload) -> Workload:
        """Of several groups, each with a topology of its own but the first, beside that of the gang."""
        first = Group(
            "workers", 1, tuple(Option(flavor, Resources(self.pick(1, 1, 2) * MILLI)) for flavor in self.flavors)
        )
        groups = [first]
        for number in range(self.pick(1, 1, 2)):
            amount = Resources(self.pick(0, 500, 1000, 2000), self.pick(0, 2000))
            flavors = self.pick(self.flavors, [self.flavors[-1]], [None])
            options = tuple(Option(flavor, amount) for flavor in flavors)
            groups.append(
                Group(f"g{number}", self.pick(1, 2), options, self.pick(None, Topology("rack"), Topology("node")))
            )
        low = self.pick(1, 2, 3)
        near = self.pick(Topology(), Topology("rack"), Topology("node"), Topology("zone", "rack"))
        return replace(made, groups=tuple(groups), topology=near, min_size=low, max_size=low + self.pick(0, 0, 2))


class Unlike(Rich):
    """GPUs that are not alike: options that ask for different numbers of them and say how fast they are at each size,
    quotas of one flavor; and several reservations that come again, each in its own time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.flavors = self.pick(["A", "B"], ["A", "B"], ["A", "B", "C"])

    def reservation(self, name: str) -> Reservation:
        made = super().reservation(name)
        if made.nodes or self.often(0.3):
            return made
        cron, lasts = self.pick(("*/10 * * * *", 120.0), ("*/30 * * * *", 600.0), ("0 * * * *", 1200.0))
        return replace(made, start=600.0, duration_s=lasts, repeat=cron)

    def workload(self, name: str, takes: float) -> Workload:
        made = super().workload(name, takes)
        first = made.groups[0]
        if len(made.groups) > 1 or self.often(0.4):
            return made
        sizes = range(made.min_size, made.max_size + 1)
        options = []
        for option in first.options:
            fast, power = self.pick(0.5, 1.0, 1.0, 4.0), self.pick(0.5, 1.0)
            curve = tuple((size, fast * (size / made.min_size) ** power) for size in sizes)
            milli = option.resources.gpus_milli * self.pick(1, 1, 2)
            options.append(option._replace(resources=option.resources._replace(gpus_milli=milli), speedup=curve))
        return replace(made, groups=(replace(first, options=tuple(options)),))


RICH, UNLIKE = 0, 2  # of four worlds


def made(seed: int, plain: bool = False) -> World:
    """`plain`: as all worlds were before there were others."""
    kinds = {RICH: Rich, UNLIKE: Unlike}
    return (Maker if plain else kinds.get(seed % 4, Maker))(seed).world()
