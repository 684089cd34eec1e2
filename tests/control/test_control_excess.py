"""What an attempt takes through Ray beyond its gang, from the executor's word to what people read and to its end."""

from __future__ import annotations

import asyncio

from control_harness import ANN, ManualClock, controlling, fake_cluster, kinds, phase, task, until

from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.core.render import text
from llmsched.executors.fake import NodeKind
from llmsched.executors.port import ExcessSeen, ForeignSeen
from llmsched.spec import cluster as cluster_file

FOUR = (NodeKind(4, "A100"),)
THREE = (ForeignSeen("node-1", 3.0, 0.0, 0),)


def permissions(controller, person):
    return Permissions(person, controller.state.configuration)


def told(controller, person):
    """What `why`, `status` and `nodes` say of it to a person."""
    state, seen = controller.state, permissions(controller, person)
    names, found = KnownNames(state, seen), state.workloads["hog"]
    (node,) = views.nodes(state, seen)
    return (
        views.why(state, found, controller.entries(0, "hog"), names).text,
        views.workload(state, found, {}, names).message,
        [(one.gang, one.amounts.gpus) for one in node.excess],
        node.foreign.gpus,
    )


def test_it_is_told_as_its_own_and_ended_when_it_goes_on():
    async def story():
        clock = ManualClock()
        cluster = fake_cluster(FOUR, clock)
        async with controlling(cluster, clock=clock) as controller:
            await controller.submit([task("hog")], user=ANN)
            await until(lambda: phase(controller, "hog") == "running")
            cluster.say(THREE[0])
            cluster.say(ExcessSeen("hog/0", 1, THREE))
            await until(lambda: "ExcessUse" in kinds(controller, "hog"))
            why, message, excess, others = told(controller, Person(ANN))
            assert why.endswith("through Ray it takes 3 GPUs beyond its gang, and is ended in 30 s if it goes on")
            assert message == "takes 3 GPUs beyond its gang, through Ray, on node-1"
            assert (excess, others) == ([("hog/0", 3.0)], 0.0)
            *_, outsider, nobody = told(controller, Person("eve"))
            assert (outsider, nobody) == ([("another's workload", 3.0)], 0.0)

            await clock.advance(31)
            await until(lambda: phase(controller, "hog") == "failed")
            assert "took 3 GPUs beyond" in text(controller.state.workloads["hog"].message)

    asyncio.run(story())


def test_what_is_said_twice_is_written_once_and_its_end_too():
    async def story():
        cluster = fake_cluster(FOUR)
        async with controlling(cluster) as controller:
            await controller.configure(cluster_file.load("limits: {excess: warn}", "llmsched.yaml"), ANN)
            await controller.submit([task("hog")], user=ANN)
            await until(lambda: phase(controller, "hog") == "running")
            for used in THREE, THREE, (), ():
                cluster.say(ExcessSeen("hog/0", 1, used))
                await until(lambda used=used: bool(controller.state.gangs["hog/0"].excess) is bool(used))
            cluster.say(ExcessSeen("nobody/0", 1, THREE))
            cluster.say(ExcessSeen("hog/0", 9, THREE))
            assert kinds(controller, "hog").count("ExcessUse") == 2
            assert phase(controller, "hog") == "running"

    asyncio.run(story())


def test_an_order_says_how_memory_is_bounded():
    async def story():
        cluster = fake_cluster(FOUR)
        async with controlling(cluster) as controller:
            await controller.configure(cluster_file.load("limits: {over_memory: warn}", "llmsched.yaml"), ANN)
            await controller.submit([task("hog")], user=ANN)
            await until(lambda: phase(controller, "hog") == "running")
            assert cluster.attempts["llms/hog/0/1"].order.over_memory == "warn"

    asyncio.run(story())
