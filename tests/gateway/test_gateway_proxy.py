"""The proxy in front of the gateway: a token works at endpoints, and nobody behind the proxy ever sees it.

On the loop that it has in its process, which holds back what it reads in other moments than asyncio's own.
"""

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import httpx
import pytest
import uvloop
from gateway_house import House, until
from test_gateway_connections import served
from waiting import PATIENCE_S
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from llmsched.gateway import proxy
from llmsched.spec.endpoint_keys import key_of

TOKEN = "llms_abcd_" + "0" * 64
AUTH = {"Authorization": f"Bearer {TOKEN}"}
HOST = b"Host: endpoint\r\n"
IN_CAPITALS = b"AUTHORIZATION:bearer " + TOKEN.encode() + b"\r\n"
SHOWN = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"


def house(*names):
    """A gateway that knows the token's key, and the token not at all."""
    models = ["qwen", "desk"]
    keys = [{"id": "t", "sha256": hashlib.sha256(key_of(TOKEN).encode()).hexdigest(), "models": models}]
    return House(*names, keys=keys)


@asynccontextmanager
async def in_front(home, place):
    """A proxy of the gateway at `place`, or of none; its address."""
    if place is not None:
        (home / proxy.GATEWAY).write_text(json.dumps(place))
    listener, stop = proxy.listening_socket(0), asyncio.Event()
    serving = asyncio.create_task(proxy.serve(home, listener, stop))
    try:
        yield listener.getsockname()
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def asked(home, house):
    async with served(house) as place, in_front(home, place) as there, client_of(there) as client:
        yield client


def client_of(place):
    return httpx.AsyncClient(base_url=f"http://{place[0]}:{place[1]}", headers=AUTH)


class Recorder:
    """In the gateway's place: what is written to it, of all connections."""

    def __init__(self):
        self.heard = b""
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    @asynccontextmanager
    async def listening(self):
        async def hear(reader, writer):
            with suppress(ConnectionError):
                while piece := await reader.read(1 << 16):
                    self.heard += piece
                    writer.write(self.answer)
            writer.close()

        async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()


def sent(home, *pieces, recorder=None):
    """What the gateway hears of these bytes on one connection, and what is answered until it is closed."""
    recorder = recorder or Recorder()

    async def main():
        async with recorder.listening() as place, in_front(home, place) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            answered = b""
            for piece in pieces:
                writer.write(piece)
                answered += await reader.read(1 << 16)
            writer.close()
            return answered

    return uvloop.run(main()), recorder.heard


@pytest.mark.parametrize("shown", [TOKEN, key_of(TOKEN)], ids=["token", "key"])
def test_a_token_asks_as_its_key_does(tmp_path, shown):
    async def main():
        async with asked(tmp_path, house("a")) as client:
            answer = await client.post(
                "/v1/chat/completions", json={"model": "qwen"}, headers={"Authorization": f"Bearer {shown}"}
            )
            assert (answer.status_code, answer.json()["replica"]) == (200, "a")
            models = await client.get("/v1/models")
            assert [one["id"] for one in models.json()["data"]] == ["qwen", "qwen:sql"]

    uvloop.run(main())


@pytest.mark.parametrize("shown", ["Bearer llms_other_1", "Bearer something else", "Basic YTpi", "Bearer", ""])
def test_who_shows_neither_is_refused_by_the_gateway(tmp_path, shown):
    async def main():
        async with asked(tmp_path, house("a")) as client:
            answer = await client.get("/v1/models", headers={"Authorization": shown})
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")

    uvloop.run(main())


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/models HTTP/1.1\r\n" + HOST + SHOWN + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + SHOWN + SHOWN + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + IN_CAPITALS + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + SHOWN.replace(b"Bearer", b"Token") + b"\r\n",
        b"GET /v1/models HTTP/1.0\r\n" + SHOWN + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + SHOWN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + SHOWN + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + SHOWN + b"\r\n",
    ],
    ids=["once", "twice", "in capitals", "as something else", "old", "websocket", "in a trailer"],
)  # fmt: skip
def test_the_token_never_passes(tmp_path, request_):
    _, heard = sent(tmp_path, request_)
    assert TOKEN.encode() not in heard and b"HTTP/1." in heard


