"""What a user of the controller can count on, shown on a fake cluster."""

from __future__ import annotations

import asyncio
import json

import pytest
from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, kinds, phase, serve, task, train, until
from waiting import PATIENCE_S

from llmsched.control.execution import Command
from llmsched.control.recovery import fold
from llmsched.control.vault import Vault
from llmsched.core.facts import CommandBegun, Published
from llmsched.core.render import text
from llmsched.errors import RequestError, SpecError
from llmsched.executors.fake import NodeKind
from llmsched.executors.port import Ended, EndpointSeen, LaunchAsked
from llmsched.spec import cluster as cluster_spec
from llmsched.store.memory import MemoryStore
from llmsched.store.sqlite import SqliteStore
from llmsched.store.tables import ProgressRow


def replicas(cluster, model="qwen"):
    """The replicas the gateway was last told of."""
    found = cluster.routes.models.get(model) if cluster.routes else None
    return [replica["app"] for replica in found["replicas"]] if found else []


QUICK = Script(runs_for_s=0.02, steps=2, metrics={"eval.loss": 0.5})


def test_a_task_runs_on_the_nodes_the_core_chose_and_succeeds():
    async def story():
        cluster = fake_cluster(hello=QUICK)
        async with controlling(cluster) as controller:
            (applied,) = await controller.submit([task("hello")], user=ANN)
            assert (applied.id, applied.outcome) == ("hello", "created")
            await until(lambda: phase(controller, "hello") == "succeeded")
            assert kinds(controller, "hello") == ["Submitted", "Launch", "Bound", "Finished"]
            assert cluster.launched == ["llms/hello/0/1"]
            order = cluster.attempts["llms/hello/0/1"].order
            assert order.spec["task"]["run"] == ["true"]
            assert [(member.rank, member.gpus, member.flavor) for member in order.members] == [(0, 1.0, "A100")]
            assert controller.state.workloads["hello"].artifact.startswith("/storage/hello/0/artifact/")
            assert controller.progress["hello/0"]["step"] == 2

    asyncio.run(story())


def test_equals_of_one_file_start_in_its_order():
    async def story():
        cluster = fake_cluster(nodes=(NodeKind(1, "A100"),), zebra=QUICK, ant=QUICK)
        async with controlling(cluster) as controller:
            await controller.submit([task("zebra"), task("ant")], user=ANN)
            await until(lambda: phase(controller, "ant") == "succeeded")
            assert cluster.launched == ["llms/zebra/0/1", "llms/ant/0/1"]

    asyncio.run(story())


def test_the_same_spec_again_is_a_no_op_and_again_makes_the_next_run():
    async def story():
        async with controlling(fake_cluster(hello=QUICK)) as controller:
            await controller.submit([task("hello")], user=ANN)
            (same,) = await controller.submit([task("hello")], user="bob", role="operator")
            assert same.outcome == "unchanged"
            await until(lambda: phase(controller, "hello") == "succeeded")
            (second,) = await controller.submit([task("hello")], user=ANN, again=True)
            assert (second.id, second.run, second.outcome) == ("hello@2", 2, "created")
            (changed,) = await controller.submit([task("hello", priority=60)], user=ANN)
            assert (changed.id, changed.outcome) == ("hello@2", "changed")
            assert changed.diff == ["priority: 50 -> 60"]

    asyncio.run(story())


def test_what_has_ended_is_not_changed():
    async def story():
        async with controlling(fake_cluster(hello=QUICK)) as controller:
            await controller.submit([task("hello")], user=ANN)
            await until(lambda: phase(controller, "hello") == "succeeded")
            with pytest.raises(RequestError, match="--again") as refused:
                await controller.submit([task("hello", priority=60)], user=ANN)
            assert (refused.value.code, refused.value.http_status) == ("ended", 409)

    asyncio.run(story())


def test_a_file_is_taken_whole_or_not_at_all():
    async def story():
        async with controlling() as controller:
            before = controller.state.digest()
            with pytest.raises(RequestError, match="no queue"):
                await controller.submit([task("one"), task("two", queue="nowhere")], user=ANN)
            assert list(controller.state.workloads) == []
            assert kinds(controller) == []
            assert controller.state.digest() == before

    asyncio.run(story())


