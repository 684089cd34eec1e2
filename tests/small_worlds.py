"""Small worlds that are played through the wind tunnel and through something live, and what each side showed.

Live is the controller on the fake executor (tests/control/test_control_like_simulator.py) or on real Ray
(tests/sim/on_ray.py). Work that leaves goes on from where it was, as its checkpoint would have it; both sides pay the
same seconds to start and to leave: the fake executor is told them, of real Ray they are measured, job by job.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from llmsched.sim import fleet, simulator
from llmsched.sim.recorder import Recorder
from llmsched.sim.runtimes import Estimates
from llmsched.sim.simulator import with_queues
from llmsched.sim.traces import table
from llmsched.sim.traces.job import Job
from llmsched.spec import cluster as cluster_file
from llmsched.spec.compile import compile_configuration

HEAD = "job_id,submit_s,num_gpus,duration_s,priority,queue,flavor\n"
WITHIN = 0.1  # of a completion time may both sides differ
ONE = "queues: [{name: default}]"
TWO = "queues: [{name: a, cohort: all, quota: {'*': {nominal: 2}}}, {name: b, cohort: all, quota: {'*': {nominal: 2}}}]"
FIFO = "policies: {ordering: fifo}"  # the default one learns from what ran before, in another world on the same cluster
NODES = "1x4:A100,2x2:T4"


@dataclass(frozen=True)
class World:
    jobs: str  # of HEAD's columns, as many as matter; the flavor is A100 unless another is named
    config: str = ONE
    evictions: int = 0  # at least: a world in which nobody has to leave shows less
    nodes: str = NODES  # all of them, on both sides: some orders look at the size of the whole cluster


WORLDS = {
    "no file at all": World("a,0,2,100\nb,1,4,50\nc,2,1,30\nd,3,2,40\ne,60,1,10\nf,61,3,25\n"),
    "strict fifo": World(
        "a,0,3,100\nb,1,4,50\nc,2,1,30\nd,3,2,40\n",
        f"{ONE}\nscheduling: {{order: strict_fifo}}\n{FIFO}",
    ),
    "easy backfill": World(
        "a,0,3,100,,,T4\nb,1,4,50,,,T4\nc,2,1,40,,,T4\nd,3,1,400,,,T4\n",
        f"{ONE}\nscheduling: {{order: strict_fifo, backfill: easy}}\n{FIFO}",
    ),
    "conservative backfill": World(
        "a,0,3,200,,,T4\nb,5,4,50,,,T4\nc,6,1,100,,,T4\nd,7,1,300,,,T4\n",
        f"{ONE}\nscheduling: {{backfill: conservative}}\n{FIFO}",
    ),
    "a higher priority evicts": World(
        "a,0,4,300,10\nb,50,2,60,80\nc,60,2,60,20\nd,200,4,40,90\n",
        f"{ONE}\nscheduling: {{preemption: {{within_queue: lower_priority}}}}\n{FIFO}",
        evictions=1,
    ),
    "an owner takes back what it lent": World(
        "a,0,1,400,,a\nb,1,1,400,,a\nc,2,2,400,,a\nd,100,2,50,,b\ne,120,1,50,,b\n",
        f"cohorts: [{{name: all}}]\n{TWO}\nscheduling: {{preemption: {{reclaim: any}}}}\n{FIFO}",
        evictions=1,
    ),
    "fair shares": World(
        "a,0,2,200,,a\nb,0.5,2,240,,a\nc,1,2,200,,a\nd,10,2,100,,b\ne,11,2,100,,b\n",
        f"queues: [{{name: a, weight: 1}}, {{name: b, weight: 2}}]\nscheduling: {{fair_share: drf_total}}\n{FIFO}",
    ),
    "a short one before long ones": World(
        "a,0,4,100\nb,1,4,300\nc,2,4,40\nd,3,4,120\n",
        f"{ONE}\nscheduling: {{order: best_effort}}\npolicies: {{ordering: shortest_remaining}}",
    ),
    "two flavors": World("a,0,4,100\nb,1,2,80\nc,2,2,50,,,T4\nd,3,4,60,,,T4\ne,4,1,20\n", f"{ONE}\n{FIFO}"),
    "gangs over several nodes": World(
        "a,0,3,100,,,T4\nb,1,2,50,,,T4\nc,2,1,70,,,T4\nd,3,4,30,,,T4\ne,110,2,40,,,T4\n",
        f"{ONE}\n{FIFO}",
    ),
}


def jobs_of(world: World) -> list[Job]:
    columns = HEAD.count(",")
    rows = [line + "," * (columns - 1 - line.count(",")) + ",A100" for line in world.jobs.splitlines()]
    rows = [line.removesuffix(",A100") if line.count(",") > columns else line for line in rows]
    return table.parse(HEAD + "\n".join(rows) + "\n", "t.csv")


def rules(world: World) -> cluster_file.ClusterSpec:
    return cluster_file.load(world.config.encode(), "cluster.yaml")


@dataclass
class Told:
    """What one side showed: (name, start) of every hold in order, name -> completion time, how many were evicted."""

    starts: list[tuple[str, float]]
    jct: dict[str, float]
    evictions: int


def simulated(world: World, start_s: float, leave_s: float, jobs: list[Job] | None = None) -> Told:
    """`jobs`: as they were measured, in the place of the world's own; what is told of their run times is their
    `estimated_s` then."""
    recorder = Recorder()
    estimates = Estimates("exact" if jobs is None else "column")
    jobs = jobs_of(world) if jobs is None else jobs
    options = simulator.Options(
        fleet.parse(world.nodes),
        with_queues(compile_configuration(rules(world), 1), jobs),
        estimates,
        restart_cost_s=start_s,
        leave_s=leave_s,
    )
    found = simulator.simulate(jobs, options, recorder)
    starts = sorted((stay.start, stay.gang.partition("/")[0]) for stay in recorder.stays)
    jct = {one.job.id: (one.finished_s or inf) - one.job.submit_s for one in found.outcomes}
    return Told([(name, start) for start, name in starts], jct, found.preemptions)


def differences(live: Told, told: Told, rounding_s: float = 0.0) -> list[str]:
    """What is not the same; empty where all is. `rounding_s`: of no matter in a completion time."""
    found = []
    orders = [" ".join(name for name, _ in side.starts) for side in (live, told)]
    if orders[0] != orders[1]:
        found.append(f"started {orders[0]}, expected {orders[1]}")
    if live.evictions != told.evictions:
        found.append(f"{live.evictions} evictions, expected {told.evictions}")
    for name, jct in told.jct.items():
        if abs(live.jct[name] - jct) > WITHIN * jct + rounding_s:
            found.append(f"{name} took {live.jct[name]:.1f} s, expected {jct:.1f}")
    return found
