"""Rules of a spec and of a cluster file, followed by a running controller: limits, queues' own rules, reservations."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, phase, task, until

from llmsched.core.render import text
from llmsched.errors import SpecError
from llmsched.executors.fake import NodeKind
from llmsched.policies.ordering.finish_time_fair import FinishTimeFair
from llmsched.spec import cluster as cluster_file

FOUR = (NodeKind(4, "A100"),)


async def configured(controller, text):
    await controller.configure(cluster_file.load(text, "llmsched.yaml"), ANN)


def test_work_is_stopped_at_its_deadline_and_beyond_its_budget():
    async def story():
        clock = ManualClock()
        async with controlling(fake_cluster(FOUR, clock), clock=clock) as controller:
            limits = {"late": {"deadline": clock.now() + 60}, "dear": {"budget": {"gpu_hours": 0.1}}}
            await controller.submit([task(name, gpus=2, **limit) for name, limit in limits.items()], user=ANN)
            await until(lambda: phase(controller, "late") == phase(controller, "dear") == "running")
            await clock.advance(59)
            assert phase(controller, "late") == "running"
            await clock.advance(2)
            await until(lambda: phase(controller, "late") == "failed")
            assert "deadline" in text(controller.state.workloads["late"].message)
            await clock.advance(180)  # 0.1 GPU hours are 180 s of two GPUs
            await until(lambda: phase(controller, "dear") == "failed")
            assert "budget" in text(controller.state.workloads["dear"].message)

    asyncio.run(story())


def test_a_queue_has_rules_of_its_own():
    async def story():
        async with controlling(fake_cluster(FOUR)) as controller:
            await configured(
                controller,
                "queues:\n"
                "- {name: strict, quota: {A100: {nominal: 2, borrowing_limit: 0}},"
                " preemption: {within_queue: lower_priority}}\n"
                "- {name: calm, quota: {A100: {nominal: 2, borrowing_limit: 0}}}\n",
            )
            low = [task(f"low-{queue}", gpus=2, queue=queue, priority=10) for queue in ("strict", "calm")]
            await controller.submit(low, user=ANN)
            await until(lambda: phase(controller, "low-strict") == phase(controller, "low-calm") == "running")
            high = [task(f"high-{queue}", gpus=2, queue=queue, priority=90) for queue in ("strict", "calm")]
            await controller.submit(high, user=ANN)
            await until(lambda: phase(controller, "high-strict") == "running")
            assert phase(controller, "low-strict") == "waiting"
            assert (phase(controller, "low-calm"), phase(controller, "high-calm")) == ("running", "waiting")

    asyncio.run(story())


def test_what_cannot_end_before_a_reservation_is_not_started_until_it_is_over():
    async def story():
        clock = ManualClock()
        quick = Script(runs_for_s=60)
        async with controlling(fake_cluster(FOUR, clock, short=quick), clock=clock) as controller:
            await configured(
                controller,
                "queues:\n- {name: research}\n- {name: prod}\n"
                "reservations:\n- {name: release, queue: prod, accelerators: 'A100:4', duration: 1h,"
                f" start: {clock.now() + 600}}}\n",
            )
            work = {"short": "5m", "long": "1h"}
            await controller.submit(
                [task(name, queue="research", max_runtime=time) for name, time in work.items()], user=ANN
            )
            await until(lambda: phase(controller, "short") == "running")
            long = controller.state.gangs["long/0"]
            assert (phase(controller, "long"), long.reason.code) == ("waiting", "reservation")
            await clock.advance(700)
            await controller.submit([task("release-job", gpus=4, queue="prod")], user=ANN)
            await until(lambda: phase(controller, "release-job") == "running")
            assert phase(controller, "long") == "waiting"

    asyncio.run(story())


def test_a_reservation_over_work_that_stays_is_the_files_mistake_and_changes_nothing():
    async def story():
        async with controlling(fake_cluster(FOUR)) as controller:
            await controller.submit([task("fixed", gpus=4, preemption={"enabled": False})], user=ANN)
            await until(lambda: phase(controller, "fixed") == "running")
            with pytest.raises(SpecError, match='reservations: reservation "release" overlaps fixed') as refused:
                await configured(
                    controller,
                    "queues:\n- {name: prod}\nreservations:\n- {name: release, queue: prod, accelerators: 'A100:4',"
                    " duration: 1h, start: 2030-01-01T00:00Z}\n",
                )
            assert (refused.value.exit_code, refused.value.code) == (2, "overlap")
            assert controller.state.configuration.version == 0

    asyncio.run(story())


def test_work_that_would_wait_for_itself_is_the_files_mistake_in_one_file_and_over_several():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.submit([task("a")], user=ANN)
            await controller.submit([task("b", after=["a"])], user=ANN)
            for wrong in ([task("a", after=["b"])], [task("c", after=["d"]), task("d", after=["c"])]):
                with pytest.raises(SpecError, match="wait for") as refused:
                    await controller.submit(wrong, user=ANN)
                assert (refused.value.exit_code, refused.value.code) == (2, "cycle")
            assert [*controller.state.workloads] == ["a", "b"]
            assert controller.state.workloads["a"].workload.after == ()

    asyncio.run(story())


def test_a_cluster_file_without_which_no_pass_is_possible_is_refused_and_what_was_in_force_goes_on():
    async def story():
        async with controlling(fake_cluster(FOUR)) as controller:
            with pytest.raises(SpecError, match="Did you mean .finish_time_fair.") as refused:
                await configured(controller, "policies: {ordering: finish_time_fare}")
            assert refused.value.code == "unknown_policy"
            with pytest.raises(SpecError, match='unknown key "gard"'):
                await configured(controller, "policies: {options: {ordering: {gard: 2}}}")
            await configured(controller, "policies: {options: {ordering: {guard: 2}}}")
            assert controller._live.policies.ordering.policy._options.common.guard == 2
            await controller.submit([task("a")], user=ANN)
            await until(lambda: phase(controller, "a") == "running")

    asyncio.run(story())


def test_wrong_answers_of_a_policy_are_told_in_the_health_while_work_goes_on(monkeypatch):
    def broken(self, gang, view):
        raise ZeroDivisionError("by the size of nothing")

    async def story():
        async with controlling(fake_cluster(FOUR)) as controller:
            with monkeypatch.context() as patched:
                patched.setattr(FinishTimeFair, "key", broken)
                await controller.submit([task("a"), task("b", gpus=2)], user=ANN)
                await until(lambda: phase(controller, "a") == phase(controller, "b") == "running")
                await until(lambda: controller.health.status == "degraded")
                said = "ordering policy FinishTimeFair: key raised ZeroDivisionError"
                assert controller.health.message == said
            await controller.submit([task("c"), task("d")], user=ANN)
            await until(lambda: controller.health.status == "ready")

    asyncio.run(story())
