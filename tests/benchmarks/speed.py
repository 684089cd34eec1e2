"""How fast llmsched decides: the shapes that Kueue, KAI, Armada and Sia publish, and replays of 100,000 jobs.

    python tests/benchmarks/speed.py [--only kueue] [--out speed.json]

Decision time only: the core in memory, no nodes, no network. Every shape runs in a process of its own, so that the peak
memory is its own. Prints one table, writes one JSON object with p50, p95 and p99 of the turns beside what is published.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
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
from llmsched.core.decisions import Launch, Preempt
from llmsched.core.plan import Plan
from llmsched.core.policy import Policies, View
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Topology, Workload
from llmsched.policies import registry
from llmsched.sim import fleet, report, runtimes, simulator
from llmsched.sim.traces.job import Job

BY_RANK = PreemptionRules(within_queue="by_rank", reclaim="any")


def gang(name: str, gpus: int, *, bundle: int = 1, queue: str = "default", **more: Any) -> Workload:
    """`gpus` GPUs in bundles of `bundle`."""
    count = gpus // bundle
    group = Group("workers", count, (Option(None, Resources(gpus_milli=bundle * MILLI)),))
    return Workload(
        id=name,
        name=name,
        kind="task",
        groups=(group,),
        queue=queue,
        min_size=count,
        max_size=count,
        grace_s=0.0,
        **more,
    )


class Clocked:
    """A state, its policies, and the seconds of every turn."""

    def __init__(self, configuration: Configuration, nodes: str, memory_bytes: int = 0) -> None:
        """`memory_bytes`: of each node."""
        self.state = State()
        self.policies: Policies = registry.load(configuration.policies)
        self.seconds: list[float] = []
        joined = [replace(node, total=node.total._replace(memory_bytes=memory_bytes)) for node in fleet.parse(nodes)]
        self.turn([facts.Configured(0.0, configuration), *(facts.NodeJoined(0.0, node) for node in joined)])
        self.seconds.clear()

    def turn(self, found: Sequence[facts.Fact]) -> Plan:
        began = time.perf_counter()
        plan = turn(self.state, found, self.policies)
        self.seconds.append(time.perf_counter() - began)
        return plan

    def settle(self, plan: Plan) -> tuple[int, int]:
        """Carry out at once what was decided, until nothing is left to do; returns (launches, preemptions)."""
        launches = preempted = 0
        now = self.state.now
        while plan.decisions:
            back: list[facts.Fact] = []
            for decision in plan.decisions:
                if isinstance(decision, Launch):
                    launches += 1
                    back.append(facts.Bound(now, decision.gang, decision.attempt))
                elif isinstance(decision, Preempt):
                    preempted += 1
                    back.append(facts.Released(now, decision.gang, decision.attempt))
            if not back:
                break
            plan = self.turn(back)
        return launches, preempted

    def rest(self, plan: Plan) -> None:
        """Carry out what is decided until nothing is."""
        while plan.decisions or plan.is_cut:
            self.settle(plan)
            plan = self.turn([])

    def spent(self, found: Sequence[facts.Fact]) -> float:
        """CPU seconds of all passes that follow."""
        began = time.process_time()
        self.rest(self.turn(found))
        return time.process_time() - began

    def times(self) -> dict[str, float | None]:
        ordered = sorted(self.seconds)
        return {
            "turns": len(ordered),
            **{f"turn_p{p}_ms": _ms(report.quantile(ordered, p / 100)) for p in (50, 95, 99)},
            "turn_max_ms": _ms(ordered[-1]),
            "decisions_s": round(sum(ordered), 3),
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def kueue() -> dict[str, Any]:
    """5 cohorts of 6 queues, nominal 20, borrowing 100, reclaim any; 15,000 workloads in three classes, simulated."""
    classes = (("small", 350, 1, 0.2, 0.1), ("medium", 100, 5, 0.5, 0.5), ("large", 50, 20, 1.0, 1.2))
    jobs: list[Job] = []
    queues: list[Queue] = []
    for cohort in range(5):
        for number in range(6):
            name = f"q{cohort}-{number}"
            queues.append(Queue(name, f"c{cohort}", (("*", Quota(20 * MILLI, 100 * MILLI)),)))
            for kind, count, gpus, seconds, every in classes:
                for i in range(count):
                    at = round(i * every, 3)
                    priority = {"small": 50, "medium": 60, "large": 70}[kind]
                    jobs.append(Job(f"{name}-{kind}-{i}", at, gpus, ((gpus, seconds),), name, priority))
    jobs.sort(key=lambda job: (job.submit_s, job.id))
    configuration = Configuration(
        queues=tuple(queues),
        cohorts=tuple(Cohort(f"c{cohort}") for cohort in range(5)),
        scheduling=Scheduling(preemption=PreemptionRules("lower_priority", "any")),
        policies=PolicyNames(ordering="priority", elasticity="even"),
    )
    found = simulator.simulate(jobs, simulator.Options(fleet.parse("75x8"), configuration))
    figures = report.figures(found)
    waits: dict[str, list[float]] = {}
    for each in found.outcomes:
        if each.first_start_s is not None:
            waits.setdefault(each.job.id.split("-")[2], []).append(each.first_start_s - each.job.submit_s)
    decided = sum(found.turn_s)
    return {
        **{key: figures[key] for key in ("finished", "makespan_s", "utilisation", "preemptions", "turns")},
        **{f"turn_p{p}_ms": figures[f"turn_p{p}_ms"] for p in (50, 95, 99)},
        "mean_wait_s": {kind: round(sum(each) / len(each), 2) for kind, each in sorted(waits.items())},
        "admissions_per_s_of_deciding": round(sum(each.starts for each in found.outcomes) / decided),
        "decisions_s": round(decided, 2),
        "quota_violations": figures["quota_violations"],
    }


def kai() -> dict[str, Any]:
    """500 nodes of 8 GPUs: fill with 4,000 jobs; a 512-pod gang; reclaim for 250 x 8; an impossible 10 x 8 gang."""
    queues = (
        Queue("batch", "all", (("*", Quota(2000 * MILLI)),)),
        Queue("prod", "all", (("*", Quota(2000 * MILLI)),)),
    )
    scheduling = Scheduling(preemption=PreemptionRules("lower_priority", "any"))
    configuration = Configuration(
        queues=queues, cohorts=(Cohort("all"),), scheduling=scheduling, max_pending_per_queue=10**6
    )
    result: dict[str, Any] = {}

    def timed(name: str, world: Clocked, found: Sequence[facts.Fact]) -> None:
        began = time.perf_counter()
        launches, preempted = world.settle(world.turn(found))
        seconds = round(time.perf_counter() - began, 4)
        result[name] = {"seconds": seconds, "launches": launches, "preemptions": preempted}

    world = Clocked(configuration, "500x8")
    fill = [facts.Submitted(1.0, gang(f"j{i}", 1, queue="batch")) for i in range(4000)]
    timed("fill with 4,000 one-GPU jobs", world, fill)
    reclaim = [facts.Submitted(2.0, gang(f"p{i}", 8, bundle=8, queue="prod")) for i in range(250)]
    timed("reclaim for 250 x 8 GPUs", world, reclaim)
    gang_world = Clocked(configuration, "500x8")
    timed("512-pod gang", gang_world, [facts.Submitted(1.0, gang("g", 512, queue="batch"))])
    full = Clocked(configuration, "500x8")
    full.settle(
        full.turn([facts.Submitted(1.0, gang(f"n{i}", 1, queue="batch", topology=Topology())) for i in range(3970)])
    )
    timed("a 10 x 8 gang that does not fit", full, [facts.Submitted(3.0, gang("x", 80, bundle=8, queue="batch"))])
    result["turn_p99_ms"] = world.times()["turn_p99_ms"]
    return result


def armada() -> dict[str, Any]:
    """1,000 nodes of 8; 320,000 queued one-unit jobs; one scheduling cycle."""
    world = Clocked(Configuration(max_pending_per_queue=10**6), "1000x8")
    state = world.state
    for number in range(320_000):
        state.apply(facts.Submitted(1.0, gang(f"j{number}", 1)))
    gc.freeze()
    began = time.perf_counter()
    plan = world.turn([facts.Tick(2.0)])
    cycle = time.perf_counter() - began
    launches = sum(isinstance(decision, Launch) for decision in plan.decisions)
    quiet = [_empty_turn(world, 3.0 + i) for i in range(20)]
    return {"cycle_s": round(cycle, 3), "launches": launches, "empty_turn_ms": _ms(sorted(quiet)[10])}


def sia() -> dict[str, Any]:
    """2,048 GPUs, 1,500 elastic jobs; one decision on events, sizes by goodput."""
    configuration = Configuration(
        scheduling=Scheduling(order="best_effort", preemption=BY_RANK, quantum_s=60.0, restart_cost_s=30.0),
        policies=PolicyNames(ordering="finish_time_fair", elasticity="goodput"),
        max_pending_per_queue=10**6,
    )
    world = Clocked(configuration, "256x8")
    draw = random.Random(7)
    sizes = (1, 2, 4, 8, 16, 32)
    option = (Option(None, Resources(gpus_milli=MILLI)),)
    running: list[str] = []
    for number in range(1500):
        scaling = draw.uniform(0.5, 0.97)
        work = Workload(
            f"j{number}", f"j{number}", "train", (Group("workers", 1, option),), min_size=1, max_size=32, sizes=sizes,
            estimated_runtime_s=draw.lognormvariate(9, 1.2), speedup=tuple((n, n**scaling) for n in sizes), grace_s=0.0,
        )  # fmt: skip
        world.state.apply(facts.Submitted(1.0, work))
        running.append(f"j{number}/0")
    world.settle(world.turn([facts.Tick(2.0)]))
    first = world.seconds[0]
    world.seconds.clear()
    for step in range(60):
        now = 62.0 + 60.0 * step
        done = [name for name in draw.sample(running, 3) if world.state.gangs[name].is_active()]
        ended = [facts.Finished(now, name, world.state.gangs[name].attempt, "succeeded") for name in done]
        plan = world.turn([*ended, facts.Tick(now)])
        resized = [d for d in plan.decisions if type(d).__name__ == "Resize"]
        for decision in resized:
            world.state.apply(facts.Resized(now, decision.gang, decision.attempt, len(decision.placement)))
        world.settle(plan)
    return {"first_pass_s": round(first, 3), **world.times(), **_gap(world)}


def _gap(world: Clocked) -> dict[str, Any]:
    """How far the choice of sizes is from its optimum, by HiGHS, and from the relaxation: per cent of what it earns."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))
    import knapsack

    view, gangs = View(world.state), [one for one in world.state.gangs.values() if not one.is_ended()]
    offers = world.policies.elasticity.policy.offers(gangs, view)
    starting = {gang.id for gang in gangs} - {offer.gang for offer in offers}
    capacity = view.gpus() - sum(gang.size for gang in gangs if gang.id in starting)
    ours = knapsack.chosen(offers, capacity)
    gaps = {"to_optimum": knapsack.optimum(offers, capacity), "to_bound": knapsack.relaxed(offers, capacity)}
    return {f"gap_{name}_pct": round(100 * (1 - ours / best), 4) for name, best in gaps.items()}