def test_the_next_request_of_a_connection_is_read_as_the_first_was(tmp_path):
    """Also in one piece with it, after a body of either kind, and where another protocol was asked for in vain."""
    asks = b"POST /v1/apps/desk HTTP/1.1\r\n" + HOST + SHOWN
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    _, heard = sent(
        tmp_path,
        asks + b"Content-Length: 5\r\n\r\nhello" + asks + b"Content-Length: 3\r\n\r\nyou",
        asks + upgrade + b"Content-Length: 5\r\n\r\nthere" + asks + b"Transfer-Encoding: chunked\r\n\r\n3\r\nand\r\n",
        b"4\r\nmore\r\n0\r\n\r\n" + asks + b"Content-Length: 0\r\n\r\n",
    )
    assert TOKEN.encode() not in heard
    assert heard.count(b"POST /v1/apps/desk HTTP/1.1\r\n") == heard.count(key_of(TOKEN).encode()) == 5
    assert b"pgrade" not in heard and b"HTTP2-Settings" not in heard
    assert b"\r\n\r\nhello" in heard and b"\r\n\r\nthere" in heard
    assert heard.count(b"3\r\nand\r\n4\r\nmore\r\n0\r\n\r\n") == 1


def test_what_follows_a_websocket_that_was_refused_goes_nowhere(tmp_path):
    """It could be the next request, with its token."""
    asks = b"GET / HTTP/1.1\r\n" + HOST + SHOWN
    answered, heard = sent(tmp_path, asks + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + asks + b"\r\n")
    assert heard.count(b"HTTP/1.1") == 1 and answered.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n " + SHOWN + b"\r\n", 400),
        (b"GET / HTTP/1.1\n" + SHOWN + b"\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT endpoint:80 HTTP/1.1\r\n" + HOST + SHOWN + b"\r\n", 405),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * (proxy.HEAD_BYTES + 1), 431),
    ],
    ids=["folded", "without CR", "HTTP/2", "CONNECT", "two lengths", "too long"],
)
def test_what_is_no_request_gets_no_further(tmp_path, request_, status):
    answered, heard = sent(tmp_path, request_)
    assert answered.startswith(b"HTTP/1.1 %d " % status) and not heard
    assert json.loads(answered.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("second", "status", "waits"),
    [
        (b"this is nothing\r\n\r\n", 400, True),
        (b"this is nothing\r\n\r\n", 400, False),
        (b"CONNECT endpoint:80 HTTP/1.1\r\n" + HOST + b"\r\n", 405, False),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * (proxy.HEAD_BYTES + 1), 431, True),
    ],
    ids=["later", "in one piece", "CONNECT", "too long"],
)
def test_what_is_no_second_request_is_refused_after_the_answer_to_the_first(tmp_path, second, status, waits):
    """Before, nothing was said, and the connection stayed until the gateway's time was over."""
    first = b"GET /v1/models HTTP/1.1\r\n" + HOST + SHOWN + b"\r\n"

    async def main():
        async with served(house("a")) as place, in_front(tmp_path, place) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(first if waits else first + second)
            answered = await reader.readuntil(b"]}") if waits else b""
            if waits:
                writer.write(second)
            answered += await reader.read()  # until it is closed
            writer.close()
        ok, _, refused = answered.partition(b"HTTP/1.1 %d " % status)
        assert ok.startswith(b"HTTP/1.1 200 ") and ok.endswith(b"]}")
        assert b"connection: close" in refused
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"

    uvloop.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_body_that_cannot_be_read_on_is_refused_unless_an_answer_has_begun(tmp_path):
    async def main():
        bad = b"POST /v1/apps/desk HTTP/1.1\r\n" + HOST + SHOWN + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"
        async with served(house("a")) as place, in_front(tmp_path, place) as (host, port):
            for first, status in ((b"", b"400"), (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n", b"200")):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(first)
                answered = await reader.readuntil(b"}") if first else b""
                writer.write(bad)
                answered += await reader.read()
                writer.close()
                assert answered.startswith(b"HTTP/1.1 " + status) and answered.count(b"HTTP/1.1 ") == 1

    uvloop.run(asyncio.wait_for(main(), PATIENCE_S))


def test_pieces_of_a_stream_come_as_they_are_made_and_whoever_leaves_ends_it(tmp_path):
    async def main():
        there = house("a")
        there["a"].hold = asyncio.Event()
        async with asked(tmp_path, there) as client:
            body = {"model": "qwen", "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert json.loads((await anext(answer.aiter_lines()))[6:])["piece"] == "a"
            await until(lambda: there["a"].cancelled == 1)

    uvloop.run(main())


def test_a_large_body_arrives_whole_however_it_is_sent(tmp_path):
    async def main():
        async with asked(tmp_path, house("a")) as client:
            body = bytes(range(65, 91)) * 100_000

            async def pieces():
                for at in range(0, len(body), 70_001):
                    yield body[at : at + 70_001]

            for content in (body, pieces()):
                answer = await client.put("/v1/apps/desk/file", content=content)
                assert answer.json()["body"].encode() == body

    uvloop.run(main())


def test_a_caller_who_does_not_read_holds_up_the_app_and_not_the_memory_of_the_proxy(tmp_path, monkeypatch):
    made = []

    class Seen(proxy.Gateway):
        def __init__(self, caller):
            super().__init__(caller)
            made.append(self)

    monkeypatch.setattr(proxy, "Gateway", Seen)

    async def main():
        recorder = Recorder()
        recorder.answer = b"x" * (64 << 20)
        async with recorder.listening() as place, in_front(tmp_path, place) as (host, port):
            reader, writer = await asyncio.open_connection(host, port, limit=1 << 10)
            writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            await reader.read(1)
            (gateway,) = made
            await until(lambda: not gateway.transport.is_reading())
            assert gateway._caller._transport.get_write_buffer_size() < 4 << 20
            got = 1
            while got < len(recorder.answer):
                got += len(await reader.read(1 << 20))
            writer.close()

    uvloop.run(main())


def test_a_websocket_goes_both_ways(tmp_path):
    async def main():
        there = house("a")

        async def app(asked, incoming):
            yield [{"type": "websocket.accept"}]
            async for message in incoming:
                if message["type"] != "websocket.receive":
                    return
                yield [{"type": "websocket.send", "text": message["text"].upper()}]

        there["a"].app = app
        async with served(there) as place, in_front(tmp_path, place) as (host, port):
            async with connect(f"ws://{host}:{port}/v1/apps/desk", additional_headers=AUTH) as socket:
                await socket.send("hello")
                assert await socket.recv() == "HELLO"
            with pytest.raises(InvalidStatus, match="401"):
                await connect(f"ws://{host}:{port}/v1/apps/desk")

    uvloop.run(main())


def test_without_a_gateway_everybody_is_told_to_ask_again_and_a_new_one_is_found(tmp_path):
    async def main():
        async with in_front(tmp_path, None) as there, client_of(there) as client:
            for _ in range(2):
                answer = await client.post("/v1/chat/completions", json={"model": "qwen"})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["error"]["code"] == "starting"
            async with served(house("a")) as place:
                (tmp_path / proxy.GATEWAY).write_text(json.dumps(place))
                answer = await client.post("/v1/chat/completions", json={"model": "qwen"})
                assert answer.status_code == 200

    uvloop.run(main())


def test_a_request_waits_for_a_gateway_that_is_just_made_anew(tmp_path, monkeypatch):
    """Before, each of them failed until it was there."""

    async def main():
        async with (
            served(house("a")) as place,
            in_front(tmp_path, ("127.0.0.1", 1)) as there,
            client_of(there) as client,
        ):
            asked = asyncio.create_task(client.post("/v1/chat/completions", json={"model": "qwen"}))
            await until(lambda: not asked.done() and refused)
            (tmp_path / proxy.GATEWAY).write_text(json.dumps(place))
            assert (await asked).status_code == 200

    refused = []
    connects = asyncio.BaseEventLoop.create_connection

    async def seen(self, *arguments, **more):
        try:
            return await connects(self, *arguments, **more)
        except ConnectionRefusedError:
            refused.append(arguments)
            raise

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", seen)
    asyncio.run(main())  # uvloop's cannot be looked into


def test_silent_connections_end_when_the_gateway_ends_them(tmp_path, monkeypatch):
    from llmsched import connections

    monkeypatch.setattr(connections, "WAIT_AT_MOST_S", 0.05)
    monkeypatch.setattr(proxy, "ASKS_WITHIN_S", 0.05)
    monkeypatch.setattr(proxy, "BACK_WITHIN_S", 0.05)

    async def main():
        async with served(house("a")) as place:
            for there in (place, ("127.0.0.1", 1)):
                async with in_front(tmp_path, there) as (host, port):
                    reader, writer = await asyncio.open_connection(host, port)
                    writer.write(b"GET / HTTP/1.1\r\n")
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
                    writer.close()

    uvloop.run(main())


@pytest.mark.parametrize("part", [b"0\r\nX: ", b"2;"], ids=["trailer", "extension"])
def test_a_body_is_followed_by_no_more_than_a_head_may_be(tmp_path, part):
    """Of a trailer httptools keeps all until it ends, so one without end would fill the memory."""
    caller = proxy.Caller(tmp_path)
    caller._is_away, caller._has_asked, caller._is_answered = False, True, True
    caller._transport = SimpleNamespace(get_write_buffer_size=lambda: 0, close=lambda: None)
    caller._gateway = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: True))
    caller.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n" + part)
    for _ in range(proxy.HEAD_BYTES // 1024):
        assert not caller._is_over
        caller.data_received(b"x" * 1024)
    caller.data_received(b"x")
    assert caller._is_over


def test_any_number_of_requests_at_once_may_ask_for_a_protocol_that_nobody_here_speaks(tmp_path):
    count = 3000
    one = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    caller, heard = proxy.Caller(tmp_path), []
    caller._gateway = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: False, writelines=heard.extend))
    caller.data_received(one * count)
    assert heard == [b"GET / HTTP/1.1\r\n\r\n"] * count


