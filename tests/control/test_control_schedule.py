"""A schedule begins a run each time it is due: `sweep`, `sweep@2`, ... The clock here starts at 13:46:40 UTC."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, phase, task

from llmsched.core.render import text
from llmsched.errors import RequestError

HOURLY = {"cron": "0 * * * *"}
TO_THE_HOUR = 800.0
HOUR = 3600.0


@asynccontextmanager
async def sweeping(script, **schedule):
    clock = ManualClock()
    cluster = fake_cluster(clock=clock, sweep=script)
    async with controlling(cluster, clock=clock) as controller:
        await controller.submit([task("sweep", schedule=HOURLY | schedule)], user=ANN)
        yield controller, cluster, clock


def told(story):
    asyncio.run(story())


def test_it_waits_for_the_hour_and_runs_every_hour_from_then_on():
    async def story():
        async with sweeping(Script(runs_for_s=60.0)) as (controller, cluster, clock):
            await clock.advance(TO_THE_HOUR - 1)
            assert phase(controller, "sweep") == "waiting" and cluster.launched == []
            waits = controller.state.gangs["sweep/0"].reason
            assert text(waits.message) == 'waits for its schedule "0 * * * *" (UTC)' and waits.eta == 1_000_800.0
            await clock.advance(2)
            assert cluster.launched == ["llms/sweep/0/1"]
            await clock.advance(2 * HOUR + 120)
            assert cluster.launched == ["llms/sweep/0/1", "llms/sweep@2/0/1", "llms/sweep@3/0/1"]
            assert {phase(controller, name) for name in ("sweep", "sweep@2", "sweep@3")} == {"succeeded"}
            assert controller.state.workloads["sweep@3"].next_run_at == 1_000_800.0 + 3 * HOUR

    told(story)


@pytest.mark.parametrize(("overlap", "runs"), [("skip", 2), ("allow", 4)])
def test_a_run_that_takes_longer_than_an_hour_keeps_the_next_one_out_unless_they_may_overlap(overlap, runs):
    async def story():
        async with sweeping(Script(runs_for_s=2.5 * HOUR), overlap=overlap) as (_, cluster, clock):
            await clock.advance(TO_THE_HOUR + 3 * HOUR + 60)
            assert len(cluster.launched) == runs

    told(story)


def test_a_run_that_fails_does_not_end_the_schedule():
    async def story():
        failing = Script(runs_for_s=1.0, outcome="failed", message="boom")
        async with sweeping(failing) as (controller, cluster, clock):
            await clock.advance(TO_THE_HOUR + HOUR + 600)
            assert (phase(controller, "sweep"), phase(controller, "sweep@2")) == ("failed", "failed")
            assert "llms/sweep@2/0/1" in cluster.launched

    told(story)


def test_cancelling_ends_the_schedule_even_between_two_runs():
    async def story():
        async with sweeping(Script(runs_for_s=60.0)) as (controller, cluster, clock):
            await clock.advance(TO_THE_HOUR + 120)
            await controller.cancel("sweep", ANN)
            await clock.advance(2 * HOUR)
            assert cluster.launched == ["llms/sweep/0/1"]
            assert (phase(controller, "sweep"), controller.state.find("sweep").next_run_at) == ("succeeded", None)
            with pytest.raises(RequestError, match="has succeeded already"):
                await controller.cancel("sweep", ANN)

    told(story)


def test_a_changed_schedule_counts_from_the_next_run_on_and_again_begins_a_run_that_carries_it_on():
    async def story():
        async with sweeping(Script(runs_for_s=60.0)) as (controller, cluster, clock):
            await clock.advance(TO_THE_HOUR + 120)
            half_past = task("sweep", schedule={"cron": "30 * * * *"})
            (answer,) = await controller.submit([half_past], user=ANN)
            assert answer.outcome == "changed" and answer.diff == ["schedule.cron: 0 * * * * -> 30 * * * *"]
            await clock.advance(HOUR / 2)
            assert cluster.launched == ["llms/sweep/0/1", "llms/sweep@2/0/1"]
            (answer,) = await controller.submit([half_past], user=ANN, again=True)
            assert (answer.id, answer.phase) == ("sweep@3", "waiting")
            await clock.advance(HOUR)
            assert cluster.launched[2:] == ["llms/sweep@3/0/1"]  # one schedule, not two

    told(story)


def test_plan_says_when_it_would_first_run():
    async def story():
        async with controlling(clock=ManualClock()) as controller:
            (found,) = await controller.plan([task("sweep", schedule=HOURLY)], ANN)
            assert not found.starts_now and found.reason.eta == 1_000_800.0

    told(story)


def test_a_deadline_for_every_run_of_a_schedule_is_refused_with_what_to_write_instead():
    async def story():
        async with controlling(clock=ManualClock()) as controller:
            wrong = task("sweep", schedule=HOURLY, deadline="2030-01-01T00:00Z")
            with pytest.raises(RequestError, match="same deadline") as refused:
                await controller.submit([wrong], user=ANN)
            assert "max_runtime" in refused.value.hint

    told(story)
