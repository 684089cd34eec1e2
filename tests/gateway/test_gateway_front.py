"""What the gateway answers, to whom and under which names. Replicas are plain objects, without Ray."""

import asyncio
import hashlib
import json

import httpx
import pytest
from gateway_house import AUTH, KEY, Echo, House, events

from llmsched.gateway import front
from llmsched.gateway.front import Gateway


def test_answers_what_a_replica_answers():
    async def main():
        house = House("a")
        response = await house.chat(messages=[])
        assert response.status_code == 200
        assert response.json() == {"replica": "a", "route": "chat/completions", "adapter": None}
        assert house.seen == [("qwen", "chat/completions", 200)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("route", "task"),
    [
        ("completions", "causal-lm"),
        ("embeddings", "feature-extraction"),
        ("classify", "sequence-classification"),
    ],
)
def test_each_path_reaches_its_route(route, task):
    answer = asyncio.run(House("a", task=task).ask(path=f"/v1/{route}", json={"model": "qwen"}))
    assert answer.json()["route"] == route


def test_an_app_is_asked_by_its_workloads_name():
    response = asyncio.run(House("a").ask(path="/v1/apps/support-desk", json={"anything": 1}))
    assert json.loads(response.json()["body"]) == {"anything": 1}


@pytest.mark.parametrize("shown", ["", "Bearer wrong", f"Basic {KEY}", "Bearer llms_12_wrong"])
def test_refuses_whoever_has_no_good_key(shown):
    headers = {"Authorization": shown} if shown else {}
    response = asyncio.run(House("a").ask(headers=headers, json={"model": "qwen"}))
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert "wrong" not in response.text
    assert ("llmsched token key" in response.text) is ("llms_" in shown)  # a token of the API, which has a key


def test_health_needs_no_key_and_nothing_is_served_before_a_table_came(monkeypatch):
    monkeypatch.setattr(front, "TABLE_WITHIN_S", 0.01)

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


def test_an_adapter_that_a_replica_refused_says_why_each_time_and_another_of_that_name_answers():
    async def main():
        why = "adapter tall: it is of another base"
        house = House("a", refused={"tall": why})
        for name in ("qwen:tall", "tall", "tall"):
            refused = await house.ask(json={"model": name})
            assert refused.status_code == 400 and "retry-after" not in refused.headers
            error = {"message": why, "type": "invalid_request_error", "param": "model", "code": "adapter_not_loaded"}
            assert refused.json()["error"] == error
        assert "tall" not in (await house.ask("GET", "/v1/models")).text
        assert not house["a"].calls
        house.table["models"]["other"] = {**house.table["models"]["qwen"], "adapters": {"tall": "s3://a/tall"}}
        house.table["models"]["other"].update(workload="other", refused={})
        house.table["keys"][0]["models"].append("other")
        house.gateway.route(house.table)
        assert (await house.ask(json={"model": "tall"})).json()["adapter"]["uri"] == "s3://a/tall"

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
        ({"content": b'{"model": "qwen", "model": "other"}'}, 400, "repeated_key"),
        ({"json": [1]}, 400, "invalid_json"),
        ({"json": {}}, 400, "missing_model"),
        ({"json": {"model": 7}}, 400, "missing_model"),
        ({"content": b" " * ((16 << 20) + 1)}, 413, "request_too_large"),
        ({"path": "/v1/images", "json": {}}, 404, "unknown_url"),
        (
            {"path": "/v1/audio/speech", "json": {"model": "qwen", "input": "hi", "voice": "alloy"}},
            404,
            "not_supported",
        ),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"path": "/v1/apps/none", "json": {}}, 404, "app_not_found"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(kwargs, status, code):
    response = asyncio.run(House("a").ask(**kwargs))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_name_of_megabytes_is_not_said_whole():
    answer = asyncio.run(House("a").ask(json={"model": "x" * (1 << 20)}))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "model_not_found") and len(answer.content) < 4000
    assert error["message"].startswith('There is no model "xx') and "Models here: qwen" in error["message"]


