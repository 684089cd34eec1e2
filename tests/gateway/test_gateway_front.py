"""The gateway in plain asyncio: real code from the ASGI call down, replicas that are plain objects, no Ray."""

import asyncio
import hashlib
import json

import httpx
import pytest

from llmsched.gateway.front import Gateway
from llmsched.gateway.replicas import ReplicaGone

KEY = "test-key"
AUTH = {"Authorization": f"Bearer {KEY}"}


class Echo:
    """A replica that answers with what it was asked, holds requests while `hold` is set, and can be dead."""

    def __init__(self, name):
        self.name = name
        self.dead = False
        self.dies_after = None  # chunks
        self.calls = 0
        self.cancelled = 0
        self.hold = None
        self.said = ["a", "b", "c"]

    async def call(self, route, body, adapter):
        self.calls += 1
        if self.dead:
            raise ReplicaGone(self.name)
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if body.get("fail"):
            return {"error": {"message": "no", "type": "t", "param": None, "code": "c"}, "status": body["fail"]}
        return {"replica": self.name, "route": route, "adapter": adapter}

    async def stream(self, route, body, adapter):
        self.calls += 1
        if self.dead:
            raise ReplicaGone(self.name)
        try:
            if body.get("fail"):
                yield {"error": {"message": "no", "type": "t", "param": None, "code": "c"}, "status": body["fail"]}
                return
            for n, piece in enumerate(self.said):
                if self.dies_after == n:
                    raise ReplicaGone(self.name)
                yield {"piece": piece, "replica": self.name}
                if self.hold is not None:
                    await self.hold.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class House:
    """A gateway with one workload `qwen` on the given replicas."""

    def __init__(self, *names, keys=None, clock=None, **entry):
        self.replicas = {name: Echo(name) for name in names}
        self.seen = []
        self.clock = clock or (lambda: 0.0)
        self.gateway = Gateway(
            self.replicas.__getitem__, clock=self.clock, observe=lambda *what: self.seen.append(what[:3])
        )
        models = {
            "qwen": {
                "workload": "qwen",
                "task": "causal-lm",
                "kind": "model",
                "replicas": [{"app": name} for name in names],
                "adapters": {"sql": "s3://a/sql"},
                **entry,
            },
            "desk": {"workload": "support-desk", "kind": "app", "replicas": [{"app": name} for name in names]},
        }
        keys = keys or [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": list(models)}]
        self.table = {"version": 3, "models": models, "keys": keys}
        self.gateway.route(self.table)

    def __getitem__(self, name):
        return self.replicas[name]

    async def ask(self, method="POST", path="/v1/chat/completions", headers=AUTH, **kwargs):
        transport = httpx.ASGITransport(app=self.gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **kwargs)

    def chat(self, **body):
        return self.ask(json={"model": "qwen", **body})


def events(response):
    return [line[len("data: ") :] for line in response.text.split("\n\n") if line]


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_answers_what_a_replica_answers():
    async def main():
        house = House("a")
        response = await house.chat(messages=[])
        assert response.status_code == 200
        assert response.json() == {"replica": "a", "route": "chat/completions", "adapter": None}
        assert house.seen == [("qwen", "chat/completions", 200)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "route"),
    [("/v1/completions", "completions"), ("/v1/embeddings", "embeddings"), ("/v1/classify", "classify")],
)
def test_each_path_reaches_its_route(path, route):
    assert asyncio.run(House("a").ask(path=path, json={"model": "qwen"})).json()["route"] == route


def test_an_app_is_asked_by_its_workloads_name():
    response = asyncio.run(House("a").ask(path="/v1/apps/support-desk", json={"anything": 1}))
    assert response.json()["route"] == "app"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
def test_refuses_whoever_has_no_good_key(headers):
    response = asyncio.run(House("a").ask(headers=headers, json={"model": "qwen"}))
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert "wrong" not in response.text


def test_health_needs_no_key_and_nothing_is_served_before_a_table_came():
    async def main():
        gateway = Gateway(Echo)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway), base_url="http://g") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok", "version": 0}
            assert (await client.get("/v1/models", headers=AUTH)).status_code == 503

    asyncio.run(main())


