"""Work that asks endpoints: which ones it may, with which key, and for how long."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from control_harness import ANN, controlling, fake_cluster, phase, serve, task, until

from llmsched.control.calls import CLIENTS_KEY, KEY
from llmsched.control.vault import Vault
from llmsched.errors import RequestError
from llmsched.spec import cluster as cluster_spec
from llmsched.spec.load import load_json
from llmsched.store.memory import MemoryStore

QUEUES = cluster_spec.ClusterSpec.model_validate(
    {"queues": [{"name": "red", "roles": {"submitter": [ANN]}}, {"name": "blue", "roles": {"submitter": ["bob"]}}]}
)


def app(name, *calls):
    body = {"name": name, "kind": "serve", "resources": {"accelerators": []}, "calls": [*calls], "workdir": "."}
    return load_json(body | {"serve": {"app": "mine:App"}})


def keys(cluster):
    """{sha256: what it reaches} of what the gateway was last told."""
    return {one["sha256"]: one["models"] for one in cluster.routes.keys} if cluster.routes else {}


def key_of(cluster, attempt):
    return hashlib.sha256(cluster.attempts[attempt].order.envs[KEY].encode()).hexdigest()


def test_an_attempt_has_a_key_that_reaches_what_it_names_and_ends_with_it(tmp_path):
    async def story():
        store, cluster = MemoryStore(), fake_cluster()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        async with controlling(cluster, store, vault=vault) as controller:
            await controller.submit([serve("qwen"), serve("other"), task("asks", calls=["qwen"])], user=ANN)
            await until(lambda: phase(controller, "asks") == "running")
            envs = cluster.attempts["llms/asks/0/1"].order.envs
            assert envs[KEY] == envs[CLIENTS_KEY] and KEY not in cluster.attempts["llms/qwen/0/1"].order.envs
            digest = key_of(cluster, "llms/asks/0/1")
            await until(lambda: keys(cluster).get(digest) == ["qwen"])
        async with controlling(cluster, store, vault=vault) as controller:  # another controller derives the same
            await until(lambda: keys(cluster).get(digest) == ["qwen"])
            await controller.cancel("asks", ANN)
            await until(lambda: digest not in keys(cluster))

    asyncio.run(story())


def test_an_own_key_of_the_user_stays_and_no_key_is_in_the_journal(tmp_path):
    async def story():
        store, cluster = MemoryStore(), fake_cluster()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        async with controlling(cluster, store, vault=vault) as controller:
            await vault.put(ANN, CLIENTS_KEY, "their own", by=ANN)
            await controller.submit([serve("qwen"), task("asks", calls=["qwen"], secrets=[CLIENTS_KEY])], user=ANN)
            await until(lambda: phase(controller, "asks") == "running")
            envs = cluster.attempts["llms/asks/0/1"].order.envs
            assert envs[CLIENTS_KEY] == "their own" and envs[KEY] != "their own"
            assert envs[KEY] not in repr(controller.entries())

    asyncio.run(story())


def test_what_is_no_endpoint_or_anothers_is_refused_in_the_same_words():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.configure(QUEUES, by="ops")
            await controller.submit([serve("secret", queue="blue")], user="bob")
            await controller.submit([serve("qwen", queue="red"), task("work", queue="red")], user=ANN)
            for name in ("secret", "nothing", "work"):
                with pytest.raises(RequestError, match=f'no endpoint "{name}" that asks could call') as refused:
                    await controller.submit([task("asks", queue="red", calls=[name])], user=ANN)
                assert "If somebody else runs it, ask for a role in its queue" in refused.value.hint
            (planned,) = await controller.plan([task("asks", queue="red", calls=["qwem"])], ANN)
            assert planned.outcome == "refused" and planned.reason is not None
            with pytest.raises(RequestError) as near:
                await controller.submit([task("asks", queue="red", calls=["qwem"])], user=ANN)
            assert near.value.hint == 'Did you mean "qwen"?'

    asyncio.run(story())


def test_a_name_that_becomes_anothers_is_reached_no_more():
    async def story():
        cluster = fake_cluster()
        async with controlling(cluster) as controller:
            await controller.configure(QUEUES, by="ops")
            await controller.submit([serve("qwen", queue="red"), task("asks", queue="red", calls=["qwen"])], user=ANN)
            await until(lambda: phase(controller, "asks") == "running")
            digest = key_of(cluster, "llms/asks/0/1")
            await until(lambda: keys(cluster).get(digest) == ["qwen"])
            await controller.cancel("qwen", ANN)
            await until(lambda: phase(controller, "qwen") == "cancelled")
            await until(lambda: keys(cluster).get(digest) == [])

    asyncio.run(story())


def test_endpoints_that_call_in_a_circle_are_refused_with_the_circle():
    async def story():
        async with controlling(fake_cluster()) as controller:
            with pytest.raises(
                RequestError, match=r"in a circle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)"
            ):
                await controller.submit([app("a", "b"), app("b", "c"), app("c", "a")], user=ANN)
            with pytest.raises(RequestError, match="in a circle: self -> self"):
                await controller.submit([app("self", "self")], user=ANN)
            await controller.submit([app("a", "b"), app("b", "c"), app("c")], user=ANN)
            with pytest.raises(RequestError, match="in a circle: c -> a -> b -> c"):
                await controller.submit([app("c", "a")], user=ANN)

    asyncio.run(story())


def test_an_endpoint_that_is_called_by_the_id_of_its_model_is_told_by_its_name():
    async def story():
        async with controlling(fake_cluster()) as controller:
            named = load_json(
                {"name": "m", "kind": "serve", "serve": {"model": {"id": "qwen", "source": "package:models/tiny"}}}
            )
            with pytest.raises(RequestError, match='no endpoint "qwen"') as refused:
                await controller.submit([named, task("asks", calls=["qwen"])], user=ANN)
            assert refused.value.hint == 'Did you mean "m"?'

    asyncio.run(story())
