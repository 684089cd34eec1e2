"""Results of trainings: versions, what they are of, and the endpoints that serve, change or keep them."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, kinds, phase, serve, task, train, until

from llmsched.api.event_text import describe
from llmsched.control import registry
from llmsched.core.facts import Archived, Published
from llmsched.core.render import text
from llmsched.errors import RequestError
from llmsched.spec import cluster as cluster_file
from llmsched.spec.load import load_json
from llmsched.store.tables import ArchiveQuery

QUICK = Script(runs_for_s=0.01, steps=1, metrics={"eval.loss": 0.5})
TINY = "package:models/tiny"
BASE = {
    "loop": None, "base_model": TINY, "datasets": [{"path": "/data/a.jsonl"}], "evaluation": {"fraction": 0.1},
}  # fmt: skip


def source_of(cluster, name):
    order = cluster.attempts[name].order
    source = order.spec["serve"]["model"]["source"]
    return order.inputs.get(source, source)


async def succeed(controller, spec, workload, *, again=False):
    await controller.submit([spec], user=ANN, again=again)
    await until(lambda: phase(controller, workload) == "succeeded")


def base_train(name, **more):
    return train(name, train=BASE, **more)


def test_every_run_that_succeeds_is_a_version_with_what_it_is_of():
    async def story():
        cluster = fake_cluster(prepare=QUICK, tune=QUICK, other=Script(runs_for_s=0.01, outcome="failed"))
        async with controlling(cluster) as controller:
            await succeed(controller, task("prepare"), "prepare")
            await succeed(controller, base_train("tune", after=["prepare"]), "tune")
            await succeed(controller, base_train("tune", after=["prepare"]), "tune@2", again=True)
            await controller.submit([train("other", retry={"on_events": []})], user=ANN)
            await until(lambda: phase(controller, "other") == "failed")
            newest, first = registry.versions(controller.state)
            assert (newest.source, newest.workload) == ("model://tune@2", "tune@2")
            assert (first.version, first.metrics, first.user) == (1, {"eval.loss": 0.5}, ANN)
            assert (first.base_model, first.data) == ("package:models/tiny", ["/data/a.jsonl"])
            assert first.made_from == ["prepare"] and first.artifact.startswith("/storage/tune/0/artifact/")
            assert first.spec_sha256 == newest.spec_sha256

    asyncio.run(story())


def test_an_app_whose_model_is_not_there_yet_waits_and_says_for_which_training():
    async def story():
        cluster = fake_cluster(demand=Script(runs_for_s=0.2))
        async with controlling(cluster) as controller:
            named = {"name": "use", "kind": "serve", "replicas": 1, "resources": {"cpus": 1}}
            app = {"app": "workloads.apps.forecaster:Forecaster", "args": {"model": "run://demand"}}
            await controller.submit([load_json(named | {"serve": app}), train("demand")], user=ANN)
            await until(lambda: phase(controller, "demand") == "running")
            waits = controller.state.gangs["use/0"].reason
            assert text(waits.message) == "waits for demand to succeed" and phase(controller, "use") == "waiting"
            await until(lambda: phase(controller, "use") == "running")
            order = cluster.attempts["llms/use/0/1"].order
            assert order.inputs == {"run://demand": controller.state.workloads["demand"].artifact}

    asyncio.run(story())


def test_a_registered_model_is_served_at_once_and_one_that_is_not_is_refused():
    async def story():
        cluster = fake_cluster(tune=QUICK, more=QUICK)
        async with controlling(cluster) as controller:
            for source in ("model://tune", "model://tune@1"):
                with pytest.raises(RequestError) as caught:
                    await controller.submit([serve("chat", source)], user=ANN)
                assert caught.value.code == "unknown_model"
            await succeed(controller, base_train("tune"), "tune")
            with pytest.raises(RequestError, match="has no version 3; it has: 1"):
                await controller.submit([serve("chat", "model://tune@3")], user=ANN)
            await controller.submit([serve("chat", "model://tune@1")], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            assert source_of(cluster, "llms/chat/0/1") == registry.versions(controller.state)[0].artifact
            retrain = {**BASE, "base_model": "model://tune"}
            await succeed(controller, train("more", train=retrain), "more")
            (more, _) = registry.versions(controller.state)
            assert (more.name, more.made_from) == ("more", ["tune"])

    asyncio.run(story())


def test_all_replicas_keep_the_run_they_were_applied_with_until_the_file_is_applied_again():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            chat = serve("chat", "run://tune", replicas="1..2", autoscaling={"upscale_delay_s": 600})
            await controller.submit([base_train("tune"), chat], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            await succeed(controller, base_train("tune"), "tune@2", again=True)
            await controller.scale("chat", 2, ANN)
            await until(lambda: len(cluster.running()) == 2)
            assert {source_of(cluster, name) for name in cluster.running()} == {source_of(cluster, "llms/chat/0/1")}
            (planned,) = await controller.plan([chat], user=ANN)
            assert (planned.outcome, planned.diff) == ("changed", ["reads: tune -> tune@2"])
            (applied,) = await controller.submit([chat], user=ANN)
            assert applied.outcome == "changed"
            newest = registry.versions(controller.state)[0].artifact
            await until(lambda: {source_of(cluster, name) for name in cluster.running()} == {newest})
            assert [one.outcome for one in await controller.submit([chat], user=ANN)] == ["unchanged"]

    asyncio.run(story())


def test_again_runs_what_ends_once_more_and_rolls_the_endpoint_of_the_file_without_a_second_one():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            file = [base_train("tune"), serve("chat", "run://tune")]
            await controller.submit(file, user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            first, second = await controller.submit(file, user=ANN, again=True)
            assert (first.id, first.outcome) == ("tune@2", "created")
            assert (second.id, second.outcome) == ("chat", "changed")
            await until(lambda: cluster.running() == ["llms/chat/1/1"])
            assert source_of(cluster, "llms/chat/1/1") == registry.versions(controller.state)[0].artifact
            await controller.cancel("chat", ANN)
            await until(lambda: phase(controller, "chat") == "cancelled")
            (_, anew) = await controller.submit(file, user=ANN, again=True)
            assert (anew.id, anew.outcome) == ("chat@2", "created")

    asyncio.run(story())


def test_a_retraining_that_fails_leaves_the_endpoint_as_it_is():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            tune, chat = base_train("tune", retry={"on_events": []}), serve("chat", "run://tune")
            await controller.submit([tune, chat], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            script = cluster.script
            cluster.script = lambda order: Script(runs_for_s=0.01, outcome="failed")
            await controller.submit([tune], user=ANN, again=True)
            await until(lambda: phase(controller, "tune@2") == "failed")
            cluster.script = script
            assert [one.outcome for one in await controller.submit([tune, chat], user=ANN)] == ["unchanged"] * 2
            assert cluster.running() == ["llms/chat/0/1"]

    asyncio.run(story())


def test_a_published_model_takes_over_the_endpoint_replica_by_replica_when_its_condition_holds():
    async def story():
        cluster = fake_cluster(good=QUICK, bad=QUICK)
        async with controlling(cluster) as controller:
            await controller.submit([serve("chat", replicas=2)], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            publish = {"to": "chat", "as": "model"}
            await succeed(controller, base_train("bad", publish=publish | {"when": "eval.loss < 0.1"}), "bad")
            assert "eval.loss < 0.1 is not met" in text(controller.state.workloads["bad"].message)
            assert cluster.running() == ["llms/chat/0/1", "llms/chat/1/1"]
            await succeed(controller, base_train("good", publish=publish | {"when": "eval.loss < 1"}), "good")
            await until(lambda: cluster.running() == ["llms/chat/2/1", "llms/chat/3/1"])
            (good,) = registry.versions(controller.state, ArchiveQuery(10, name="good"))
            assert {source_of(cluster, name) for name in cluster.running()} == {good.artifact}
            assert [(one.to, one.kind) for one in good.published] == [("chat", "model")]
            first_drain, last_start = (
                next(w.seq for w in controller.entries(0, "chat") if match(w.entry))
                for match in (lambda e: type(e).__name__ == "Drain", lambda e: getattr(e, "gang", "") == "chat/2")
            )
            assert last_start < first_drain  # the new one came before an old one left

    asyncio.run(story())


def test_a_published_model_stays_through_other_changes_until_the_spec_names_another():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            await controller.submit([serve("chat")], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            await succeed(controller, base_train("tune", publish={"to": "chat", "as": "model"}), "tune")
            await until(lambda: cluster.running() == ["llms/chat/1/1"])
            published = source_of(cluster, "llms/chat/1/1")
            await controller.submit([serve("chat", priority=60)], user=ANN)
            await until(lambda: cluster.running() == ["llms/chat/2/1"])
            assert source_of(cluster, "llms/chat/2/1") == published
            await controller.submit([serve("chat", source="package:models/larger", priority=60)], user=ANN)
            await until(lambda: cluster.running() == ["llms/chat/3/1"])
            assert source_of(cluster, "llms/chat/3/1") == "package:models/larger"
            assert kinds(controller, "chat").count("Published") == 1

    asyncio.run(story())


@pytest.mark.parametrize("endpoint_is_first", [True, False])
def test_what_another_publishes_under_its_name_does_not_reach_an_endpoint(endpoint_is_first):
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            if endpoint_is_first:
                await controller.submit([serve("chat", TINY)], user="bob")
            await succeed(controller, base_train("tune", publish={"to": "chat", "as": "model"}), "tune")
            if not endpoint_is_first:
                await controller.submit([serve("chat", TINY)], user="bob")
            await until(lambda: phase(controller, "chat") == "running")
            assert source_of(cluster, "llms/chat/0/1") == TINY
            assert "Drain" not in kinds(controller)
            assert controller.state.workloads["tune"].message is None  # that it is there is told to who may see it
            assert kinds(controller, "tune").count("Published") == 1

    asyncio.run(story())


def test_what_no_endpoint_takes_is_told_as_kept_and_goes_live_in_the_one_that_comes():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            await succeed(controller, base_train("tune", publish={"to": "chat", "as": "model"}), "tune")
            told = [text(event.message) for w in controller.entries() if (event := describe(w.entry)).message]
            assert [one for one in told if "kept" in one or "published" in one] == [
                'its model tune is kept for an endpoint "chat", which is not there'
            ]
            assert registry.find(controller.state, "tune").artifact
            assert [one.published for one in registry.versions(controller.state)] == [[]]
            controller.state.apply(Archived(controller.state.now, ("tune",)))  # a while later
            await controller.submit([serve("chat", TINY)], user=ANN)
            await until(lambda: "llms/chat/0/1" in cluster.attempts)
            assert source_of(cluster, "llms/chat/0/1").startswith("/storage/tune/0/artifact/")

    asyncio.run(story())


def test_an_endpoint_that_has_ended_takes_nothing_and_the_story_says_where_the_result_is():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            await controller.submit([serve("chat", TINY)], user=ANN)
            await controller.cancel("chat", by=ANN)
            await until(lambda: controller.state.workloads["chat"].outcome)
            await succeed(controller, base_train("tune", publish={"to": "chat", "as": "model"}), "tune")
            said = text(controller.state.workloads["tune"].message)
            assert said == "not published: the endpoint chat has ended; it is kept as tune@1"

    asyncio.run(story())


def test_a_result_that_is_named_where_nobody_looks_is_for_who_may_see_it():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            await succeed(controller, base_train("tune"), "tune")
            reads = task("reads", envs={"MODEL": "run://tune"}, retry={"on_events": []})
            await controller.submit([reads], user=ANN)
            await until(lambda: phase(controller, "reads") == "running")
            others = task("others", envs={"MODEL": "run://tune"}, retry={"on_events": []})
            await controller.submit([others], user="bob")
            await until(lambda: phase(controller, "others") == "failed")
            assert "run://tune has no result" in text(controller.state.workloads["others"].message)

    asyncio.run(story())


def test_an_admin_of_its_queue_publishes_into_an_endpoint():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            lab = "queues:\n- {name: lab, roles: {submitter: [bob], admin: [ann]}}\n- {name: default}\n"
            await controller.configure(cluster_file.load(lab), ANN)
            await controller.submit([serve("chat", TINY, queue="lab")], user="bob")
            await succeed(controller, base_train("tune", publish={"to": "chat", "as": "model"}), "tune")
            await until(lambda: "llms/chat/1/1" in cluster.attempts)
            assert source_of(cluster, "llms/chat/1/1").startswith("/storage/tune/0/artifact/")

    asyncio.run(story())


def test_a_model_is_not_published_into_an_app():
    async def story():
        cluster = fake_cluster(tune=QUICK)
        async with controlling(cluster) as controller:
            app = serve("desk").model_dump(mode="json")
            app["serve"] = {"app": "desk.app:Desk"}
            from llmsched.spec.load import load_json

            await controller.submit([load_json(app)], user=ANN)
            await succeed(controller, base_train("tune", publish={"to": "desk", "as": "model"}), "tune")
            assert "desk serves no model" in text(controller.state.workloads["tune"].message)
            assert not [w for w in controller.entries() if isinstance(w.entry, Published)]

    asyncio.run(story())


def test_work_that_has_begun_takes_another_size_but_does_not_become_other_work():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([train("tune")], user=ANN)
            await until(lambda: phase(controller, "tune") == "running")
            other = train("tune", train={"config": {"lr": 0.2}})
            with pytest.raises(RequestError) as caught:
                await controller.submit([other], user=ANN)
            assert caught.value.code == "conflict" and "llmsched apply --again" in str(caught.value)
            assert (await controller.plan([other], user=ANN))[0].outcome == "refused"
            (applied,) = await controller.submit([train("tune", workers=2)], user=ANN)
            assert applied.diff == ["workers: 1 -> 2"]
            await until(lambda: cluster.running() == ["llms/tune/0/2"])
            assert len(cluster.attempts["llms/tune/0/2"].order.members) == 2

    asyncio.run(story())


def test_work_that_waits_may_become_other_work():
    async def story():
        async with controlling(fake_cluster(first=Script(runs_for_s=None), tune=QUICK)) as controller:
            await controller.submit([task("first", 2, workers=2)], user=ANN)
            await until(lambda: phase(controller, "first") == "running")
            await controller.submit([train("tune")], user=ANN)
            (applied,) = await controller.submit([train("tune", train={"config": {"lr": 0.2}})], user=ANN)
            assert applied.outcome == "changed"
            await controller.cancel("first", ANN)
            await until(lambda: phase(controller, "tune") == "succeeded")

    asyncio.run(story())


@pytest.mark.parametrize(("max_surge", "most"), [(0, 2), (1, 3), (2, 4)])
def test_a_rollout_keeps_to_its_surge_and_without_one_needs_no_room(max_surge, most):
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            rollout = {"replicas": 2, "rollout": {"max_surge": max_surge}}
            gpus = 2 if max_surge == 0 else 1  # with two GPUs each, the two replicas fill both nodes
            await controller.submit([serve("chat", gpus=gpus, **rollout)], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            held = []
            watched = cluster.launch
            cluster.launch = lambda order: (watched(order), held.append(len(cluster.running()) + 1))
            await controller.submit([serve("chat", source="package:models/larger", gpus=gpus, **rollout)], user=ANN)
            await until(lambda: cluster.running() == ["llms/chat/2/1", "llms/chat/3/1"])
            assert max(held) <= most

    asyncio.run(story())


def test_a_new_version_that_fails_ends_a_rollout_before_the_last_old_replica_leaves():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            rollout = {"replicas": 2, "rollout": {"max_surge": 0}, "retry": {"on_events": []}}
            await controller.submit([serve("chat", **rollout)], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            cluster.script = lambda order: Script(not_started="error", message="does not load")
            await controller.submit([serve("chat", source="package:models/broken", **rollout)], user=ANN)
            await until(lambda: controller.state.gangs.get("chat/2") and controller.state.gangs["chat/2"].is_ended())
            await controller.submit([task("later", 0.5)], user=ANN)  # a round later nothing more has left
            await until(lambda: "later" in controller.state.workloads)
            assert len(cluster.running()) == 1

    asyncio.run(story())


def test_a_lost_replica_comes_back_as_the_version_that_answers_while_a_rollout_is_held_and_status_says_so():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.submit([serve("chat", "package:models/good", replicas=2)], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            good = cluster.script

            def script(order):
                is_broken = order.spec["serve"]["model"]["source"].endswith("broken")
                return Script(not_started="input", message="no such model") if is_broken else good(order)

            cluster.script = script
            await controller.submit([serve("chat", "package:models/broken", replicas=2)], user=ANN)
            held = "the rollout is held, replicas of the version before go on: the new one failed: no such model"
            await until(lambda: text(controller.state.workloads["chat"].message) == held)
            cluster.kill("llms/chat/1/1")
            await until(lambda: cluster.running() == ["llms/chat/0/1", "llms/chat/1/2"])
            assert cluster.attempts["llms/chat/1/2"].order.spec["serve"]["model"]["source"] == "package:models/good"
            assert text(controller.state.workloads["chat"].message) == held

            await controller.submit([serve("chat", "package:models/better", replicas=2)], user=ANN)
            await until(lambda: cluster.running() == ["llms/chat/3/1", "llms/chat/4/1"])
            assert text(controller.state.workloads["chat"].message) == ""

    asyncio.run(story())


def lora(to, **more):
    section = {"base_model": TINY, "task": "causal-lm", "method": "lora", "datasets": [{"path": "rows.jsonl"}]}
    body = {"name": "tuned", "kind": "train", "resources": {"accelerators": ["A100:1"]}}
    return load_json(body | {"train": section | more, "publish": {"to": to}})


@pytest.mark.parametrize(
    ("others", "more", "said"),
    [
        ([], {}, 'publish.to: "chat" is no endpoint of yours yet'),
        ([task("chat")], {}, "is a task workload, not an endpoint"),
        ([serve("chat", source="package:models/other")], {}, "they may not fit together"),
        ([serve("chat", TINY)], {}, None),
    ],
)
def test_plan_warns_of_a_publish_that_would_not_go_live_and_refuses_nothing(others, more, said):
    async def story():
        async with controlling() as controller:
            for specs in ([*others, lora("chat", **more)], [lora("chat", **more)]):  # in one file, and on its own
                planned = (await controller.plan(specs, ANN))[-1]
                about = [one for one in planned.warnings if "publish" in one or "adapter" in one]
                assert planned.outcome == "created"
                assert [said in one for one in about] == [True] * (said is not None)
                if others:
                    await controller.submit(others, user=ANN)

    asyncio.run(story())