def test_lists_models_and_adapters_and_says_them_when_one_is_unknown():
    async def main():
        house = House("a")
        listed = (await house.ask("GET", "/v1/models")).json()["data"]
        assert [(m["id"], m["parent"]) for m in listed] == [("qwen", None), ("qwen:sql", "qwen")]
        assert (await house.ask("GET", "/v1/models/qwen:sql")).json()["parent"] == "qwen"
        unknown = await house.ask(json={"model": "quen"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert "qwen, qwen:sql" in unknown.json()["error"]["message"]

    asyncio.run(main())


def test_an_adapter_is_found_by_its_full_and_by_its_plain_name():
    async def main():
        house = House("a")
        for name in ("qwen:sql", "sql"):
            response = await house.ask(json={"model": name})
            assert response.json()["adapter"] == {"name": "sql", "uri": "s3://a/sql"}

    asyncio.run(main())


def test_a_model_is_also_found_by_the_name_it_was_applied_under():
    async def main():
        house = House("a")
        house.table["models"]["qwen"]["workload"] = "my-endpoint"
        house.gateway.route(house.table)
        assert (await house.ask(json={"model": "my-endpoint"})).json()["adapter"] is None
        listed = (await house.ask("GET", "/v1/models")).json()["data"]
        assert [m["id"] for m in listed] == ["qwen", "qwen:sql"]

    asyncio.run(main())


def test_an_app_asked_for_as_a_model_says_where_it_answers():
    refused = asyncio.run(House("a").ask(json={"model": "support-desk"}))
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == '"support-desk" is an app. Ask it at /v1/apps/support-desk.'


def test_a_plain_adapter_name_that_two_models_have_is_unknown():
    async def main():
        house = House("a")
        house.table["models"]["llama"] = {**house.table["models"]["qwen"], "workload": "llama"}
        house.table["keys"][0]["models"].append("llama")
        house.gateway.route(house.table)
        refused = await house.ask(json={"model": "sql"})
        assert refused.status_code == 404 and "Ask for llama:sql or qwen:sql." in refused.text
        assert (await house.ask(json={"model": "llama:sql"})).status_code == 200

    asyncio.run(main())


def test_what_a_key_does_not_reach_is_answered_as_what_does_not_exist():
    async def main():
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        for reached in ({"models": ["other"]}, {"models": []}, {}):
            house = House("a", keys=[{"id": "k", "sha256": digest, **reached}])
            for path, field, names in (
                ("/v1/chat/completions", "model", ("qwen", "qwen:sql", "sql", "nope")),
                ("/v1/chat/completions", "model", ("desk", "support-desk", "nope")),
            ):
                said = [await house.ask(path=path, json={field: name}) for name in names]
                assert {one.status_code for one in said} == {404}
                assert len({one.text.replace(name, "X") for one, name in zip(said, names, strict=True)}) == 1
            said = [await house.ask(path=f"/v1/apps/{name}", json={}) for name in ("desk", "support-desk", "nope")]
            assert [one.json()["error"]["message"] for one in said] == [
                f'There is no app "{name}". There are no apps here now.' for name in ("desk", "support-desk", "nope")
            ]
            assert (await house.ask("GET", "/v1/models")).json()["data"] == []
            assert (await house.ask("GET", "/v1/models/qwen")).status_code == 404
            assert house["a"].calls == 0

    asyncio.run(main())


def test_a_name_means_what_the_key_reaches_whoever_else_uses_it():
    async def main():
        mine, theirs = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, "their-key"))
        keys = [{"id": "m", "sha256": mine, "models": ["qwen"]}, {"id": "t", "sha256": theirs, "models": ["sql", "x"]}]
        house = House("a", keys=keys)
        replicas = {"replicas": [{"app": "b"}], "kind": "model"}
        house.replicas["b"] = Echo("b")
        house.table["models"]["qwen"]["workload"] = "my-chat"
        for name, workload in (("sql", "sql"), ("x", "qwen")):  # others take my adapter's name, and my endpoint's
            house.table["models"][name] = {"workload": workload, **replicas}
        house.gateway.route(house.table)
        for name in ("qwen", "sql"):
            assert (await house.ask(json={"model": name})).json()["replica"] == "a"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kwargs", "status", "code"),
    [
        ({"content": b"{"}, 400, "invalid_json"),
        ({"content": b"[" * 100_000}, 400, "invalid_json"),
        ({"json": [1]}, 400, "invalid_json"),
        ({"json": {}}, 400, "missing_model"),
        ({"json": {"model": 7}}, 400, "missing_model"),
        ({"content": b" " * ((1 << 20) + 1)}, 413, "request_too_large"),
        ({"path": "/v1/images", "json": {}}, 404, "unknown_url"),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"path": "/v1/apps/none", "json": {}}, 404, "app_not_found"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(kwargs, status, code):
    response = asyncio.run(House("a").ask(**kwargs))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_body_without_a_length_is_cut_off_at_the_limit():
    async def pieces():
        for _ in range(40):
            yield b" " * (1 << 15)

    response = asyncio.run(House("a").ask(content=pieces()))
    assert response.status_code == 413


