"""A notice of preemption, from the executor's word to the next attempt: saved, moved, and no step lost."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, kinds, phase, serve, train, until

from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.executors.fake import NodeKind
from llmsched.executors.port import CheckpointSeen

ONE_OF_TWO = (NodeKind(1, "A100"), NodeKind(1, "A100"))
NOTICE_S = 30.0


@pytest.mark.parametrize("who", ["the cluster", "an operator"])
def test_what_runs_there_saves_in_time_and_goes_on_elsewhere(who: str) -> None:
    async def story() -> None:
        clock = ManualClock()
        script = Script(runs_for_s=None, stops_after_s=5.0)
        cluster = fake_cluster(ONE_OF_TWO, clock, learns=script)
        async with controlling(cluster, clock=clock) as controller:
            await controller.submit([train("learns")], user=ANN)
            await until(lambda: phase(controller, "learns") == "running")
            gang = controller.state.gangs["learns/0"]
            (held,) = {placed.node for placed in gang.held}
            left_at = clock.now() + NOTICE_S
            if who == "the cluster":
                cluster.take_away(held, left_at)
            else:
                await controller.drain_node(held, "root", within_s=NOTICE_S)
            await until(lambda: cluster.stopped)
            assert (cluster.stopped[0].mode, cluster.stopped[0].grace_s) == ("preempt", NOTICE_S)
            cluster.say(CheckpointSeen("learns/0", 1, 17))  # the loop saves where it is
            names = KnownNames(controller.state, Permissions(Person(ANN), controller.state.configuration))
            words = views.why(controller.state, controller.state.workloads["learns"], (), names).text
            assert "it leaves: node node-" in words
            await clock.advance(5.0)
            await until(lambda: gang.attempt == 2 and phase(controller, "learns") == "running")
            assert clock.now() < left_at and {placed.node for placed in gang.held} == {*cluster.nodes} - {held}
            told = kinds(controller, "learns")
            assert told.count("Lost") == told.count("Finished") == 0 and gang.restarts == 0
            cluster.lose_node(held)  # nobody is there any more
            await clock.advance(1.0)
            assert phase(controller, "learns") == "running"

    asyncio.run(story())


def test_a_notice_that_is_taken_back_opens_the_node_again_and_one_of_before_a_restart_still_holds() -> None:
    async def story() -> None:
        clock = ManualClock()
        cluster = fake_cluster(ONE_OF_TWO, clock)
        cluster.take_away("node-1")
        async with controlling(cluster, clock=clock) as controller:
            nodes = controller.state.nodes
            await until(lambda: nodes["node-1"].draining)
            cluster.lose_contact()
            cluster.regain_contact()
            await controller.submit([train("one"), train("two")], user=ANN)
            await until(lambda: [*controller.state.holding] == ["one/0"])
            await clock.advance(60.0)
            assert [placed.node for placed in controller.state.gangs["one/0"].held] == ["node-2"]
            assert kinds(controller).count("NodeDraining") == 1
            cluster.keep("node-1")
            await until(lambda: phase(controller, "two") == "running")

    asyncio.run(story())


def test_an_endpoint_answers_all_the_while() -> None:
    async def story() -> None:
        clock = ManualClock()
        cluster = fake_cluster(ONE_OF_TWO, clock, talks=Script(starts_after_s=20.0, runs_for_s=None, stops_after_s=2.0))
        async with controlling(cluster, clock=clock) as controller:
            await controller.submit([serve("talks")], user=ANN)
            await clock.advance(20.0)
            await until(lambda: phase(controller, "talks") == "running")
            (first,) = cluster.running()
            (held,) = {placed.node for placed in controller.state.gangs["talks/0"].held}
            await controller.drain_node(held, "root")
            names = KnownNames(controller.state, Permissions(Person(ANN), controller.state.configuration))
            why = views.why(controller.state, controller.state.workloads["talks"], (), names)
            assert f"node {held} is to be empty: another replica is made first" in " ".join(g.text for g in why.gangs)
            for _ in range(19):
                await clock.advance(1.0)
                assert cluster.running() == [first]
            await clock.advance(1.0)
            await until(lambda: len(cluster.running()) == 2)
            await until(lambda: cluster.stopped)
            await clock.advance(2.0)
            assert cluster.running() == [first.replace("/0/", "/1/")]
            assert "Preempt" not in kinds(controller, "talks") and phase(controller, "talks") == "running"

    asyncio.run(story())