def test_the_order_of_workloads_in_a_file_does_not_matter():
    async def story():
        cluster = fake_cluster(make=QUICK)
        async with controlling(cluster) as controller:
            applied = await controller.submit([serve("use", source="run://make"), train("make")], user=ANN)
            assert [each.id for each in applied] == ["use", "make"]
            await until(lambda: phase(controller, "use") == "running")
            order = cluster.attempts["llms/use/0/1"].order
            assert order.inputs == {"run://make": controller.state.workloads["make"].artifact}

    asyncio.run(story())


def test_what_waits_for_itself_is_refused():
    async def story():
        async with controlling() as controller:
            with pytest.raises(SpecError) as refused:
                await controller.submit([task("a", after=["b"]), task("b", after=["a"])], user=ANN)
            assert refused.value.code == "cycle"
            assert controller.state.workloads == {}

    asyncio.run(story())


def test_two_submissions_of_one_name_at_once_make_one_workload():
    async def story():
        async with controlling() as controller:
            answers = await asyncio.gather(
                controller.submit([task("same")], user=ANN), controller.submit([task("same")], user=ANN)
            )
            assert sorted(answer[0].outcome for answer in answers) == ["created", "unchanged"]
            assert kinds(controller, "same").count("Submitted") == 1

    asyncio.run(story())


def test_the_same_key_and_body_are_answered_again_and_another_body_is_a_conflict():
    async def story():
        async with controlling() as controller:
            first = await controller.submit([task("a")], user=ANN, idempotency_key="k")
            again = await controller.submit([task("a")], user=ANN, idempotency_key="k")
            assert again == first
            with pytest.raises(RequestError) as refused:
                await controller.submit([task("b")], user=ANN, idempotency_key="k")
            assert (refused.value.code, refused.value.http_status) == ("idempotency", 409)
            (other,) = await controller.submit([task("b")], user="bob", idempotency_key="k")
            assert other.outcome == "created"

    asyncio.run(story())


def test_the_same_key_twice_at_once_submits_once():
    async def story():
        async with controlling() as controller:
            one, two = await asyncio.gather(
                controller.submit([task("a")], user=ANN, again=True, idempotency_key="k"),
                controller.submit([task("a")], user=ANN, again=True, idempotency_key="k"),
            )
            assert one == two
            assert list(controller.state.workloads) == ["a"]

    asyncio.run(story())


def test_a_hundred_submissions_at_once_are_all_kept():
    async def story():
        async with controlling() as controller:
            await asyncio.gather(*(controller.submit([task(f"t{n}")], user=ANN) for n in range(100)))
            assert len(controller.state.workloads) == 100

    asyncio.run(story())


def test_what_waits_says_why_and_starts_when_there_is_room():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([train("first", gpus=2, workers=2)], user=ANN)
            await controller.submit([task("second", gpus=2)], user=ANN)
            await until(lambda: phase(controller, "first") == "running")
            gang = controller.state.gangs["second/0"]
            assert gang.reason.code == "nodes"
            await controller.cancel("first", ANN)
            await until(lambda: phase(controller, "second") == "running")
            assert phase(controller, "first") == "cancelled"
            assert [order.mode for order in cluster.stopped] == ["stop"]
            assert controller.state.gangs["second/0"].reason is None

    asyncio.run(story())


def test_a_failed_attempt_is_tried_again_after_a_pause():
    async def story():
        clock = ManualClock()
        outcomes = [Script(runs_for_s=1.0, outcome="failed", message="boom"), Script(runs_for_s=1.0)]
        cluster = fake_cluster(clock=clock)
        cluster.script = lambda order: outcomes[order.attempt - 1]
        async with controlling(cluster, clock=clock) as controller:
            await controller.submit([task("shaky")], user=ANN)
            for _ in range(10):
                await clock.advance(1.0)
            assert phase(controller, "shaky") == "succeeded"
            assert cluster.launched == ["llms/shaky/0/1", "llms/shaky/0/2"]

    asyncio.run(story())


