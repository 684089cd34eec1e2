"""Work that asks for work: whose it is, what it may ask for, and that nothing is asked twice or lost."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, kinds, phase, task, train, until

from llmsched.spec import cluster as cluster_spec
from llmsched.spec.load import load_json
from llmsched.store.memory import MemoryStore

NUMBERS = itertools.count()
PARENT = "llms/plan/0/1"


def parent(**more):
    body = {"name": "plan", "kind": "task", "task": {"run": ["true"]}, "queue": "red", "asks": True, "priority": 40}
    return load_json(body | more)


def child(name="a", **more):
    return {"name": name, "kind": "task", "resources": {"accelerators": "A100:1"}, "task": {"run": ["true"]}} | more


async def ask(cluster, name=PARENT, **body):
    """As the work of an attempt does; the answer."""
    id = str(next(NUMBERS))
    cluster.ask(name, id, json.dumps(body))
    await until(lambda: (name, id) in cluster.answers)
    return json.loads(cluster.answers[name, id])


async def begin(controller, **more):
    queues = [{"name": "red", "roles": {"submitter": [ANN]}}, {"name": "default"}]
    await controller.configure(cluster_spec.ClusterSpec.model_validate({"queues": queues}), "op")
    await controller.submit([parent(**more)], user=ANN)
    await until(lambda: phase(controller, "plan") == "running")


def test_a_child_is_of_its_owner_and_queue_is_watched_and_ended_and_goes_with_its_parent():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await begin(controller)
            (told,) = (await ask(cluster, ask="submit", specs=[child()]))["ok"]
            assert (told["name"], told["id"]) == ("a", "plan.a")
            record = controller.state.workloads["plan.a"]
            made = record.workload
            assert (made.user, made.queue, made.priority, made.parent, made.model) == (ANN, "red", 40, "plan", "plan")
            await until(lambda: phase(controller, "plan.a") == "running")
            (seen,) = (await ask(cluster, ask="watch", names=["a", "never"]))["ok"]
            assert seen["phase"] == "running"
            assert (await ask(cluster, ask="end", names=["a"])) == {"ok": None}
            await until(lambda: phase(controller, "plan.a") == "cancelled")
            assert (await ask(cluster, ask="end", names=["a"])) == {"ok": None}, "what has ended stays"
            await ask(cluster, ask="submit", specs=[child("b"), child("c", after=["plan.b"])])
            await controller.cancel("plan", ANN)
            await until(lambda: phase(controller, "plan.b") == phase(controller, "plan.c") == "cancelled")

    asyncio.run(story())


def test_what_is_asked_twice_is_done_once_whoever_restarts_meanwhile():
    async def story():
        store, cluster = MemoryStore(), fake_cluster(plan_a=Script(runs_for_s=0.01, metrics={"loss": 0.5}))
        async with controlling(cluster, store) as controller:
            await begin(controller)
        cluster.ask(PARENT, "mine", json.dumps({"ask": "submit", "specs": [child("b")]}))  # while none runs
        async with controlling(cluster, store) as controller:
            await until(lambda: (PARENT, "mine") in cluster.answers)
            for _ in range(2):
                await ask(cluster, ask="submit", specs=[child("b")])
            assert kinds(controller, "plan.b").count("Submitted") == 1
            await until(lambda: phase(controller, "plan.b") == "running")
            cluster.kill(PARENT)
            await until(lambda: "llms/plan/0/2" in cluster.running())
            again = await ask(cluster, "llms/plan/0/2", ask="submit", specs=[child("b")])
            assert again["ok"][0]["phase"] == "running", "it went on while its parent was away"
            other = await ask(cluster, "llms/plan/0/2", ask="submit", specs=[child("b", priority=3)])
            assert other["error"]["code"] == "conflict"
            assert kinds(controller, "plan.b").count("Submitted") == 1

    asyncio.run(story())


REFUSED = [
    (child(kind="serve", task=None), "invalid_spec", "task"),
    ({"kind": "task"}, "missing_key", '"name" is missing'),
    ("rm -rf", "invalid_spec", "expected a workload's spec"),
    (child(asks=True), "too_deep", "may ask for nothing itself"),
    (child(queue="default"), "beyond_parent", 'expected "red", its parent\'s, got "default"'),
    (child(priority=41), "beyond_parent", "at most its parent's, 40"),
    (child(secrets=["HF_TOKEN"]), "beyond_parent", 'one that its parent has, got "HF_TOKEN"'),
    (child(calls=["qwen"]), "beyond_parent", 'got "qwen"'),
    (child(schedule={"cron": "* * * * *"}), "beyond_parent", '"schedule": expected none'),
    (child(workdir="elsewhere"), "beyond_parent", '"workdir": expected its parent\'s'),
    (child(after=["secret-of-bob"]), "unknown_workload", "secret-of-bob"),
]


def test_what_a_parent_has_not_itself_is_refused_by_name():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await begin(controller)
            await controller.submit([task("secret-of-bob")], user="bob")
            for spec, code, words in REFUSED:
                error = (await ask(cluster, ask="submit", specs=[child("fine"), spec]))["error"]
                assert error["code"] == code and words in error["message"], error
            for body, code in (
                ({"ask": "everything"}, "bad_ask"),
                ({"ask": "submit", "specs": []}, "bad_ask"),
                ({"ask": "watch", "names": "a"}, "bad_ask"),
                ({"ask": "end", "names": ["nobody"]}, "unknown_workload"),
            ):
                assert (await ask(cluster, **body))["error"]["code"] == code
            assert "plan.fine" not in controller.state.workloads, "all of them or none"
            await controller.submit([task("mute")], user=ANN)
            await until(lambda: phase(controller, "mute") == "running")
            error = (await ask(cluster, "llms/mute/0/1", ask="submit", specs=[child()]))["error"]
            assert (error["code"], error["hint"]) == ("no_asks", "Write asks: true in its spec.")

    asyncio.run(story())


def test_each_run_of_a_parent_has_children_of_its_own_under_the_same_names():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await begin(controller)
            await ask(cluster, ask="submit", specs=[child()])
            await controller.cancel("plan", ANN)
            await until(lambda: phase(controller, "plan.a") == phase(controller, "plan") == "cancelled")
            await controller.submit([parent()], user=ANN, again=True)
            second = "llms/plan@2/0/1"
            await until(lambda: second in cluster.running())
            assert (await ask(cluster, second, ask="watch", names=["a"])) == {"ok": []}
            (told,) = (await ask(cluster, second, ask="submit", specs=[child()]))["ok"]
            assert told["id"] == "plan.a@2"

    asyncio.run(story())


@pytest.mark.parametrize("name", ["plan.a", "Plan", "a.b.c"])
def test_no_user_writes_the_name_of_a_child(name):
    from llmsched.errors import SpecError

    with pytest.raises(SpecError, match='"name": expected a name'):
        load_json(child(name))


def test_of_an_endpoint_that_it_may_call_work_asks_how_it_stands_and_changes_it_once():
    async def story():
        quick = Script(runs_for_s=0.01)
        cluster = fake_cluster(good=quick, bad=quick)
        async with controlling(cluster) as controller:
            body = {"name": "chat", "kind": "serve", "replicas": "1..2", "serve": {"model": {"source": "/tiny"}}}
            await controller.submit([load_json(body)], user=ANN)
            await begin(controller, calls=["chat"])
            for name in ("good", "bad"):
                await controller.submit([train(name, publish={"to": "chat", "as": "adapter", "name": "sql"})], user=ANN)
                await until(lambda name=name: phase(controller, name) == "succeeded")
            await until(lambda: phase(controller, "chat") == "running")
            seen = (await ask(cluster, ask="endpoint", endpoint="chat"))["ok"]
            assert (seen["replicas"], seen["most"], seen["adapters"]) == (1, 2, {"sql": "bad"})
            for _ in range(2):
                back = {"endpoint": "chat", "adapter": "sql", "away_from": "bad"}
                assert (await ask(cluster, ask="rollback", **back)) == {"ok": None}
            assert (await ask(cluster, ask="endpoint", endpoint="chat"))["ok"]["adapters"] == {"sql": "good"}
            await ask(cluster, ask="scale", endpoint="chat", replicas=2)
            assert controller.state.workloads["chat"].wanted_replicas == 2

            for more, said in (
                ({"ask": "scale", "endpoint": "chat", "replicas": 3}, "2"),
                ({"ask": "scale", "endpoint": "chat", "replicas": "two"}, "whole number"),
                ({"ask": "rollback", "endpoint": "chat", "adapter": "sql", "away_from": "good"}, "before that of good"),
                ({"ask": "rollback", "endpoint": "chat", "adapter": "none", "away_from": None}, "no adapter"),
                ({"ask": "rollback", "endpoint": "chat", "away_from": 1}, "no"),
                ({"ask": "endpoint", "endpoint": "other"}, "may not ask for anything of 'other'"),
            ):
                assert said in (await ask(cluster, **more))["error"]["message"], more

    asyncio.run(story())


def test_an_endpoint_of_another_user_is_looked_at_and_not_changed():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            queues = [{"name": "red", "roles": {"submitter": [ANN, "bob"], "viewer": [ANN]}}, {"name": "default"}]
            await controller.configure(cluster_spec.ClusterSpec.model_validate({"queues": queues}), "op")
            body = {"name": "chat", "kind": "serve", "queue": "red", "serve": {"model": {"source": "/tiny"}}}
            await controller.submit([load_json(body)], user="bob")
            await controller.submit([parent(calls=["chat"])], user=ANN)
            await until(lambda: phase(controller, "plan") == "running")
            assert (await ask(cluster, ask="endpoint", endpoint="chat"))["ok"]["name"] == "chat"
            refused = (await ask(cluster, ask="scale", endpoint="chat", replicas=1))["error"]
            assert refused["code"] == "role"

    asyncio.run(story())
