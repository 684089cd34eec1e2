"""Apps through the gateway: what reaches them, what of their answers reaches a client, and websockets."""

import asyncio
import contextlib
import json
import socket

import pytest
from gateway_house import AUTH, KEY, House
from waiting import PATIENCE_S
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llmsched.gateway import apps, front
from llmsched.gateway.server import web_server
from llmsched.runtime.in_hand import LOST

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
WHOLE = {"type": "http.response.body", "body": b"done"}


def sends(house, *batches):
    """Let the app of `house` answer with these."""

    async def app(asked, incoming):
        for batch in batches:
            yield batch

    house["a"].app = app
    return house


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_method_and_path_reaches_the_app_and_the_key_does_not(method):
    async def main():
        headers = {**AUTH, "x-mine": "1", "serve_multiplexed_model_id": "m7", "connection": "keep-alive"}
        path = "/v1/apps/desk/items/a%20b?q=1&q=2"
        answer = await House("a").ask(method, path, headers=headers, content=b"\x01")
        told = answer.json()
        assert (told["method"], told["root_path"]) == (method, "/v1/apps/desk")
        assert (told["path"], told["query"], told["body"]) == ("/v1/apps/desk/items/a b", "q=1&q=2", "\x01")
        assert told["multiplexed"] == "m7"
        assert "x-mine" in told["headers"] and not {"authorization", "connection"} & set(told["headers"])
        assert KEY not in answer.text

    asyncio.run(main())


def test_the_name_alone_is_the_apps_first_page():
    assert asyncio.run(House("a").ask("GET", "/v1/apps/desk")).json()["path"] == "/v1/apps/desk/"


def test_an_answer_keeps_its_status_headers_and_pieces_and_hop_by_hop_headers_stay():
    async def main():
        headers = [(b"X-A", b"b"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"Connection", b"close")]
        start = {**START, "status": 418, "headers": headers}
        pieces = [{"type": "http.response.body", "body": b"a", "more_body": True}, {"type": "http.response.body"}]
        house = sends(House("a"), [start], pieces)
        answer = await house.ask("GET", "/v1/apps/desk")
        assert (answer.status_code, answer.content, answer.headers["x-a"]) == (418, b"a", "b")
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"] and "connection" not in answer.headers
        assert house.seen == [("support-desk", "app", 418)]

    asyncio.run(main())


def test_a_replica_that_has_lost_a_process_sends_the_request_to_another_one():
    """Its own answer would have been an error for as long as nobody had looked at its health."""
    lost = {"error": {"message": "lost", "type": "server_error", "param": None, "code": LOST}, "status": 503}

    async def main():
        house = sends(House("a", "b"), lost)
        answers = [await house.ask("GET", "/v1/apps/desk") for _ in range(4)]
        assert [(one.status_code, one.json()["replica"]) for one in answers] == [(200, "b")] * 4

    asyncio.run(main())


