"""Controllers come and go; what was acknowledged stays, what runs goes on, and only one writes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, kinds, phase, serve, task, train, until
from waiting import PATIENCE_S

from llmsched.control import housekeeping, lease, live_state, recovery
from llmsched.control.clock import RealClock
from llmsched.control.controller import Controller
from llmsched.errors import StoreError
from llmsched.executors.fake import FakeExecutor
from llmsched.executors.port import Ended, Started, StopOrder, Vanished
from llmsched.policies.registry import load as load_policies
from llmsched.store.journal import StaleEpoch
from llmsched.store.memory import MemoryStore
from llmsched.store.sqlite import SqliteStore


def test_a_restarted_controller_knows_everything_and_adopts_what_runs(tmp_path):
    async def story():
        cluster = fake_cluster()
        path = tmp_path / "state.sqlite"
        async with controlling(cluster, SqliteStore(path)) as first:
            await first.submit([train("big", gpus=2, workers=2), task("next", gpus=2)], user=ANN)
            await until(lambda: phase(first, "big") == "running")
            digest_of = {name: first.state.gangs[name].attempt for name in first.state.gangs}
        assert cluster.running() == ["llms/big/0/1"]  # a controller that ends leaves work alone
        async with controlling(cluster, SqliteStore(path)) as second:
            assert phase(second, "big") == "running"
            assert phase(second, "next") == "waiting"
            assert {name: second.state.gangs[name].attempt for name in second.state.gangs} == digest_of
            assert second.health.epoch == 2
            await second.cancel("big", ANN)
            await until(lambda: phase(second, "next") == "running")
        assert cluster.launched == ["llms/big/0/1", "llms/next/0/1"]  # each of them once

    asyncio.run(story())


def test_what_ended_while_nobody_watched_is_found_at_the_restart():
    async def story():
        clock = ManualClock()
        cluster = fake_cluster(clock=clock, short=Script(runs_for_s=5.0))
        store = MemoryStore()
        async with controlling(cluster, store, clock) as first:
            await first.submit([task("short")], user=ANN)
            await clock.advance(1.0)
            assert phase(first, "short") == "running"
        await clock.advance(60.0)
        async with controlling(cluster, store, clock) as second:
            await until(lambda: phase(second, "short") == "succeeded")
            assert second.state.workloads["short"].artifact.endswith("/1-1")

    asyncio.run(story())


def test_how_far_something_came_while_nobody_watched_is_known_at_the_restart():
    """`best` showed the step at which the controller went, beside the result of the last one."""

    async def story():
        clock = ManualClock()
        cluster = fake_cluster(clock=clock, short=Script(runs_for_s=50.0, steps=50))
        store = MemoryStore()
        async with controlling(cluster, store, clock) as first:
            await first.submit([task("short")], user=ANN)
            await clock.advance(5.0)
            await until(lambda: first.progress.get("short/0", {}).get("step", 0) > 0)
            assert first.progress["short/0"]["step"] < 50
        await clock.advance(100.0)
        async with controlling(cluster, store, clock) as second:
            await until(lambda: phase(second, "short") == "succeeded")
            await until(lambda: second.progress["short/0"]["step"] == 50)
            assert second.progress["short/0"]["total_steps"] == 50, "what it said before stays"

    asyncio.run(story())


def test_what_died_while_nobody_watched_is_started_again():
    async def story():
        cluster = fake_cluster()
        store = MemoryStore()
        async with controlling(cluster, store) as first:
            await first.submit([task("gone"), serve("chat")], user=ANN)
            await until(lambda: phase(first, "gone") == phase(first, "chat") == "running")
        cluster.kill("llms/gone/0/1")
        async with controlling(cluster, store) as second:
            await until(lambda: cluster.running() == ["llms/chat/0/1", "llms/gone/0/2"])
            await until(lambda: phase(second, "gone") == "running")

    asyncio.run(story())


def test_what_nobody_owns_is_reaped_at_the_restart():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as first:
            await first.submit([task("orphan")], user=ANN)
            await until(lambda: phase(first, "orphan") == "running")
        async with controlling(cluster, MemoryStore(), owner="another/cluster"):
            await until(lambda: cluster.attempts == {})

    asyncio.run(story())


def test_a_decision_that_was_written_but_not_sent_is_sent_after_the_restart():
    async def story():
        cluster = fake_cluster()
        store = MemoryStore()
        async with controlling(cluster, store) as first:
            cluster.launch = lambda order: None  # the order is lost on its way
            await first.submit([task("late")], user=ANN)
            await until(lambda: "Launch" in kinds(first, "late"))
        del cluster.launch
        async with controlling(cluster, store) as second:
            await until(lambda: phase(second, "late") == "running")
            assert kinds(second, "late") == ["Submitted", "Launch", "Bound"]

    asyncio.run(story())


def test_who_was_told_to_leave_is_told_again_after_the_restart():
    async def story():
        cluster = fake_cluster()
        store = MemoryStore()
        async with controlling(cluster, store) as first:
            await first.submit([task("leaving")], user=ANN)
            await until(lambda: phase(first, "leaving") == "running")
            cluster.stop = lambda order: None
            await first.cancel("leaving", ANN)
            await until(lambda: "Stop" in kinds(first, "leaving"))
        del cluster.stop
        async with controlling(cluster, store) as second:
            await until(lambda: phase(second, "leaving") == "cancelled")
            assert [(order.mode, order.epoch) for order in cluster.stopped] == [("stop", 2)]

    asyncio.run(story())


def test_a_cluster_that_comes_back_empty_gets_its_work_again():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([train("tune", gpus=2, workers=2)], user=ANN)
            await until(lambda: phase(controller, "tune") == "running")
            cluster.start_anew()
            await until(lambda: cluster.running() == ["llms/tune/0/2"])
            await until(lambda: phase(controller, "tune") == "running")
            assert {member.node for member in cluster.attempts["llms/tune/0/2"].order.members} == {"node-3", "node-4"}
            assert set(controller.state.nodes) == {"node-3", "node-4"}

    asyncio.run(story())


def test_nothing_is_decided_while_the_cluster_is_away_and_nothing_is_lost():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("before")], user=ANN)
            await until(lambda: phase(controller, "before") == "running")
            cluster.lose_contact("no route")
            await until(lambda: controller.health.status == "starting")
            assert controller.health.cluster.message == "no route"
            await controller.submit([task("during")], user=ANN)
            assert phase(controller, "during") == "waiting"
            assert kinds(controller, "during") == ["Submitted"]
            cluster.regain_contact()
            await until(lambda: phase(controller, "during") == "running")
            assert cluster.launched == ["llms/before/0/1", "llms/during/0/1"]

    asyncio.run(story())


def test_what_says_that_it_left_although_nobody_told_it_to_is_tried_again():
    """A receipt lies where work may write: what it says must not keep a place that nobody holds."""

    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("leaves")], user=ANN)
            await until(lambda: phase(controller, "leaves") == "running")
            cluster.attempts["llms/leaves/0/1"].ended = Ended("leaves/0", 1, "released")
            cluster.say(Ended("leaves/0", 1, "released"))
            await until(lambda: "llms/leaves/0/2" in cluster.launched)
            assert kinds(controller, "leaves").count("Lost") == 1

    asyncio.run(story())


def test_reports_that_come_twice_or_late_change_nothing():
    async def story():
        cluster = fake_cluster(quick=Script(runs_for_s=0.01, steps=1))
        async with controlling(cluster) as controller:
            await controller.submit([task("quick"), task("steady")], user=ANN)
            await until(lambda: phase(controller, "quick") == "succeeded" and phase(controller, "steady") == "running")
            before = controller.state.workloads["quick"].artifact
            for seen in (
                Ended("quick/0", 1, "failed", "late lie"),
                Vanished("quick/0", 1),
                Started("quick/0", 1),
                Ended("steady/0", 7, "failed", "no such attempt"),
                Started("nobody/0", 1),
            ):
                cluster.say(seen)
            (unchanged,) = await controller.submit([task("steady")], user=ANN)
            await until(lambda: len(controller._inbox) == 0)
            assert (phase(controller, "quick"), phase(controller, "steady")) == ("succeeded", "running")
            assert controller.state.workloads["quick"].artifact == before

    asyncio.run(story())


def test_orders_of_an_older_epoch_are_ignored_by_the_executor():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("mine")], user=ANN)
            await until(lambda: phase(controller, "mine") == "running")
            executor = FakeExecutor(cluster=cluster)
            executor._open = True
            await executor.stop(StopOrder("mine/0", 1, 0, "task", "stop", 0.0))
            assert cluster.stopped == []

    asyncio.run(story())


def test_a_policy_that_breaks_is_told_and_scheduling_goes_on_without_it(monkeypatch):
    def load(names):
        good = load_policies(names)
        return replace(good, ordering=Broken()) if broken else good

    class Broken:
        static = False

        def key(self, gang, view):
            raise ZeroDivisionError("a policy divided by zero")

    broken = []
    monkeypatch.setattr(live_state, "load_policies", load)

    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("before")], user=ANN)
            await until(lambda: phase(controller, "before") == "running")
            broken.append(True)
            await controller.submit([task("unlucky"), task("unluckier")], user=ANN)  # one alone needs no order
            await until(lambda: controller.health.status == "degraded")
            assert "ZeroDivisionError" in controller.health.message
            await until(lambda: phase(controller, "unlucky") == phase(controller, "unluckier") == "running")
            assert phase(controller, "before") == "running"
            broken.clear()
            await controller.submit([task("lucky")], user=ANN)
            await until(lambda: controller.health.status == "ready" and phase(controller, "lucky") == "running")

    asyncio.run(story())


# --- the disk ---------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_refuses_what_is_new_shows_what_is_known_and_comes_back():
    async def story():
        clock = ManualClock()
        store = MemoryStore()
        cluster = fake_cluster(clock=clock, short=Script(runs_for_s=5.0))
        async with controlling(cluster, store, clock) as controller:
            await controller.submit([task("short"), task("long")], user=ANN)
            await clock.advance(1.0)
            digest, seq = controller.state.digest(), controller.health.seq
            store.failure = StoreError("the disk is full", code="store_failed")
            with pytest.raises(StoreError) as refused:
                await controller.submit([task("unlucky")], user=ANN)
            assert refused.value.code == "degraded"
            assert refused.value.retry_after_s > 0
            assert controller.health.status == "degraded"
            assert controller.state.digest() == digest  # nothing in memory that is not on disk
            assert phase(controller, "short") == "running"
            await clock.advance(20.0)  # "short" ends meanwhile: seen, and kept for later
            assert controller.health.seq == seq
            with pytest.raises(StoreError):
                await controller.cancel("long", ANN)
            store.failure = None
            await clock.advance(2.0)
            assert controller.health.status == "ready"
            assert phase(controller, "short") == "succeeded"
            assert (await controller.submit([task("lucky")], user=ANN))[0].outcome == "created"
            assert "unlucky" not in controller.state.workloads
            assert cluster.launched.count("llms/long/0/1") == 1

    asyncio.run(story())


# --- the lease --------------------------------------------------------------------------------------------------


def test_a_controller_that_never_lives_to_see_a_snapshot_has_no_more_to_fold_each_time(monkeypatch, caplog):
    """Each maker ends with its controller, so that of a crash loop none got ready: a start folded ever more."""
    monkeypatch.setattr(housekeeping, "SNAPSHOT_EVERY", 10)
    store, folded, restarts = MemoryStore(), [], 30
    fold = recovery.unfold

    async def never(seq, at):
        await asyncio.Event().wait()

    def seen(store, state, seq, stop=None, but=recovery.NOTHING):
        began = seq
        state, seq = fold(store, state, seq, stop, but)
        folded.append(seq - began)
        return state, seq

    async def story():
        cluster = fake_cluster()
        for number in range(restarts):
            with monkeypatch.context() as patch:
                patch.setattr(recovery, "unfold", seen)
                async with controlling(cluster, store, make_snapshot=never) as controller:
                    patch.undo()
                    name = f"w{number}"
                    await controller.submit([task(name)], user=ANN)
                    await until(lambda name=name: name in controller.state.workloads)
                    assert len(controller.state.workloads) == number + 1
        return controller.state.now

    asyncio.run(story())
    assert len(folded) == restarts
    in_a_life = max(later - sooner for sooner, later in pairwise(folded))
    assert max(folded) <= 2 * 10 + in_a_life, folded
    assert caplog.text.count("no snapshot of entry") == 0


def test_a_second_controller_is_refused_while_the_first_lives():
    async def story():
        clock = ManualClock()
        store = MemoryStore()
        async with controlling(fake_cluster(clock=clock), store, clock, owner="elsewhere/boot/1/2"):
            attempt = asyncio.create_task(lease.take(store, clock, "me"))
            await clock.advance(lease.LEASE_S)
            with pytest.raises(StoreError) as refused:
                await attempt
            assert refused.value.code == "already_running"

    asyncio.run(story())


def test_a_lease_that_is_not_renewed_is_over_after_its_time_and_not_before():
    async def story():
        clock = ManualClock()
        store = MemoryStore()
        store.take_over("elsewhere/boot/1/2", store.lease())
        attempt = asyncio.create_task(lease.take(store, clock, "me"))
        await clock.advance(lease.LEASE_S - 1.0)
        assert not attempt.done()
        await clock.advance(2.0)
        assert await attempt == 2

    asyncio.run(story())


def test_the_lease_of_a_process_that_is_gone_is_taken_at_once(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 10 * PATIENCE_S)
    host, boot, _, _ = lease.this_process().split("/")
    assert lease.is_dead(f"{host}/{boot}/999999999/1")
    assert lease.is_dead(f"{host}/an-earlier-boot/1/1")
    assert not lease.is_dead(lease.this_process())
    assert not lease.is_dead(f"another-host/{boot}/999999999/1")

    async def story():
        store = MemoryStore()
        store.take_over(f"{host}/{boot}/999999999/1", store.lease())
        assert await asyncio.wait_for(lease.take(store, RealClock(), "me"), PATIENCE_S) == 2

    asyncio.run(story())


def test_a_controller_that_was_overtaken_stops_and_sends_nothing_more(tmp_path):
    async def story():
        cluster = fake_cluster()
        path = tmp_path / "state.sqlite"
        old = Controller(SqliteStore(path), FakeExecutor(cluster=cluster), storage="/storage")
        running = asyncio.create_task(old.run())
        await until(lambda: len(old.state.nodes) == 2 and old.metrics().count("llmsched_turn_seconds_count 0") == 0)
        other = SqliteStore(path)
        other.open()
        while other.lease().owner != "other":
            with suppress(StaleEpoch):  # the first may be renewing at this very moment
                other.take_over("other", other.lease())
        with pytest.raises(StoreError):
            await old.submit([task("late")], user=ANN)
        with pytest.raises(StaleEpoch):
            await running
        assert cluster.launched == []
        assert [type(written.entry).__name__ for written in other.read() if "Submitted" in repr(written)] == []
        other.close()

    asyncio.run(story())
