"""Work finds the endpoints that it may call: at the gateway's port, or at a door of its own that leads there."""

import asyncio
import json
import urllib.error
import urllib.request

import httpx
import pytest
from ray.exceptions import RayActorError
from waiting import PATIENCE_S

from llmsched.errors import ClusterError, RequestError
from llmsched.gateway import limits
from llmsched.runtime import calls, calls_door, redaction


class FarGateway:
    """In the place of the gateway's actor: answers with what it was asked, in two pieces."""

    def __init__(self, dies=False):
        self.dies, self.hung_up, self.held = dies, [], asyncio.Event()

    def __getattr__(self, name):
        return Method(self, name)


class Method:
    def __init__(self, gateway, name):
        self.gateway, self.name = gateway, name

    def options(self, **more):
        assert more == {"num_returns": "streaming"}
        return self

    def remote(self, *given):
        if self.name == "hang_up":
            self.gateway.hung_up.append(given[0])
            return None
        return self.pieces(*given)

    async def pieces(self, name, scope, body):
        async def soon(value):
            return value

        if self.gateway.dies:
            raise RayActorError
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        yield soon([start, {"type": "http.response.body", "body": body, "more_body": True}])
        if scope["path"] == "/hold":
            await self.gateway.held.wait()
        yield soon([{"type": "http.response.body", "body": f" at {scope['path']}".encode()}])


def ask(gateway, path, body=b"x", find=None):
    async def story():
        door = calls_door.Door(find or (lambda: gateway))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://door") as client:
            return await client.post(path, content=body)

    return asyncio.run(story())


def test_a_door_passes_a_request_on_and_its_answer_back():
    gateway = FarGateway()
    answer = ask(gateway, "/v1/chat", b"hello")
    assert (answer.status_code, answer.text) == (200, "hello at /v1/chat")
    assert len(gateway.hung_up) == 1


def test_without_a_gateway_it_says_so_and_when_to_ask_again():
    def nobody():
        raise ValueError("no such actor")

    for answer in (ask(FarGateway(dies=True), "/v1/chat"), ask(None, "/v1/chat", find=nobody)):
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "unreachable"


def test_a_body_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(calls_door, "BODY_BYTES", 10)
    answer = ask(FarGateway(), "/v1/chat", b"x" * 11)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (413, "request_too_large", "invalid_request_error")
    assert "retry-after" not in answer.headers


def test_who_writes_more_than_may_be_is_told_so_before_the_connection_ends(monkeypatch):
    """Of a client that wants the connection closed, as urllib does: it was reset while the client was writing."""
    monkeypatch.setattr(calls_door, "_gateway", FarGateway)
    asked = urllib.request.Request(f"{calls_door.open_here()}/v1/completions", b" " * (40 << 20))
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(asked, timeout=PATIENCE_S):
        pass
    assert caught.value.code == 413


def test_what_any_route_of_the_gateway_takes_may_pass():
    assert max(limits.BODY_BYTES, limits.MEDIA_BYTES, limits.AUDIO_BYTES) <= calls_door.BODY_BYTES


def test_a_client_that_leaves_is_told_to_the_gateway():
    async def story():
        gateway = FarGateway()
        left, sent = asyncio.Event(), []
        came = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            if came:
                return came.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            left.set()

        scope = {"type": "http", "method": "POST", "path": "/hold", "headers": []}
        await calls_door.Door(lambda: gateway)(scope, receive, send)
        assert len(sent) <= 2 and len(gateway.hung_up) == 1

    asyncio.run(story())


def test_who_calls_nobody_gets_no_address():
    assert calls_door.envs_of({"spec": {"calls": []}}) == {} == calls_door.envs_of({"spec": {}})


def test_the_key_is_kept_out_of_logs():
    order = {"spec": {"calls": ["a"]}, "envs": {"LLMSCHED_CALLS_KEY": "call_0123456789"}}
    redaction.hide(order)
    try:
        assert redaction.clean("key call_0123456789") == "key ***"
    finally:
        redaction.hide({"spec": {}, "envs": {}})


def test_an_app_is_asked_with_json_and_refusals_are_errors(monkeypatch, httpserver_of):
    def answer(path, headers, body):
        assert headers["Authorization"] == "Bearer call_k"
        if path.endswith("/bad"):
            return 422, {"error": {"message": "no such field"}}
        if path.endswith("/ill"):
            return 500, {"detail": "x"}
        return 200, {"path": path, "got": json.loads(body)}

    monkeypatch.setenv("LLMSCHED_CALLS_URL", httpserver_of(answer))
    monkeypatch.setenv("LLMSCHED_CALLS_KEY", "call_k")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked
    assert calls.post("desk", {"a": 1}) == {"path": "/v1/apps/desk", "got": {"a": 1}}
    assert calls.post("desk", [2], "/sub")["path"] == "/v1/apps/desk/sub"
    with pytest.raises(RequestError, match="desk answered HTTP 422: no such field"):
        calls.post("desk", {}, "bad")
    with pytest.raises(ClusterError, match="desk answered HTTP 500"):
        calls.post("desk", {}, "ill")
    for client in (calls.openai(), calls.async_openai()):
        assert str(client.base_url) == f"{calls._place()}/v1/"


def test_models_are_asked_for_labels_and_for_texts_whole_or_piece_by_piece(monkeypatch, httpserver_of):
    ends = {"all": b"data: [DONE]\n\n", "cut": b"", "ill": b'data: {"error": {"message": "replica_lost"}}\n\n'}

    def answer(path, headers, body):
        asked = json.loads(body)
        if path == "/v1/classify":
            return 200, {"data": [{"index": 0, "label": "x", "of": asked["input"]}]}
        if not asked.get("stream"):
            return 200, {"choices": [{"message": {"content": f"{asked['max_tokens']} {asked['model']}"}}]}
        pieces = [
            {"choices": [{"delta": {"role": "assistant"}}]},
            *({"choices": [{"delta": {"content": one}}]} for one in "ab"),
        ]
        return 200, b": waiting\n\n" + b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in pieces) + ends[
            asked["model"]
        ]

    monkeypatch.setenv("LLMSCHED_CALLS_URL", httpserver_of(answer))
    monkeypatch.setenv("LLMSCHED_CALLS_KEY", "call_k")
    assert (
        calls.classify("intents", ["who?"])
        == calls.find("intents", ["who?"])
        == [{"index": 0, "label": "x", "of": ["who?"]}]
    )
    said = [{"role": "user", "content": "hi"}]
    assert calls.chat("assistant:tone", said, max_tokens=3) == "3 assistant:tone"
    assert list(calls.stream("all", said)) == ["a", "b"]
    for model, words in (("cut", "its stream has no end"), ("ill", "replica_lost")):
        pieces = calls.stream(model, said)
        assert [next(pieces), next(pieces)] == ["a", "b"]
        with pytest.raises(ClusterError, match=f"{model} broke off: {words}"):
            next(pieces)


def test_work_that_may_call_nobody_is_told_what_to_write(monkeypatch):
    monkeypatch.delenv("LLMSCHED_CALLS_URL", raising=False)
    with pytest.raises(RequestError, match=r"may call no endpoint.*calls: \[NAME\]"):
        calls.post("desk", {})


@pytest.fixture
def httpserver_of():
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, said = answer(self.path, self.headers, body)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
