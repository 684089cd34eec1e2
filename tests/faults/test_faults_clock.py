"""A wall clock that was set back an hour: nothing expires early or late, and the journal goes on in its order."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "control"))
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, phase, task, until

from llmsched.control.clock import RealClock
from llmsched.executors.fake import NodeKind
from llmsched.store.memory import MemoryStore

START = 1_800_000_000.0
HOUR = 3600.0


def test_the_clock_of_a_running_controller_does_not_follow_the_wall(monkeypatch):
    clock = RealClock()
    before, wall = clock.now(), time.time()
    monkeypatch.setattr(time, "time", lambda: wall - HOUR)
    assert 0.0 <= clock.now() - before < 60.0


def test_a_controller_that_starts_an_hour_earlier_adopts_what_runs_and_nothing_expires():
    async def story():
        store = MemoryStore()
        clock = ManualClock(START)
        cluster = fake_cluster((NodeKind(2, "A100"),), clock, long=Script(runs_for_s=None))
        async with controlling(cluster, store, clock) as controller:
            work = {"max_runtime": "2h", "retry": {"max_restarts": 0}}
            await controller.submit([task("long", gpus=2, **work), task("next", gpus=2, **work)], user=ANN)
            await until(lambda: phase(controller, "long") == "running")
            await clock.advance(600.0)
            seq, epoch = controller.health.seq, controller.health.epoch

        back = ManualClock(START + 600.0 - HOUR)
        async with controlling(cluster, store, back) as controller:
            assert controller.health.epoch > epoch  # the lease changed hands, though its stamp lies ahead
            gang = controller.state.gangs["long/0"]
            assert (phase(controller, "long"), gang.attempt) == ("running", 1)
            await controller.submit([task("after", gpus=1)], user=ANN)
            await back.advance(HOUR)
            assert (phase(controller, "long"), phase(controller, "next")) == ("running", "waiting")
            written = [entry.seq for entry in controller.entries(0, None)]
            assert written == sorted(set(written)) and written[-1] > seq
            await controller.cancel("long", ANN)
            await until(lambda: phase(controller, "long") == "cancelled")
            await back.advance(1.0)
            await until(lambda: phase(controller, "after") == "running")

    asyncio.run(story())
