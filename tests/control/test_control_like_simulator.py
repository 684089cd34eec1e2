"""The wind tunnel against the live loop: small worlds, the same trace through both, the same starts and ends.

Live is the real `Controller` on the fake executor, with a clock that the test owns.
"""

from __future__ import annotations

import asyncio
from math import inf

import pytest
from control_harness import ManualClock, Script, controlling, train
from small_worlds import ONE, WORLDS, Told, World, differences, jobs_of, rules, simulated

from llmsched.core.decisions import Launch, Preempt
from llmsched.core.facts import Bound, Finished, Released
from llmsched.core.resources import MILLI
from llmsched.executors.fake import FakeCluster, NodeKind
from llmsched.executors.port import LaunchOrder
from llmsched.sim import fleet
from llmsched.store.journal import Written

START_S, LEAVE_S = 5.0, 2.0
OPERATOR = "root"
ENDS_WITHIN_S = 10_000.0
START = 960_000.0  # as far from the next quantum as 0 is


LARGER = {
    "conservative backfill on two nodes": World(
        "a,0,6,200\nb,5,8,50\nc,6,2,100\nd,7,2,300\ne,8,1,60\n",
        f"{ONE}\nscheduling: {{backfill: conservative}}\npolicies: {{ordering: fifo}}",
        nodes="2x4:A100",
    ),
    "fair shares of six": World(
        "a,0,2,200,,a\nb,0,2,200,,a\nc,0,2,200,,a\nd,10,2,100,,b\ne,11,2,100,,b\nf,12,2,100,,b\n",
        "queues: [{name: a, weight: 1}, {name: b, weight: 2}]\nscheduling: {fair_share: drf_total}",
        nodes="1x6:A100",
    ),
    "by rank, once a quantum": World(
        "long,0,4,900\na,10,4,60\nb,20,2,60\nc,30,2,90\n",
        f"{ONE}\nscheduling: {{order: best_effort, quantum: 60s, preemption: {{within_queue: by_rank}}}}\n"
        "policies: {ordering: shortest_remaining}",
        evictions=1,
        nodes="1x4:A100",
    ),
    "gangs over four nodes": World(
        "a,0,6,100\nb,1,4,50\nc,2,2,70\nd,3,8,30\ne,110,3,20\nf,111,2,20\n", nodes="4x2:A100"
    ),
}


async def lived(world: World) -> Told:
    jobs = jobs_of(world)
    clock = ManualClock(START)
    zero = clock.now()
    told: list[Written] = []

    def script(order: LaunchOrder) -> Script:
        job = next(job for job in jobs if job.id == order.workload)
        worked, since = 0.0, inf
        for entry in (written.entry for written in controller.entries(0, order.workload)):
            if isinstance(entry, Bound):
                since = entry.at
            elif isinstance(entry, Released) and since < inf:
                worked, since = worked + entry.at - LEAVE_S - since, inf
        return Script(START_S, job.duration_s - worked, steps=1, stops_after_s=LEAVE_S)

    cluster = FakeCluster([NodeKind(*kind) for kind in kinds_of(world.nodes)], clock=clock, script=script)
    async with controlling(cluster, clock=clock) as controller:
        await controller.configure(rules(world), OPERATOR)
        zero = clock.now()
        for job in jobs:
            await clock.advance(zero + job.submit_s - clock.now())
            spec = train(
                job.id,
                workers=job.gpus,
                resources={"accelerators": f"{job.flavor}:1"},
                priority=job.priority,
                queue=job.queue,
                estimated_runtime=f"{job.duration_s:g}s",
            )
            await controller.submit([spec], user=job.queue)
        while any(record.outcome == "" for record in controller.state.workloads.values()):
            assert clock.now() < zero + ENDS_WITHIN_S
            await clock.advance(10.0)
        told = controller.entries()
    starts, ends = [], {}
    for written in told:
        entry = written.entry
        if isinstance(entry, Launch):
            starts.append((written.at - zero, name_of(entry)))
        elif isinstance(entry, Finished):
            ends[name_of(entry)] = entry.at - zero
    jct = {job.id: ends[job.id] - job.submit_s for job in jobs}
    evictions = sum(isinstance(written.entry, Preempt) for written in told)
    return Told([(name, start) for start, name in sorted(starts)], jct, evictions)


def name_of(entry: Launch | Finished) -> str:
    return entry.gang.partition("/")[0]


def kinds_of(nodes: str) -> list[tuple[float, str | None]]:
    return [(node.total.gpus_milli / MILLI, node.flavor) for node in fleet.parse(nodes)]


ALL = WORLDS | LARGER


@pytest.mark.parametrize("world", ALL.values(), ids=ALL)
def test_the_simulator_starts_the_same_work_in_the_same_order_and_ends_it_when_the_live_loop_does(world: World) -> None:
    expected, live = simulated(world, START_S, LEAVE_S), asyncio.run(lived(world))
    assert differences(live, expected) == []
    assert live.evictions >= world.evictions
