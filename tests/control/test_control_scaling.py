"""What is said of an endpoint's target, of its forecast, and of who gave it GPUs: in why, plan and story."""

from __future__ import annotations

import asyncio

from control_harness import ANN, ManualClock, controlling, kinds, serve, train

from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.controller import Controller
from llmsched.control.roles import OPERATOR
from llmsched.core.latency import Latency
from llmsched.executors.fake import FakeCluster, NodeKind, Script
from llmsched.executors.port import LoadSeen
from llmsched.spec import cluster as cluster_file

QUEUES = """
cohorts: [{name: all}]
queues:
  - {name: serving, cohort: all, quota: {A100: {nominal: 4}}}
  - {name: training, cohort: all, quota: {A100: {nominal: 0}}}
scheduling: {preemption: {reclaim: any}, restart_cost_s: 30}
"""
DELAYS = {"upscale_delay_s": 0, "downscale_delay_s": 60}


class World:
    """An endpoint of one replica beside an elastic fine-tune on four GPUs."""

    def __init__(self) -> None:
        self.clock = ManualClock(960_000.0)
        self.cluster = FakeCluster([NodeKind(4, "A100")], clock=self.clock, script=self.script)

    @staticmethod
    def script(order: object) -> Script:
        return Script(starts_after_s=20.0, runs_for_s=None, resizes_after_s=3.0)

    async def begin(self, controller: Controller, **slo: str) -> None:
        self.controller = controller
        await controller.configure(cluster_file.load(QUEUES.encode(), "cluster.yaml"), "root")
        self.chat = serve("chat", replicas="1..2", queue="serving", slo=slo, autoscaling=DELAYS)
        await controller.submit([self.chat], user=ANN)
        await controller.submit([train("tune", workers="1..4", queue="training")], user=ANN)
        await self.clock.advance(25.0)

    async def load(self, ongoing: float, *measured: tuple[float, float]) -> None:
        latencies = tuple(Latency("m", "A100", load, 40, p95 / 2, latency_p95_s=p95) for load, p95 in measured)
        self.cluster.say(LoadSeen("chat", ongoing, 0.0, latencies))
        await self.clock.advance(1.0)

    def names(self) -> KnownNames:
        state = self.controller.state
        return KnownNames(state, Permissions(Person(ANN, OPERATOR), state.configuration))

    def told(self) -> list[str]:
        state = self.controller.state
        return [each.text for each in views.why(state, state.find("chat"), [], self.names()).scaling]

    def events(self) -> list[str]:
        state = self.controller.state
        may = Permissions(Person(ANN, OPERATOR), state.configuration)
        entries = self.controller.entries(0, "chat")
        views_of = [views.event_for(each.seq, each.at, each.entry, state, may) for each in entries]
        return [view.text for view in views_of if view is not None]

    def story(self, name: str) -> list[str]:
        entries = [(e.seq, e.at, e.entry) for e in self.controller.entries(0, name)]
        return [line.text for line in views.story(self.controller.state.find(name), entries, self.names()).lines]


def test_why_says_what_was_measured_and_plan_that_a_target_is_out_of_reach() -> None:
    async def run() -> None:
        world = World()
        async with controlling(world.cluster, clock=world.clock) as controller:
            await world.begin(controller, latency_p95="2s")
            assert world.told()[0] == "answers within 2 s (p95): not measured yet, so target_ongoing_requests counts"
            await world.load(1.0, (1.0, 1.0), (4.0, 3.0))
            assert world.told()[0] == (
                "answers within 2 s (p95): holds up to 2.2 requests at a replica, on A100; measured 1 s at 1"
            )
            await world.load(20.0)
            said = (
                "answers within 2 s (p95): not reachable with 2 x 1 A100: 20 requests need 10, as one holds it up to "
                "2.2; measured 1 s at 1"
            )
            assert world.told()[0] == said
            more = serve("chat", replicas="1..3", queue="serving", slo={"latency_p95": "2s"}, autoscaling=DELAYS)
            (planned,) = await controller.plan([more], user=ANN, role=OPERATOR)
            assert said.replace("2 x 1 A100", "3 x 1 A100") in planned.warnings
            hard = serve("chat", replicas="1..9", queue="serving", slo={"latency_p95": "500ms"}, autoscaling=DELAYS)
            (planned,) = await controller.plan([hard], user=ANN, role=OPERATOR)
            assert not any("reachable" in each for each in planned.warnings), "one may have met a cold start"
            for _ in range(2):
                await world.load(1.0, (1.0, 1.0))
            (planned,) = await controller.plan([hard], user=ANN, role=OPERATOR)
            assert planned.in_place and planned.warnings[:1] == [
                "answers within 0.5 s (p95): not reachable with any number, on A100: it took 1 s with 1 in flight"
            ]

    asyncio.run(run())


def test_who_gave_a_gpu_to_whom_what_it_cost_and_how_long_it_took_is_told_to_both() -> None:
    async def run() -> None:
        world = World()
        async with controlling(world.cluster, clock=world.clock) as controller:
            await world.begin(controller, latency_p95="2s")
            assert controller.state.find("tune").known["tune/0"].size == 3
            await world.clock.advance(100.0)
            await world.load(4.0, (1.0, 1.0), (4.0, 3.0))
            scaled = "load asks for 2: answers within 2 s (p95) holds up to 2.2 requests at a replica"
            assert any(scaled in line for line in world.story("chat")), world.story("chat")
            await world.clock.advance(30.0)
            (came,) = [each for each in controller.state.find("chat").handovers if each.gifts]
            assert came.seconds == 23.0 and kinds(controller, "tune").count("Resize") == 1
            gift = "1 GPUs of tune, which lost 90 GPU-seconds"
            assert f"runs, 23 s after it was asked for, on {gift}" in world.story("chat")
            assert world.told()[-1] == f"its last replica answered 23 s after it was asked for, on {gift}"
            gave = "makes room for chat: gives 1 GPUs, and its restart costs 90 GPU-seconds"
            assert any(gave in line for line in world.story("tune"))
            assert any(f"runs, 23 s after it was asked for, on {gift}" in line for line in world.events())  # as in top
            await world.load(0.0)
            wants = [line for line in world.story("chat") if "wants" in line]
            assert kinds(controller, "chat").count("Scale") == 2 and len(wants) == 1, (
                "what asks for nothing is no story"
            )

    asyncio.run(run())


def test_a_fixed_number_of_replicas_is_watched_and_not_changed() -> None:
    async def run() -> None:
        world = World()
        async with controlling(world.cluster, clock=world.clock) as controller:
            await world.begin(controller, latency_p95="2s")
            fixed = serve("chat", replicas=1, queue="serving", slo={"latency_p95": "2s"})
            await controller.submit([fixed], user=ANN)
            await world.load(20.0, (1.0, 1.0), (20.0, 3.0))
            assert "not reachable with 1 x 1 A100" in world.told()[0]
            assert controller.state.find("chat").wanted_replicas == 1

    asyncio.run(run())