def test_a_caller_who_reads_nothing_does_not_stay(tmp_path, monkeypatch):
    """The proxy does not read the gateway meanwhile, and so would not see that this has hung up long ago."""
    monkeypatch.setattr(proxy, "STALLS_AT_MOST_S", 0.2)
    ended = asyncio.Event()

    async def pour(reader, writer):
        await reader.read(1 << 16)
        with suppress(ConnectionError):
            while True:
                writer.write(b"x" * (1 << 16))
                await writer.drain()
        ended.set()

    async def main():
        async with await asyncio.start_server(pour, "127.0.0.1", 0) as server:
            place = list(server.sockets[0].getsockname())
            async with in_front(tmp_path, place) as (host, port):
                _, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await asyncio.wait_for(ended.wait(), PATIENCE_S)
                writer.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    ("shown", "told"),
    [({"Authorization": f"Bearer {key_of(TOKEN)}"}, (413, "request_too_large")), ({}, (401, "missing_api_key"))],
    ids=["a key", "no key"],
)
@pytest.mark.parametrize("through", ["proxy", "gateway"])
def test_who_writes_more_than_may_be_is_told_so_before_the_connection_ends(tmp_path, through, shown, told):
    """Of a client that wants the connection closed, as urllib does: it was reset while the client was writing."""
    body = b" " * (40 << 20)

    def ask(place):
        asked = urllib.request.Request(f"http://{place[0]}:{place[1]}/v1/completions", body, shown)
        with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(asked, timeout=PATIENCE_S):
            pass
        return caught.value.code, json.loads(caught.value.read())["error"]["code"]

    async def main():
        async with served(house("a")) as behind, in_front(tmp_path, behind) as before:
            assert await asyncio.to_thread(ask, before if through == "proxy" else behind) == told

    uvloop.run(main())