def test_an_error_of_the_replica_keeps_its_status_streamed_or_not():
    async def main():
        house = House("a")
        for stream in (False, True):
            response = await house.chat(fail=429, stream=stream)
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            assert response.json() == {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}

    asyncio.run(main())


def test_what_an_app_calls_an_error_in_its_own_way_is_its_answer():
    async def main():
        house = House("a")

        async def call(route, body, adapter):
            return {"error": {}, "status": "all is well"}

        house["a"].call = call
        assert (await house.ask(path="/v1/apps/desk", json={})).status_code == 200

    asyncio.run(main())


def test_a_fault_of_the_gateway_is_a_500_in_openais_form_streamed_or_not(capfd):
    async def main():
        house = House("a")

        async def call(route, body, adapter):
            raise RuntimeError("a fault")

        async def stream(route, body, adapter):
            yield {"piece": "a"}
            raise RuntimeError("a fault")

        house["a"].call, house["a"].stream = call, stream
        response = await house.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (500, "gateway_error")
        said = events(await house.chat(stream=True))
        assert json.loads(said[-1])["error"]["code"] == "gateway_error"
        assert house.gateway.load()["qwen"]["ongoing"] == 0

    asyncio.run(main())
    assert "a fault" in capfd.readouterr().err


def test_streams_in_order_and_ends_with_done():
    async def main():
        house = House("a")
        house["a"].said = [str(n) for n in range(200)]
        response = await house.chat(stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        said = events(response)
        assert said[-1] == "[DONE]"
        assert [json.loads(event)["piece"] for event in said[:-1]] == house["a"].said

    asyncio.run(main())


def test_goes_to_another_replica_when_the_first_is_gone_and_avoids_it_for_a_while():
    async def main():
        now = [0.0]
        house = House("a", "b", clock=lambda: now[0], routing="round-robin")
        house["a"].dead = True
        for stream in (False, True):
            assert (await house.chat(stream=stream)).status_code == 200
        assert (house["a"].calls, house["b"].calls) == (1, 2)  # asked once, then avoided

        house["a"].dead = False
        now[0] = 2.5  # the first time out is over
        for _ in range(2):
            await house.chat()
        assert house["a"].calls == 2
        assert house.gateway.load()["qwen"]["ongoing"] == 0

    asyncio.run(main())


def test_a_replica_lost_in_mid_stream_ends_the_stream_with_an_error_and_no_done():
    async def main():
        house = House("a", "b", routing="round-robin")
        house["a"].dies_after = 2
        said = events(await house.chat(stream=True))
        assert [json.loads(event).get("piece") for event in said[:2]] == ["a", "b"]
        assert json.loads(said[2])["error"]["code"] == "replica_lost"
        assert len(said) == 3
        assert house["b"].calls == 0

    asyncio.run(main())


def test_says_come_back_when_no_replica_is_there_and_counts_who_was_turned_away():
    async def main():
        now = [0.0]
        house = House(clock=lambda: now[0])
        response = await house.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_replica")
        assert int(response.headers["retry-after"]) >= 1
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "queued": 1}
        now[0] = 11.0
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "queued": 0}

    asyncio.run(main())


def test_the_last_replica_being_gone_is_a_503_not_a_failure():
    async def main():
        house = House("a")
        house["a"].dead = True
        assert (await house.chat()).status_code == 503
        assert (await house.chat()).headers["retry-after"] == "2"
        assert house["a"].calls == 1

    asyncio.run(main())


