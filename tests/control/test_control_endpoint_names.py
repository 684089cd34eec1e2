"""A name of an endpoint is of whoever had it first, and a key reaches what its user may see."""

import asyncio
import json

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, phase, train, until

from llmsched.core.render import text
from llmsched.errors import RequestError
from llmsched.executors.port import Ended
from llmsched.spec import cluster as cluster_file
from llmsched.spec.load import load_json

BOB, EVE = "bob", "eve"


def endpoint(name, id=None, adapters=(), **more):
    model = {"source": "package:models/tiny", **({"id": id} if id else {})}
    given = [{"name": adapter, "source": f"/adapters/{adapter}"} for adapter in adapters]
    return load_json({"name": name, "kind": "serve", "serve": {"model": model, "adapters": given}, **more})


def publisher(name, to, adapter):
    return train(name, publish={"to": to, "as": "adapter", "name": adapter})


TAKERS = {
    "its model's id": lambda: endpoint("mine", id="assistant"),
    "its workload's name as an id": lambda: endpoint("mine", id="ann-chat"),
    "its adapter as an id": lambda: endpoint("mine", id="sql"),
    "its id as a name": lambda: endpoint("assistant"),
    "its adapter as a name": lambda: endpoint("sql"),
    "its adapter": lambda: endpoint("mine", adapters=["sql"]),
    "its id as an adapter": lambda: endpoint("mine", adapters=["assistant"]),
    "its id by a published adapter": lambda: publisher("mine", "nobody-yet", "assistant"),
    "its adapter by a published one": lambda: publisher("mine", "bob-chat", "sql"),
    "the name of its app as an id": lambda: endpoint("mine", id="desk"),
    "its published adapter": lambda: endpoint("mine", adapters=["tuned"]),
}


@pytest.mark.parametrize("how", TAKERS)
def test_no_name_of_anothers_endpoint_can_be_taken_until_it_is_gone(how):
    async def story():
        cluster = fake_cluster(tuning=Script(runs_for_s=0.01))
        async with controlling(cluster) as controller:
            await controller.submit([endpoint("ann-chat", "assistant", ["sql"]), endpoint("desk")], user=ANN)
            await controller.submit([publisher("tuning", "ann-chat", "tuned")], user=ANN)
            await controller.submit([endpoint("bob-chat")], user=BOB)
            await until(lambda: cluster.adapters)
            before = sorted(controller.state.workloads)
            (planned,) = await controller.plan([TAKERS[how]()], user=BOB)
            assert (planned.outcome, planned.reason.code) == ("refused", "name_taken")
            with pytest.raises(
                RequestError, match=r"the name .+ is not free: another's workload answers to it"
            ) as refused:
                await controller.submit([TAKERS[how]()], user=BOB)
            assert refused.value.code == "name_taken" and "ann" not in str(refused.value).replace('"ann-chat"', "")
            assert sorted(controller.state.workloads) == before
            for name in ("ann-chat", "desk"):
                await controller.cancel(name, ANN)
                await until(lambda name=name: phase(controller, name) == "cancelled")
            if "name" not in how or "id" in how.split()[-1]:  # names of workloads are their owner's for good
                await controller.submit([TAKERS[how]()], user=BOB)

    asyncio.run(story())


def test_a_file_and_a_change_are_held_to_the_same_as_a_new_endpoint():
    async def story():
        async with controlling(fake_cluster()) as controller:
            with pytest.raises(RequestError, match='"x" is not free: one answers to it'):
                await controller.submit([endpoint("one", id="x"), endpoint("two", id="x")], user=ANN)
            await controller.submit([endpoint("one", id="x"), endpoint("two")], user=ANN)
            with pytest.raises(RequestError, match='"x" is not free: one answers to it'):
                await controller.submit([endpoint("two", id="x")], user=ANN)  # of oneself: it would be silently dropped
            await controller.submit(
                [endpoint("one", id="y"), endpoint("two", id="x")], user=ANN
            )  # handed on in one file
            await until(lambda: set(controller.state.serving) == {"one", "two"})
            await controller.submit([endpoint("one", id="y", adapters=["sql"])], user=ANN)
            await controller.submit([endpoint("two", id="x", adapters=["sql"])], user=ANN)  # y:sql and x:sql
            with pytest.raises(RequestError, match="is not free"):
                await controller.submit([endpoint("three", adapters=["sql"])], user=BOB)

    asyncio.run(story())


def test_what_was_taken_while_a_run_went_on_is_not_published():
    async def story():
        cluster = fake_cluster(tuning=Script(runs_for_s=None))
        async with controlling(cluster) as controller:
            await controller.submit([endpoint("ann-chat"), publisher("tuning", "ann-chat", "sql")], user=ANN)
            await until(lambda: "llms/tuning/0/1" in cluster.running())
            await controller.submit([endpoint("bob-chat", adapters=["sql"])], user=BOB)
            cluster.say(Ended("tuning/0", 1, "succeeded", artifact="/storage/tuning"))
            await until(lambda: phase(controller, "tuning") == "succeeded")
            assert text(controller.state.workloads["tuning"].message) == (
                "not published: the name sql is of another's endpoint"
            )

    asyncio.run(story())


def test_a_key_reaches_the_endpoints_that_its_user_may_see_and_follows_the_queues():
    async def story():
        cluster = fake_cluster()
        people = [(ANN, "submitter"), (BOB, "submitter"), (EVE, "submitter"), ("root", "operator")]
        tokens = [{"id": user, "sha256": user, "user": user, "role": role} for user, role in people]

        def reached():
            return {key["id"]: key["models"] for key in cluster.routes.keys} if cluster.routes else {}

        async with controlling(cluster, keys=lambda: tokens) as controller:
            queues = [{"name": "lab", "roles": {"submitter": ["*"], "viewer": [EVE]}}, {"name": "default"}]
            await controller.configure(cluster_file.load(json.dumps({"queues": queues})), "root")
            await controller.submit([endpoint("a", id="assistant", queue="lab"), endpoint("a2")], user=ANN)
            await controller.submit([endpoint("b", queue="lab")], user=BOB)
            await until(
                lambda: (
                    reached()
                    == {ANN: ["assistant", "a2"], BOB: ["b"], EVE: ["assistant", "b"], "root": ["assistant", "a2", "b"]}
                )
            )
            queues[0]["roles"]["viewer"] = []
            await controller.configure(cluster_file.load(json.dumps({"queues": queues})), "root")
            await until(lambda: reached()[EVE] == [])

    asyncio.run(story())
