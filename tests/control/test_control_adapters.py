"""An adapter that turned out bad goes back to the one that was published before, live, and to no other's."""

import asyncio

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, phase, train, until

from llmsched.api import event_text
from llmsched.core.facts import AdapterLoaded, RolledBack
from llmsched.core.render import AllNames
from llmsched.core.snapshot import freeze, thaw
from llmsched.errors import RequestError
from llmsched.executors.port import AdapterAnswer
from llmsched.spec.load import load_json

ADAPTER = {"to": "desk", "as": "adapter", "name": "tone"}


def endpoint(**more):
    model = {"source": "package:models/tiny"}
    return load_json({"name": "desk", "kind": "serve", "serve": {"model": model, **more}})


async def published(controller, cluster, *names, user=ANN):
    for name in names:
        await controller.submit([train(name, publish=ADAPTER)], user=user)
        await until(lambda name=name: phase(controller, name) == "succeeded")
        await until(lambda name=name: is_live(controller, cluster, artifact(controller, name)))


def is_live(controller, cluster, uri):
    """Asked for by its name, and loaded: its replica has said so."""
    told = [each.entry for each in controller.entries() if isinstance(each.entry, AdapterLoaded)]
    return cluster.routes.models["desk"]["adapters"].get("tone") == uri and bool(told) and told[-1].uri == uri


def artifact(controller, name):
    return controller.state.workloads[name].artifact


async def back(controller, adapter="tone", role="submitter"):
    await controller.roll_back("desk", ANN, role, adapter=adapter)


def test_it_goes_back_one_by_one_and_the_replica_answers_all_the_while():
    async def story():
        quick = Script(runs_for_s=0.01)
        cluster = fake_cluster(good=quick, better=quick, poisoned=quick)
        async with controlling(cluster) as controller:
            await controller.submit([endpoint()], user=ANN)
            await until(lambda: phase(controller, "desk") == "running")
            await published(controller, cluster, "good", "better", "poisoned")
            running = cluster.running()
            await back(controller)
            await until(lambda: is_live(controller, cluster, artifact(controller, "better")))
            await back(controller)
            await until(lambda: is_live(controller, cluster, artifact(controller, "good")))
            assert [order.name for order in cluster.adapters] == ["tone"] * 5 and cluster.running() == running
            with pytest.raises(RequestError, match="nothing was published as tone before that of good"):
                await back(controller)
            told = [each.entry for each in controller.entries() if isinstance(each.entry, RolledBack)]
            assert [event_text.told(each, AllNames()) for each in told] == [
                f"its adapter tone goes back to that of {name}, asked for by {ANN}" for name in ("better", "good")
            ]
            assert thaw(freeze(controller.state)).digest() == controller.state.digest()

    asyncio.run(story())


def test_before_the_first_that_was_published_is_the_one_of_the_spec():
    async def story():
        cluster = fake_cluster(poisoned=Script(runs_for_s=0.01))
        async with controlling(cluster) as controller:
            given = [{"name": "tone", "source": "/adapters/tone"}]
            await controller.submit([endpoint(adapters=given)], user=ANN)
            await until(lambda: phase(controller, "desk") == "running")
            await published(controller, cluster, "poisoned")
            await back(controller)
            await until(lambda: is_live(controller, cluster, "/adapters/tone"))
            with pytest.raises(RequestError, match="nothing was published as tone before that of desk"):
                await back(controller)

    asyncio.run(story())


def test_the_gateway_is_told_why_a_replica_refused_an_adapter_until_another_one_of_that_name_is_loaded():
    async def story():
        cluster, why = fake_cluster(good=Script(runs_for_s=0.01)), "adapter tone: it is of another base"
        async with controlling(cluster) as controller:
            await controller.submit([endpoint(adapters=[{"name": "tone", "source": "/adapters/tone"}])], user=ANN)
            await until(lambda: phase(controller, "desk") == "running")
            cluster.say(AdapterAnswer("desk/0", 1, "tone", "/adapters/tone", why))
            await until(lambda: cluster.routes.models["desk"]["adapters"] == {})
            assert cluster.routes.models["desk"]["refused"] == {"tone": why}
            await published(controller, cluster, "good")
            assert "refused" not in cluster.routes.models["desk"]

    asyncio.run(story())


def test_what_was_never_published_or_is_of_another_user_is_nothing_to_go_back_to():
    async def story():
        quick = Script(runs_for_s=0.01)
        cluster = fake_cluster(good=quick, strangers=quick)
        async with controlling(cluster) as controller:
            await controller.submit([endpoint()], user=ANN)
            await until(lambda: phase(controller, "desk") == "running")
            with pytest.raises(RequestError, match=r'no adapter "tone" was published to desk. It has none'):
                await back(controller)
            await controller.submit([train("strangers", publish=ADAPTER)], user="bob")
            await until(lambda: phase(controller, "strangers") == "succeeded")
            await published(controller, cluster, "good")
            with pytest.raises(RequestError, match="before that of good"):
                await back(controller)
            with pytest.raises(RequestError, match=r'no adapter "tome" .*There are: tone'):
                await back(controller, "tome")

    asyncio.run(story())