def test_a_lost_node_sends_its_work_elsewhere():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("tough", gpus=2)], user=ANN)
            await until(lambda: phase(controller, "tough") == "running")
            (member,) = cluster.attempts["llms/tough/0/1"].order.members
            cluster.lose_node(member.node)
            await until(lambda: cluster.running() == ["llms/tough/0/2"])
            await until(lambda: phase(controller, "tough") == "running")

    asyncio.run(story())


def test_an_adapter_is_published_into_the_running_endpoint_when_its_condition_holds():
    async def story():
        cluster = fake_cluster(good=QUICK, bad=QUICK)
        async with controlling(cluster) as controller:
            await controller.submit([serve("qwen")], user=ANN)
            await until(lambda: phase(controller, "qwen") == "running")
            publish = {"to": "qwen", "as": "adapter", "name": "sql"}
            await controller.submit(
                [
                    train("good", publish=publish | {"when": "eval.loss < 1.2"}),
                    train("bad", publish=publish | {"name": "worse", "when": "eval.loss > 1.2"}),
                ],
                user=ANN,
            )
            await until(lambda: cluster.adapters and phase(controller, "bad") == "succeeded")
            uri = controller.state.workloads["good"].artifact
            assert [(order.gang, order.name, order.uri) for order in cluster.adapters] == [("qwen/0", "sql", uri)]
            await until(lambda: cluster.routes.models["qwen"]["adapters"] == {"sql": uri})
            published = [w.entry for w in controller.entries() if isinstance(w.entry, Published)]
            assert [(one.target, one.name, one.origin) for one in published] == [("qwen", "sql", "good")]
            assert "eval.loss > 1.2 is not met" in text(controller.state.workloads["bad"].message)

    asyncio.run(story())


def test_the_gateway_hears_of_replicas_when_they_answer_and_when_they_go():
    async def story():
        cluster = fake_cluster()
        keys = [{"id": "k1", "sha256": "ab", "user": ANN, "role": "submitter"}]
        async with controlling(cluster, keys=lambda: keys) as controller:
            await controller.submit([serve("qwen", replicas="1..3")], user=ANN)
            await until(lambda: replicas(cluster) == ["llms/qwen/0/1"])
            assert cluster.routes.keys == [
                {"id": "k1", "sha256": "ab", "models": ["qwen"], "expires": None, "user": ANN}
            ]
            assert cluster.routes.models["qwen"]["routing"] == "power-of-two"
            first = cluster.routes.version
            await controller.scale("qwen", 2, ANN)
            await until(lambda: len(replicas(cluster)) == 2)
            assert cluster.routes.version > first
            await controller.cancel("qwen", ANN)
            await until(lambda: cluster.routes.models == {})
            assert {order.mode for order in cluster.stopped} <= {"drain", "stop"}

    asyncio.run(story())


def test_an_endpoint_whose_gateway_does_not_answer_is_no_secret():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            cluster.say(EndpointSeen("the gateway does not answer"))
            await until(lambda: controller.health.message == "the gateway does not answer")
            assert controller.health.status == "ready"  # of everything else
            cluster.say(EndpointSeen(""))
            await until(lambda: controller.health.message == "")
            cluster.say(EndpointSeen("the gateway does not answer"))
            await until(lambda: controller.health.message == "the gateway does not answer")
            cluster.lose_contact("the bridge ended")
            cluster.regain_contact()
            await until(lambda: controller.health.status == "ready" and controller.health.message == "")

    asyncio.run(story())


def test_numbers_that_are_no_numbers_do_not_reach_the_journal():
    async def story():
        cluster = fake_cluster(odd=Script(runs_for_s=0.01, steps=1, metrics={"loss": float("nan"), "acc": 0.5}))
        async with controlling(cluster) as controller:
            await controller.submit([task("odd")], user=ANN)
            await until(lambda: phase(controller, "odd") == "succeeded")
            assert controller.state.workloads["odd"].metrics == {"acc": 0.5}

    asyncio.run(story())


