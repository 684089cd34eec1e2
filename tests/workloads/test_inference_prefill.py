"""Prompts that another endpoint reads, from two specs to an answer: the controller's orders and table, the gateway, and
replicas, all real but for vLLM, which is a fake one. So nothing here says that it runs on a GPU."""

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

import fake_vllm
import httpx
import pytest
import tiny_models
import torch
from waiting import PATIENCE_S

from llmsched.control.dispatch import Site, launch_order
from llmsched.control.routes import Routes
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import Bound, NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.gateway.front import Gateway
from llmsched.gateway.replicas import ReplicaGone
from llmsched.policies.registry import load as policies
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json
from workloads.inference.replica import Replica

KEY = "llmsched-key"
TOKEN = {"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "user": "ann", "role": "submitter"}
ASK = {"model": "chat", "prompt": "abcdef", "max_tokens": 4, "temperature": 0}


class InProcess:
    """A replica that may be gone, and in whose place something may happen once it has read a prompt."""

    def __init__(self, order):
        self.replica = Replica(order)
        self.engine = self.replica._server._engine._engine
        self.is_gone = False
        self.then = lambda: None

    async def call(self, route, body, adapter):
        if self.is_gone:
            raise ReplicaGone("gone")
        answer = await self.replica.call(route, body, adapter)
        self.then()
        return answer

    async def stream(self, route, body, adapter, incoming=None):
        if self.is_gone:
            raise ReplicaGone("gone")
        async for chunk in self.replica.stream(route, body, adapter):
            yield chunk


class World:
    """The endpoints `chat`, whose prompts `reader` reads, and `whole`, which does both."""

    def __init__(self, folder, readers=1, chats=1, reader=None, chat=None, adapters=()):
        self.state, self.now, self.seen = State(), 0.0, []
        self.state.apply(NodeJoined(0.0, Node("n", Resources(64_000, 64_000, 1 << 40), "A100")))
        split = {"prefill": {"endpoint": "reader", "from_tokens": 1}, "adapters": list(adapters)}
        specs = [
            self.spec("reader", folder, readers, {"role": "prefill"}, **(reader or {})),
            self.spec("chat", folder, chats, split, **(chat or {})),
            self.spec("whole", folder, 1, {}),
        ]
        facts = [Submitted(1.0, replace(compile_workload(spec), user="ann")) for spec in specs]
        turn(self.state, facts, policies(PolicyNames()))
        self.replicas = {}
        for name, gang in self.state.gangs.items():
            self.state.apply(Bound(2.0, name, 1))
            order = launch_order(self.state, gang, 1, gang.placement, Site(1, ""))
            self.replicas[f"llms/{name}/1"] = InProcess(json.loads(json.dumps(asdict(order))))
        self.gateway = Gateway(self.replicas.__getitem__, clock=lambda: self.now, observe=self.observe)
        self.table = asdict(Routes(1).changed(self.state, [TOKEN]))
        self.gateway.route(self.table)

    @staticmethod
    def spec(name, folder, count, serve, engine_kwargs=None, **more):
        section = {"model": {"source": str(folder)}, "engine": "vllm", "engine_kwargs": engine_kwargs or {}, **serve}
        body = {"name": name, "kind": "serve", "replicas": count, "resources": {"accelerators": ["A100:1"]}, **more}
        return load_json(body | {"serve": section})

    def observe(self, workload, route, status, seconds):
        self.seen.append((workload, route, status))

    def prefills(self):
        return [status for workload, route, status in self.seen if (workload, route) == ("reader", "prefill")]

    def of(self, name):
        return [one for place, one in self.replicas.items() if place.startswith(f"llms/{name}/")]

    def engines(self, name):
        return [one.engine for one in self.of(name)]

    @asynccontextmanager
    async def client(self):
        transport = httpx.ASGITransport(app=self.gateway)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway/v1", headers=headers) as client:
            yield client

    async def ask(self, path="completions", **body):
        async with self.client() as client:
            return await client.post(f"/{path}", json={**ASK, **body})


def said(response):
    """The text of an answer, whole or streamed."""
    if response.headers["content-type"] == "application/json":
        return "".join(_text(choice) for choice in response.json()["choices"])
    events = [line[len("data: ") :] for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return "".join(_text(choice) for event in events[:-1] for choice in json.loads(event)["choices"])


def _text(choice):
    return choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or ""


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    before = torch.get_num_threads()
    fake_vllm.put_in(monkeypatch)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asks"),
    [
        ("completions", {"prompt": "what the one has read"}),
        ("completions", {"prompt": [5, 6, 7, 8]}),
        ("chat/completions", {"prompt": None, "messages": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_the_answer_is_as_of_one_replica_and_the_one_that_answers_reads_no_prompt(folder, path, asks, stream):
    world = World(folder)
    asks = {name: value for name, value in {**ASK, **asks, "stream": stream}.items() if value is not None}

    async def story():
        async with world.client() as client:
            whole, split = [await client.post(f"/{path}", json=asks | {"model": one}) for one in ("whole", "chat")]
        assert whole.status_code == split.status_code == 200
        assert said(split) == said(whole) != ""
        if not stream:
            usage, alone = split.json()["usage"], whole.json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] == alone["prompt_tokens"]
            assert usage["completion_tokens"] == alone["completion_tokens"] == 4

    asyncio.run(story())
    (reader,), (chat,), (alone,) = (world.engines(name) for name in ("reader", "chat", "whole"))
    assert (chat.read, reader.read) == ([], alone.read) and len(alone.read) == 1
    assert reader.kept == {} and world.prefills() == [200]
    [(_, parameters, _)] = reader.asked
    assert (parameters.max_tokens, parameters.ignore_eos) == (1, True)
    assert chat.asked[0][0] == reader.asked[0][0], "by some versions both sides go by one name"
    assert world.gateway.load()["chat"]["ongoing"] == world.gateway.load()["reader"]["ongoing"] == 0


def test_each_replica_is_told_its_part_and_has_an_address_of_its_own(folder):
    kwargs = {"vllm": {"kv_transfer_config": {"kv_connector_extra_config": {"kv_lease_duration": 60}}}}
    world = World(folder, readers=2, chats=2, reader={"engine_kwargs": kwargs})
    configs = [[engine.arguments.kv_transfer_config for engine in world.engines(one)] for one in ("reader", "chat")]
    for role, policy, more, of_one in zip(
        ("kv_producer", "kv_consumer"), ("fail", "recompute"), ({"kv_lease_duration": 60}, {}), configs, strict=True
    ):
        for config in of_one:
            assert (config.kv_connector, config.kv_role) == ("NixlConnector", role)
            assert (config.kv_load_failure_policy, config.kv_connector_extra_config) == (policy, more)
    assert len(fake_vllm.NETWORK) == len({config.engine_id for each in configs for config in each}) == 4
    assert world.engines("whole")[0].arguments.kv_transfer_config is None


def test_what_a_replica_keeps_for_itself_alone_is_told_as_vllm_reads_it(folder):
    config = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    spec = World.spec("whole", folder, 1, {}, engine_kwargs={"vllm": {"kv_transfer_config": config}})
    order = {"gang": "whole/0", "attempt": 1, "members": [{"rank": 0, "cpus": 1.0, "gpus": 1.0}], "spec": spec.dump()}
    given = InProcess(order).engine.arguments.kv_transfer_config
    assert isinstance(given, fake_vllm.KVTransferConfig) and (given.kv_connector, given.kv_role) == (*config.values(),)
    assert fake_vllm.NETWORK == {}


def test_another_one_reads_where_one_is_gone_and_who_answers_where_all_are(folder, capfd):
    world = World(folder, readers=2)

    async def story():
        world.of("reader")[0].is_gone = True
        assert {said(await world.ask()) for _ in range(4)} == {"fedc"}
        assert (world.prefills(), world.engines("chat")[0].read) == ([200] * 4, [])
        world.of("reader")[1].is_gone = True
        assert {said(await world.ask(stream=stream)) for stream in (False, True, False)} == {"fedc"}

    asyncio.run(story())
    assert (world.prefills()[4:], world.engines("chat")[0].read) == ([503] * 3, [6] * 3)
    assert world.gateway.load()["reader"]["queued"] == 3, "more of them are wanted"
    assert capfd.readouterr().err.count("chat reads prompts itself: reader has no replica that answers") == 1


@pytest.mark.parametrize("policy", [None, "fail"])
def test_a_reader_that_dies_before_the_prompt_is_taken_costs_no_answer(folder, capfd, policy):
    config = {"kv_transfer_config": {"kv_load_failure_policy": policy}} if policy else {}
    world = World(folder, chat={"engine_kwargs": {"vllm": config} if config else {}})
    (reader,), (chat,) = world.of("reader"), world.engines("chat")
    reader.then = reader.engine.shutdown

    async def story():
        assert [said(await world.ask(stream=stream)) for stream in (False, True)] == ["fedc"] * 2

    asyncio.run(story())
    assert (world.prefills(), chat.read) == ([200, 200], [6, 6])
    assert capfd.readouterr().err.count("it is read here instead") == (1 if policy else 0)


@pytest.mark.parametrize("where", ["reading", "fetching", "hold"])
def test_a_client_that_leaves_frees_what_was_kept_for_it(folder, where):
    world = World(folder)
    (reader,), (chat,) = world.engines("reader"), world.engines("chat")
    setattr(reader if where == "reading" else chat, where, asyncio.Event())
    reached = {
        "reading": lambda: reader.asked,
        "fetching": lambda: chat.not_taken,
        "hold": lambda: chat.asked and not chat.not_taken,
    }

    async def story():
        asking = asyncio.create_task(world.ask(stream=True))
        await until(reached[where])
        if where == "fetching":
            assert reader.kept
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: all(each["ongoing"] == 0 for each in world.gateway.load().values()))

    asyncio.run(story())
    ended = reader if where == "reading" else chat
    assert (reader.kept, ended.aborted) == ({}, [ended.asked[-1][0]])
    assert bool(chat.asked) is (where != "reading")


def test_a_full_reader_is_not_waited_for(folder):
    world = World(folder, reader={"max_ongoing_requests": 1})
    (reader,), (chat,) = world.engines("reader"), world.engines("chat")

    async def story():
        reader.reading = asyncio.Event()
        first = asyncio.create_task(world.ask())
        await until(lambda: reader.asked)
        assert said(await world.ask()) == "fedc"
        assert (world.prefills(), chat.read) == ([429], [6])
        reader.reading.set()
        assert said(await first) == "fedc"

    asyncio.run(story())
    assert (sorted(world.prefills()), chat.read, reader.kept) == ([200, 429], [6], {})


def test_a_reader_that_never_comes_to_an_end_is_waited_for_as_long_as_a_request_to_it_may_take(folder):
    world = World(folder, reader={"request_timeout": 0.05})
    (reader,), (chat,) = world.engines("reader"), world.engines("chat")

    async def story():
        reader.reading = asyncio.Event()
        assert said(await world.ask(stream=True)) == "fedc"
        await until(lambda: reader.aborted)

    asyncio.run(story())
    assert (world.prefills(), chat.read, reader.kept) == ([504], [6], {})
    assert world.gateway.load()["reader"]["ongoing"] == 0


@pytest.mark.parametrize(
    "asks",
    [{"prompt": "abcd"}, {"prompt": "abcdefgh", "n": 2}, {"prompt": ["abcdefgh", "abcdefgh"]}],
    ids=["short", "two answers", "two prompts"],
)
def test_who_answers_reads_what_is_short_or_would_be_taken_twice(folder, asks):
    world = World(folder)
    world.gateway.route(_with(world.table, "chat", prefill={"workload": "reader", "from_tokens": 2}))
    asyncio.run(world.ask(**asks))
    assert (world.prefills(), world.engines("reader")[0].asked) == ([], [])
    assert asyncio.run(world.ask(prompt="abcde")).status_code == 200
    assert world.prefills() == [200]


def _with(table, name, version=2, **more):
    models = table["models"]
    return {**table, "version": table["version"] + version, "models": {**models, name: {**models[name], **more}}}


def test_what_was_read_by_another_model_is_never_taken(folder):
    world = World(folder)
    [replica] = world.table["models"]["reader"]["replicas"]
    world.gateway.route(_with(world.table, "reader", replicas=[{**replica, "kv": "of another model"}]))
    assert said(asyncio.run(world.ask())) == "fedc"
    assert (world.prefills(), world.engines("reader")[0].asked) == ([503], [])
    assert world.gateway.load()["reader"]["queued"] == 0, "more of the other model would not help"


def test_a_prompt_of_an_adapter_is_read_with_it(folder, tmp_path):
    adapter = tiny_models.lora(tmp_path / "loud", folder, seed=1)
    world = World(folder, adapters=[{"name": "loud", "source": str(adapter)}])
    assert said(asyncio.run(world.ask(model="chat:loud"))) == "FEDC"
    assert said(asyncio.run(world.ask(model="chat"))) == "fedc"
    assert (world.prefills(), world.engines("chat")[0].read) == ([200, 200], [])


def test_what_a_client_may_not_say_or_ask_is_told_by_name(folder):
    world = World(folder)

    async def story():
        for model in ("chat", "whole"):
            answer = await world.ask(model=model, kv_transfer_params={"do_remote_prefill": True})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (
                400,
                "unknown_parameter",
                "kv_transfer_params",
            )
        answer = await world.ask(model="reader")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_route")
        assert "reads prompts for other endpoints" in answer.json()["error"]["message"]
        wrong = await world.ask(temperature=9)  # the reader is not told of it, and whoever answers says it
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
        async with world.client() as client:
            assert [one["id"] for one in (await client.get("/models")).json()["data"]] == ["chat", "whole"]

    asyncio.run(story())


def test_the_time_in_which_a_prompt_is_read_counts_until_the_first_token(folder):
    world = World(folder)
    (reader,) = world.of("reader")

    def five_seconds():
        world.now += 5

    reader.then = five_seconds

    async def story():
        for _ in range(40):
            assert said(await world.ask(stream=True)) == "fedc"
        load = world.gateway.load()
        assert [each["ttft_p95_s"] for each in load["chat"]["latencies"]] == [5.0]
        assert [each["latency_p95_s"] for each in load["reader"]["latencies"]] == [5.0]

    asyncio.run(story())