def test_refuses_with_429_beyond_max_ongoing_of_every_replica_and_serves_again_after():
    async def main():
        house = House("a", "b", max_ongoing=2)
        gate = house["a"].hold = house["b"].hold = asyncio.Event()
        held = [asyncio.create_task(house.chat()) for _ in range(4)]
        await until(lambda: house["a"].calls + house["b"].calls == 4)
        assert house["a"].calls == 2  # never more than its bound on one replica
        assert house.gateway.load()["qwen"]["ongoing"] == 4
        full = await house.chat()
        assert (full.status_code, full.json()["error"]["code"], full.headers["retry-after"]) == (429, "full", "1")
        gate.set()
        assert [r.status_code for r in await asyncio.gather(*held)] == [200] * 4
        assert (await house.chat()).status_code == 200
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "queued": 1}

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_slot_in_the_replica(stream):
    async def main():
        house = House("a", max_ongoing=1)
        house["a"].hold = asyncio.Event()
        body = json.dumps({"model": "qwen", "stream": stream}).encode()
        inbox = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", AUTH["Authorization"].encode())],
        }
        request = asyncio.create_task(house.gateway(scope, inbox.get, send))
        await until(lambda: house["a"].calls == 1 and (not stream or len(sent) == 2))
        inbox.put_nowait({"type": "http.disconnect"})
        await request  # returns quietly
        await until(lambda: house["a"].cancelled == 1 and house.gateway.load()["qwen"]["ongoing"] == 0)
        assert house.seen == [("qwen", "chat/completions", 499)]
        house["a"].hold = None
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


def test_a_new_table_takes_effect_and_leaves_requests_in_flight_alone():
    async def main():
        house = House("a", "b", routing="round-robin")
        house["a"].hold = asyncio.Event()
        held = asyncio.create_task(house.chat())
        await until(lambda: house["a"].calls == 1)
        house.table["models"]["qwen"]["replicas"] = [{"app": "b"}]
        house.gateway.route({**house.table, "version": 4})
        for _ in range(3):
            assert (await house.chat()).json()["replica"] == "b"
        house["a"].hold.set()
        assert (await held).json()["replica"] == "a"
        assert house.gateway.version == 4

    asyncio.run(main())


def test_a_bad_table_changes_nothing():
    async def main():
        house = House("a")
        bad = json.loads(json.dumps(house.table))
        bad["version"], bad["models"]["qwen"]["routing"] = 9, "by-mood"
        with pytest.raises(ValueError, match="by-mood"):
            house.gateway.route(bad)
        assert house.gateway.version == 3
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


class Stubborn(Echo):
    """Goes on with a request although its client has left, until it is let go: as a call that blocks in a thread."""

    def __init__(self, name):
        super().__init__(name)
        self.let_go = asyncio.Event()

    async def call(self, route, body, adapter):
        self.calls += 1
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.let_go.wait()
            raise
        return {}

    async def stream(self, route, body, adapter):
        yield {"piece": "first"}
        await self.call(route, body, adapter)


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_counts_until_its_replica_lets_go_although_its_client_has_left(streams):
    async def main():
        house = House("a", max_ongoing=2)
        stubborn = house.gateway._pools["qwen"]._slots["a"].replica = Stubborn("a")
        left = [asyncio.create_task(house.chat(stream=streams)) for _ in range(2)]
        await until(lambda: stubborn.calls == 2)
        for request in left:
            request.cancel()
        await until(lambda: stubborn.cancelled == 2)
        assert house.gateway.load()["qwen"]["ongoing"] == 2
        refused = await house.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "full")
        assert refused.headers["retry-after"] == "1"
        stubborn.let_go.set()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 0)
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_takes_too_long_is_answered_504_and_holds_its_slot_until_it_ends(streams):
    async def main():
        house = House("a", max_ongoing=1, timeout_s=0.01)
        stubborn = house.gateway._pools["qwen"]._slots["a"].replica = Stubborn("a")
        response = await house.chat(stream=streams)
        error = json.loads(events(response)[-1])["error"] if streams else response.json()["error"]
        assert (response.status_code, error["code"]) == (200 if streams else 504, "timeout")
        assert error["message"].startswith("The answer took longer than the 0.01 s")
        await until(lambda: stubborn.cancelled == 1)
        assert (await house.chat()).status_code == 429
        stubborn.let_go.set()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 0)

    asyncio.run(main())