def jobs_100k(ordering: str, nodes: str = "1250x8") -> Callable[[], dict[str, Any]]:
    """100,000 jobs over a simulated week; on 10,000 GPUs at about four fifths of what the cluster can do."""

    def shape() -> dict[str, Any]:
        draw = random.Random(11)
        jobs = []
        now = 0.0
        for number in range(100_000):
            now += draw.expovariate(100_000 / 604_800)
            gpus = draw.choices((1, 2, 4, 8, 16, 32, 64), (50, 12, 12, 16, 6, 3, 1))[0]
            seconds = min(draw.lognormvariate(8.0, 1.6), 400_000.0)
            jobs.append(Job(f"j{number}", round(now), gpus, ((gpus, round(seconds)),), f"team{number % 12}"))
        ranked = ordering not in ("fifo", "priority")
        scheduling = Scheduling(order="best_effort", preemption=BY_RANK, quantum_s=600.0) if ranked else Scheduling()
        base = Configuration(
            scheduling=scheduling if ranked else Scheduling(order="strict_fifo", backfill="easy"),
            policies=PolicyNames(ordering=ordering),
            max_pending_per_queue=10**6,
        )
        configuration = simulator.with_queues(base, jobs)
        estimates = runtimes.Estimates("exact")
        began = time.process_time()
        found = simulator.simulate(jobs, simulator.Options(fleet.parse(nodes), configuration, estimates=estimates))
        figures = {**report.figures(found), "cpu_s": round(time.process_time() - began, 1)}
        keys = ("finished", "avg_wait_s", "utilisation", "preemptions", "turns", "wall_s", "cpu_s")
        times = ("turn_p50_ms", "turn_p95_ms", "turn_p99_ms", "turn_max_ms")
        return {key: figures[key] for key in (*keys, *times)}

    return shape