def test_what_failed_is_said_to_have_failed_to_who_may_ask_for_it():
    async def main():
        house = House("a")
        (key,) = house.table["keys"]
        of_it = {**key, "models": [*key["models"], "m7"]}
        house.gateway.route(house.table | {"version": 4, "keys": [of_it], "failed": {"m7": "breaks"}})
        for asked in (
            {"json": {"model": "breaks"}},
            {"json": {"model": "m7"}},
            {"json": {"model": "m7:sql"}},
            {"path": "/v1/apps/breaks/x", "method": "GET"},
            {"path": "/v1/images/generations", "json": {"model": "breaks", "prompt": "a cat"}},
        ):
            answer = await house.ask(**asked)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (404, "endpoint_failed")
            assert "llmsched why breaks" in error["message"]
        house.gateway.route(house.table | {"version": 5, "failed": {"m7": "breaks"}})
        answer = await house.ask(json={"model": "breaks"})
        assert answer.json()["error"]["code"] == "model_not_found", "of another's it is not said"

    asyncio.run(main())


TOO_LONG = {
    "error": {"message": "The prompt has 9 tokens", "type": "invalid_request_error", "param": "messages",
              "code": "context_length_exceeded"},
    "status": 400,
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "key", "status", "code", "param"),
    [
        (b"not JSON", KEY, 400, "invalid_json", None),
        (b"[1, 2]", KEY, 400, "invalid_json", None),
        (b'{"model": "qwen", "model": "qwen"}', KEY, 400, "repeated_key", None),
        (b'{"model": "qwen", "prompt": "\\ud800"}', KEY, 400, "invalid_json", None),
        (b'{"model": "qwen", "prompt": "\xed\xa0\x80"}', KEY, 400, "invalid_json", None),
        (b'{"model": "qwen", "stream": "yes"}', KEY, 400, "invalid_request", "stream"),
        ({}, KEY, 400, "missing_model", "model"),
        ({"model": "other"}, KEY, 404, "model_not_found", "model"),
        ({"model": "qwen"}, "of another model", 404, "model_not_found", "model"),  # a key without the model
        ({"model": "qwen"}, "of nobody", 401, "invalid_api_key", None),
        ({"model": "qwen", "prompt_is": "too long"}, KEY, 400, "context_length_exceeded", "messages"),
    ],
    ids=[
        "no JSON",
        "no object",
        "a key twice",
        "no text",
        "no text in bytes",
        "stream in words",
        "no model",
        "no such model",
        "not for this key",
        "no key",
        "too long",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_has_one_code_each_time_in_openais_form_whole_or_streamed(body, key, status, code, param, stream):
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in (KEY, "of another model")}
    keys = [
        {"id": "k", "sha256": digest[KEY], "models": ["qwen"]},
        {"id": "o", "sha256": digest["of another model"], "models": ["desk"]},
    ]
    if isinstance(body, dict):
        body = json.dumps({**body, "stream": stream}).encode()

    class LongPrompts(Echo):
        async def call(self, route, body, adapter):
            return TOO_LONG if "prompt_is" in body else await super().call(route, body, adapter)

        async def stream(self, route, body, adapter, incoming=None):
            if "prompt_is" in body:
                yield TOO_LONG
                return
            async for chunk in super().stream(route, body, adapter, incoming):
                yield chunk

    async def main():
        house = House("a", keys=keys)
        house.replicas["a"] = LongPrompts("a")
        house.gateway.route({**house.table, "models": {}})
        house.gateway.route(house.table)
        for _ in range(3):
            response = await house.ask(content=body, headers={"Authorization": f"Bearer {key}"})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (status, code, param)
            assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]

    asyncio.run(main())


def test_a_body_without_a_length_is_cut_off_at_the_limit():
    async def pieces():
        for _ in range(40):
            yield b" " * (1 << 15)

    response = asyncio.run(House("a").ask(path="/v1/completions", content=pieces()))
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

        body = b'{"error":{},"status":"all is well"}'

        async def app(asked, incoming):
            yield [{"type": "http.response.start", "status": 200}, {"type": "http.response.body", "body": body}]

        house["a"].app = app
        answer = await house.ask(path="/v1/apps/desk", json={})
        assert (answer.status_code, answer.content) == (200, body)

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