@pytest.mark.parametrize(
    "batch",
    [
        [{**START, "status": 99}],
        [{**START, "headers": [(b"a", b"b\r\nset-cookie: c")]}],
        [{**START, "headers": "x"}],
        [WHOLE],
        [{"type": "lifespan.startup.complete"}],
        "text",
        [None],
    ],
)
def test_what_is_no_http_is_a_502_and_reaches_no_client(batch):
    answer = asyncio.run(sends(House("a"), batch).ask("GET", "/v1/apps/desk"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad_answer")


def test_an_error_in_the_place_of_an_answer_keeps_its_status_and_one_in_a_stream_of_events_is_its_last():
    async def main():
        full = {"error": {"message": "full", "type": "t", "param": None, "code": "full"}, "status": 429}
        answer = await sends(House("a"), full).ask("GET", "/v1/apps/desk")
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (429, "full", "1")
        events = {**START, "headers": [(b"content-type", b"text/event-stream")]}
        piece = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
        answer = await sends(House("a"), [events, piece], full).ask("GET", "/v1/apps/desk")
        one, last = answer.text.strip().split("\n\n")
        assert one == "data: 1" and json.loads(last.removeprefix("data: "))["error"]["code"] == "full"

    asyncio.run(main())


async def counts(asked, incoming):
    """An app that says in which pieces a body came."""
    sizes, is_more = [len(asked["body"])], asked["more_body"]
    if is_more:
        yield []
        async for message in incoming:
            sizes.append(len(message["body"]))
            is_more = message["more_body"]
    assert not is_more
    yield [START, {"type": "http.response.body", "body": json.dumps(sizes).encode()}]


def test_a_body_of_any_size_reaches_the_app_in_pieces_and_only_the_first_is_held_whole(monkeypatch):
    """50 MB for an app of Serve, which has no bound, were 413."""
    monkeypatch.setattr(apps, "HELD_BYTES", 3_000)
    monkeypatch.setattr(apps, "PIECE_BYTES", 2_000)

    async def client():
        for _ in range(apps.AHEAD * 3):  # more than waits for the app
            yield b"x" * 1_000

    async def main():
        house = House("a")
        house["a"].app = counts
        assert (await house.ask("POST", "/v1/apps/desk", content=b"x" * 3_000)).json() == [3_000]
        sizes = (await house.ask("POST", "/v1/apps/desk", content=client())).json()
        assert sum(sizes) == apps.AHEAD * 3_000 and sizes[0] == 4_000 and max(sizes) == 4_000

    asyncio.run(main())


def test_a_client_that_stops_in_the_middle_of_a_long_body_is_told_so_and_its_request_ends(monkeypatch):
    monkeypatch.setattr(apps, "HELD_BYTES", 1_000)
    monkeypatch.setattr(front, "BODY_TIMEOUT_S", 0.05)
    stopped = asyncio.Event()

    async def client():
        yield b"x" * 2_000
        await stopped.wait()

    async def main():
        house = House("a")
        house["a"].app = counts
        answer = await house.ask("POST", "/v1/apps/desk", content=client())
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")

    asyncio.run(main())


def test_requests_for_one_multiplexed_model_go_to_one_replica_while_it_has_room():
    async def main():
        house = House("a", "b", "c")
        asked = {}
        for model in "0123456789":
            headers = {**AUTH, "serve-multiplexed-model-id": model}
            answers = [await house.ask("GET", "/v1/apps/desk", headers=headers) for _ in range(3)]
            asked[model] = {answer.json()["replica"] for answer in answers}
        assert {len(one) for one in asked.values()} == {1}
        assert len(set.union(*asked.values())) > 1

    asyncio.run(main())


def test_what_an_app_does_after_its_answer_is_not_ended_by_a_client_that_has_it():
    async def main():
        house, went_on, goes = House("a"), asyncio.Event(), asyncio.Event()

        async def app(asked, incoming):
            yield [START, WHOLE]
            await goes.wait()
            went_on.set()

        house["a"].app = app
        seen, sent, has_it = [{"type": "http.request", "body": b""}], asyncio.Queue(), asyncio.Event()

        async def receive():
            if seen:
                return seen.pop()
            await has_it.wait()
            return {"type": "http.disconnect"}

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/v1/apps/desk", "query_string": b"", "headers": headers}
        request = asyncio.create_task(house.gateway(scope, receive, sent.put))
        assert [(await sent.get())["type"], (await sent.get())["body"]] == ["http.response.start", b"done"]
        has_it.set()
        assert house.gateway.load()["support-desk"]["ongoing"] == 1  # its slot is taken until the app has ended
        goes.set()
        await request
        assert went_on.is_set() and house.gateway.load()["support-desk"]["ongoing"] == 0

    asyncio.run(main())


# --- websockets, over real connections ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(house):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        web = web_server(house.gateway)
        serving = asyncio.create_task(web.serve(sockets=[listening]))
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/v1/apps/desk"
        web.should_exit = True
        await serving


def talker(house):
    """An app that says everything in capitals, and what it heard."""
    heard = []

    async def app(asked, incoming):
        yield [{"type": "websocket.accept", "subprotocol": (asked["subprotocols"] or [None])[0]}]
        async for message in incoming:
            heard.append(message)
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "bye":
                yield [{"type": "websocket.close", "code": 4001, "reason": "as asked"}]
                return
            yield [{"type": "websocket.send", "text": message["text"].upper()}]

    house["a"].app = app
    return heard


def test_a_websocket_goes_both_ways_and_the_app_hears_of_its_end():
    async def main():
        house = House("a")
        heard = talker(house)
        async with served(house) as url:
            async with connect(f"{url}/talk", additional_headers=AUTH, subprotocols=["chat"]) as client:
                assert client.subprotocol == "chat"
                for word in ("one", "two"):
                    await client.send(word)
                    assert await client.recv() == word.upper()
            async with asyncio.timeout(PATIENCE_S):
                while not house.seen:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert heard[-1]["type"] == "websocket.disconnect"
            assert house.seen == [("support-desk", "app", 101)]
            async with connect(url, additional_headers=AUTH) as client:
                await client.send("bye")
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert (client.close_code, client.close_reason) == (4001, "as asked")

    asyncio.run(main())


def test_an_app_that_takes_no_websocket_says_why():
    async def main():
        house = House("a")

        async def app(asked, incoming):
            yield [{"type": "websocket.close", "code": 1003, "reason": "JSON by POST alone"}]

        house["a"].app = app
        async with served(house) as url:
            with pytest.raises(InvalidStatus) as refused:
                async with connect(url, additional_headers=AUTH):
                    raise AssertionError("it is open")
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body)["error"]["message"] == "JSON by POST alone"

    asyncio.run(main())


def test_a_websocket_is_refused_with_a_status_before_it_is_open_and_ends_with_its_key():
    async def main():
        house = House("a")
        talker(house)
        async with served(house) as url:
            elsewhere = url.replace("apps/desk", "chat/completions")
            for headers, place, status in (({}, url, 401), (AUTH, f"{url}x", 404), (AUTH, elsewhere, 404)):
                with pytest.raises(InvalidStatus) as refused:
                    async with connect(place, additional_headers=headers):
                        raise AssertionError("it is open")
                assert refused.value.response.status_code == status
                assert json.loads(refused.value.response.body)["error"]["code"]
            async with connect(url, additional_headers=AUTH) as client:
                house.gateway.route({**house.table, "keys": []})
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == 1008 and "key" in client.close_reason

    asyncio.run(main())


@pytest.mark.parametrize("form", [False, True])
def test_a_route_of_openai_that_no_model_answers_is_the_named_apps(form):
    async def main():
        files = {"model": (None, "desk"), "image": ("a.png", b"PNG", "image/png")}
        asked = {"files": files} if form else {"json": {"model": "desk", "input": "hello"}}
        path = "/v1/images/edits" if form else "/v1/audio/speech"
        house = House("a")
        told = (await house.ask(path=path, **asked)).json()
        assert (told["root_path"], told["path"]) == ("/v1/apps/desk", f"/v1/apps/desk/{path.removeprefix('/v1/')}")
        assert ("PNG" in told["body"]) if form else json.loads(told["body"]) == asked["json"]
        assert "authorization" not in told["headers"] and house.seen == [("support-desk", "app", 200)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("POST", {"model": "qwen"}, 404, "not_supported"),  # a model does not speak
        ("POST", {"model": "none"}, 404, "app_not_found"),
        ("POST", {"input": "hello"}, 400, "missing_model"),
        ("POST", [], 400, "invalid_json"),
        ("GET", None, 405, "method_not_allowed"),
    ],
)
def test_who_names_no_app_there_is_told(method, body, status, code):
    answer = asyncio.run(House("a").ask(method, "/v1/audio/speech", json=body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