def test_secret_values_reach_the_attempt_and_nothing_else(tmp_path):
    async def story():
        store = SqliteStore(tmp_path / "state.sqlite")
        cluster = fake_cluster()
        vault = Vault(store, tmp_path / "elsewhere" / "secret-key", lambda: 1.0)
        async with controlling(cluster, store, vault=vault) as controller:
            await vault.put(ANN, "HF_TOKEN", "hunter2-canary", by=ANN)
            await controller.submit([task("hush", envs={"MODE": "quiet"}, secrets=["HF_TOKEN"])], user=ANN)
            await until(lambda: phase(controller, "hush") == "running")
            assert cluster.attempts["llms/hush/0/1"].order.envs == {"MODE": "quiet", "HF_TOKEN": "hunter2-canary"}
            async for _ in (
                await controller.execute(Command("hush", ("echo", "-H", "Bearer hunter2-canary"), by=ANN))
            ).said:
                pass
            (told,) = [w.entry.words for w in controller.entries() if isinstance(w.entry, CommandBegun)]
            assert told == "echo -H 'Bearer ***'"
        for file in tmp_path.glob("state*"):
            assert b"hunter2-canary" not in file.read_bytes()

    asyncio.run(story())


def test_a_source_without_a_result_fails_the_launch_and_says_so():
    async def story():
        cluster = fake_cluster(make=Script(runs_for_s=0.01, steps=1))
        async with controlling(cluster) as controller:
            await controller.submit([train("make")], user=ANN)
            await until(lambda: phase(controller, "make") == "succeeded")
            controller.state.workloads["make"].artifact = None
            await controller.submit([serve("use", source="run://make")], user=ANN)
            await until(lambda: phase(controller, "use") == "failed")  # at once: another try cannot find more
            said = text(controller.state.gangs["use/0"].message)
            assert "run://make has no result: make succeeded but saved no artifact. Its loop must call" in said
            assert "attempts" not in said and "llms/use/0/1" not in cluster.launched

    asyncio.run(story())


def test_what_ends_well_while_it_is_cancelled_is_told_as_cancelled_and_nothing_comes_after_it():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([train("first"), task("second", after=["first"])], user=ANN)
            await until(lambda: phase(controller, "first") == "running")
            attempt = cluster.attempts["llms/first/0/1"]
            attempt.ended = Ended("first/0", 1, "succeeded", artifact="/storage/half")  # as it says when told to stop
            await controller.cancel("first", ANN)
            await until(lambda: phase(controller, "first") == "cancelled")
            assert "Finished" not in kinds(controller)
            assert controller.state.workloads["first"].artifact is None
            assert phase(controller, "second") != "running"

    asyncio.run(story())


def test_a_plan_says_what_would_start_and_what_would_be_refused():
    async def story():
        async with controlling() as controller:
            before = controller.state.digest()
            fits, waits, never = await controller.plan(
                [task("fits"), train("waits", gpus=2, workers=2), task("never", queue="nowhere")], user=ANN
            )
            assert (fits.outcome, fits.starts_now, fits.at_min.gpus) == ("created", True, 1.0)
            assert [place.bundles for place in fits.placement] == [1]
            assert (waits.starts_now, waits.at_max.gpus, waits.reason.code) == (False, 4.0, "nodes")
            assert (never.outcome, never.reason.code) == ("refused", "unknown_queue")
            assert controller.state.digest() == before
            assert kinds(controller) == []

    asyncio.run(story())


def test_a_new_configuration_is_used_at_once():
    async def story():
        async with controlling() as controller:
            text = "queues: [{name: lab, quota: {A100: {nominal: 1, borrowing_limit: 0}}}]"
            await controller.configure(cluster_spec.load(text), ANN)
            await controller.submit([task("one", queue="lab"), task("two", queue="lab")], user=ANN)
            await until(lambda: phase(controller, "one") == "running")
            assert controller.state.gangs["two/0"].reason.code == "quota"
            assert controller.state.configuration.version == 1

    asyncio.run(story())


def test_followers_see_every_entry_once_and_in_order():
    async def story():
        async with controlling(fake_cluster(hello=QUICK)) as controller:
            seen = []

            async def watch():
                async for written in controller.follow(0):
                    seen.append(written)

            watcher = asyncio.create_task(watch())
            await controller.submit([task("hello")], user=ANN)
            await until(lambda: phase(controller, "hello") == "succeeded")
            await until(lambda: len(seen) == controller.health.seq)
            assert [written.seq for written in seen] == list(range(1, len(seen) + 1))
            assert seen == controller.entries()
        await asyncio.wait_for(watcher, PATIENCE_S)  # it ends with the controller

    asyncio.run(story())