WAITING = {  # rules of the cluster, and how many queues it has
    "defaults": (Scheduling(), 1),
    "8 queues, quota, eviction": (Scheduling(preemption=PreemptionRules("lower_priority", "any")), 8),
    "8 queues, fair share": (Scheduling(fair_share="weighted_drf_over_borrowed"), 8),
    "by rank": (Scheduling(order="best_effort", preemption=BY_RANK, quantum_s=60.0), 1),
}


def waiting(count: int, rules: str) -> Callable[[], dict[str, Any]]:
    """512 GPUs are taken and so many wait, each with a run time of its own: CPU milliseconds of all passes after a
    submission and after an end."""

    return lambda: _events(count, rules, lambda number, work: work)


def _events(count: int, rules: str, asks: Callable[[int, Workload], Workload]) -> dict[str, Any]:
    """`asks`: the request of that number, made from one like others."""
    scheduling, many = WAITING[rules]
    names = [f"q{number}" for number in range(many)] if many > 1 else ["default"]
    quota = (("*", Quota(512 * MILLI // many)),)
    queues = tuple(Queue(name, "all", quota) if many > 1 else Queue(name) for name in names)
    cohorts = (Cohort("all"),) if many > 1 else ()
    limits = {"max_pending_per_queue": 10**6}
    world = Clocked(Configuration(queues=queues, cohorts=cohorts, scheduling=scheduling, **limits), "64x8", 1 << 40)
    draw, now = random.Random(5), 1000.0
    for number in range(count + 512):
        seconds = round(draw.lognormvariate(8, 1.6), 3)
        work = gang(f"j{number}", draw.choice((1, 1, 2, 4, 8)), queue=names[number % many], estimated_runtime_s=seconds)
        world.state.apply(facts.Submitted(number / 1000, asks(number, work)))
    world.rest(world.turn([facts.Tick(now)]))
    gc.freeze()
    spent: dict[str, list[float]] = {"submission": [], "end": []}
    for number in range(15):
        now += 1.0
        work = gang(f"n{number}", 2, queue=names[number % many], estimated_runtime_s=500.0)
        spent["submission"].append(world.spent([facts.Submitted(now, asks(count + 512 + number, work))]))
        first = world.state.gangs[next(iter(world.state.holding))]
        spent["end"].append(world.spent([facts.Finished(now, first.id, first.attempt, "succeeded")]))
    figures = {f"{what}_p50_ms": _ms(sorted(each)[len(each) // 2]) for what, each in spent.items()}
    return {"waiting": world.state.waiting.count, **figures, "end_max_ms": _ms(max(spent["end"]))}


def different(count: int, rules: str) -> Callable[[], dict[str, Any]]:
    """The same where each asks for memory of its own, so that no two are of one class."""

    return lambda: _events(count, rules, lambda number, work: _with_memory(work, number + 1))


def _with_memory(work: Workload, memory_bytes: int) -> Workload:
    [group] = work.groups
    own = Resources(gpus_milli=MILLI, memory_bytes=memory_bytes)
    return replace(work, groups=(replace(group, options=(Option(None, own),)),))


def empty() -> dict[str, Any]:
    """10,000 GPUs taken and 10,000 gangs waiting: a tick of one second in which nothing happens."""
    world = Clocked(Configuration(max_pending_per_queue=10**6), "1250x8")
    for number in range(20_000):
        world.state.apply(facts.Submitted(1.0, gang(f"j{number}", 1)))
    world.settle(world.turn([facts.Tick(2.0)]))
    seconds = sorted(_empty_turn(world, 3.0 + i) for i in range(50))
    return {"waiting": world.state.waiting.count, "empty_turn_ms": _ms(seconds[25]), "worst_ms": _ms(seconds[-1])}


def _empty_turn(world: Clocked, at: float) -> float:
    world.turn([facts.Tick(at)])
    return world.seconds[-1]


SHAPES: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "kueue": (kueue, "15,000 in 351 s, usage 55.9 %, waits 16.5/76.8/215 s, end to end", ">= 1,000 admissions/s"),
    "kai": (kai, "398 s; 512-pod gang 49 s; reclaim 102 s; unschedulable 249.5 s, end to end", "2; 0.5; 2; 0.05 s"),
    "armada": (armada, "5 s budget for a cycle", "< 2 s"),
    "sia": (sia, "about 1 s a decision", "p95 < 100 ms"),
    "empty turn": (empty, "-", "< 5 ms"),
    "100k jobs, fifo + easy": (jobs_100k("fifo"), "-", "< 60 s, < 2 GiB"),
    "100k jobs, finish_time_fair": (jobs_100k("finish_time_fair"), "-", "< 60 s, < 2 GiB"),
    "100k jobs, on two thirds of the GPUs": (jobs_100k("finish_time_fair", "850x8"), "-", "none: overloaded for days"),
    "100k jobs, overloaded 1.5 times": (jobs_100k("finish_time_fair", "667x8"), "-", "< 120 s"),
    "100k jobs, overloaded 2.2 times": (jobs_100k("finish_time_fair", "455x8"), "-", "< 120 s"),
    **{
        f"{count:,} waiting, {rules}": (waiting(count, rules), "-", "< 5 ms an event")
        for rules in WAITING
        for count in (1_000, 10_000, 100_000)
    },
    **{f"2,000 different requests, {rules}": (different(2_000, rules), "-", "< 5 ms an event") for rules in WAITING},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="shapes whose name contains this")
    options.add_argument("--out", type=Path, default=Path("speed.json"))
    options.add_argument("--shape", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.shape:
        found = SHAPES[given.shape][0]()
        found["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(found))
        return
    result: dict[str, Any] = {}
    for name, (_, published, target) in SHAPES.items():
        if given.only.lower() not in name:
            continue
        done = subprocess.run([sys.executable, __file__, "--shape", name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr}")
        result[name] = {"ours": json.loads(done.stdout), "published": published, "target": target}
        print(f"{name}  (target {target}; published: {published})")
        for key, value in result[name]["ours"].items():
            print(f"  {key}: {value}")
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nEverything is in {given.out}.")


if __name__ == "__main__":
    main()