def test_the_last_numbers_of_a_gang_are_kept_beside_the_journal(tmp_path):
    async def story():
        store = SqliteStore(tmp_path / "state.sqlite")
        async with controlling(fake_cluster(hello=QUICK), store) as controller:
            await controller.submit([task("hello")], user=ANN)
            await until(lambda: phase(controller, "hello") == "succeeded")
            await until(lambda: (row := store.row(ProgressRow, "hello/0")) and json.loads(row.data)["step"] >= 1)

    asyncio.run(story())


def test_replaying_the_journal_gives_the_state_there_is(tmp_path):
    async def story():
        store = SqliteStore(tmp_path / "state.sqlite")
        cluster = fake_cluster(a=QUICK, b=QUICK, bad=Script(runs_for_s=0.01, outcome="failed", message="no"))
        async with controlling(cluster, store) as controller:
            await controller.submit([task("a"), task("b", gpus=2), serve("s", replicas="1..2")], user=ANN)
            await controller.submit([task("bad", retry={"on_events": []}), train("big", workers=4)], user=ANN)
            await until(lambda: phase(controller, "bad") == "failed" and phase(controller, "b") == "succeeded")
            await controller.cancel("big", ANN)
            await until(lambda: phase(controller, "big") == "cancelled" and phase(controller, "s") == "running")
            replayed, seq = fold(store)
            assert seq == controller.health.seq
            assert replayed.digest() == controller.state.digest()

    asyncio.run(story())


def test_unknown_names_are_not_found():
    async def story():
        async with controlling() as controller:
            with pytest.raises(RequestError) as refused:
                await controller.cancel("nobody", ANN)
            assert refused.value.http_status == 404

    asyncio.run(story())


def test_an_idle_controller_does_nothing_but_renew_its_lease():
    async def story():
        clock = ManualClock()
        store = MemoryStore()
        async with controlling(fake_cluster(clock=clock), store, clock) as controller:
            await clock.advance(1.0)
            before, renewals = controller.health.seq, store.lease().renewals
            await clock.advance(100.0)
            assert controller.health.seq == before
            assert 35 <= store.lease().renewals - renewals <= 41

    asyncio.run(story())


def test_the_loops_own_figures_are_prometheus_text():
    async def story():
        async with controlling(fake_cluster(hello=QUICK)) as controller:
            await controller.submit([task("hello")], user=ANN)
            await until(lambda: phase(controller, "hello") == "succeeded")
            text = controller.metrics()
            assert 'llmsched_decisions_total{kind="Launch"} 1' in text
            assert "llmsched_degraded 0" in text

    asyncio.run(story())


def test_what_a_launch_took_until_the_cluster_was_asked_is_told_to_prometheus():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([task("hello")], user=ANN)
            await until(lambda: cluster.launched == ["llms/hello/0/1"])
            stamp = controller.state.gangs["hello/0"].launched_at
            cluster.say(LaunchAsked("hello/0", 1, stamp + 0.03))
            cluster.say(LaunchAsked("hello/0", 7, stamp + 90))  # of no attempt that is known
            await until(lambda: "llmsched_launch_seconds_count 1" in controller.metrics())
            assert 'llmsched_launch_seconds_bucket{le="0.025"} 0' in controller.metrics()
            assert 'llmsched_launch_seconds_bucket{le="0.05"} 1' in controller.metrics()

    asyncio.run(story())


def test_who_waits_is_told_when_it_probably_starts_and_whose_end_that_is():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            holds = [task(f"holds-{n}", gpus=2, estimated_runtime="1h") for n in range(2)]
            await controller.submit(holds, user=ANN)
            await until(lambda: {phase(controller, one.name) for one in holds} == {"running"})
            await controller.submit([task("later", gpus=2)], user=ANN)
            reason = controller.state.gangs["later/0"].reason
            assert reason.eta is not None and reason.eta_basis is not None

    asyncio.run(story())
