"""Two gateways behind a proxy: one that is killed or hangs costs no request that has no answer yet."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop
from gateway_house import until
from test_gateway_connections import served
from test_gateway_proxy import HOST, SHOWN, client_of, house, in_front

from llmsched.gateway import proxy, upstreams
from llmsched.gateway.replay import Replay, Room

CHAT = {"model": "qwen"}
MANY = 12


class First:
    """Stands in for the gateway that serves: what it does with a request is the test's."""

    def __init__(self, act):
        self.act = act
        self.heard = []  # requests, without those for its health
        self.asking = []  # whose they are
        self.writers = []
        self.server = None

    @asynccontextmanager
    async def listening(self):
        async def hear(reader, writer):
            self.writers.append(writer)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while head := await reader.readuntil(b"\r\n\r\n"):
                    if b"/healthz" not in head:
                        self.heard.append(head)
                        self.asking.append(writer)
                    await self.act(self, head, writer)

        self.server = await asyncio.start_server(hear, "127.0.0.1", 0)
        try:
            yield self.server.sockets[0].getsockname()
        finally:
            self.die()

    def die(self):
        """As by kill -9: its port refuses, its connections are gone."""
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


async def dies(first, head, writer):
    if b"/healthz" not in head:
        first.die()


async def hangs(first, head, writer):
    await asyncio.Event().wait()


async def answers(first, head, writer):
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"first"')


@asynccontextmanager
async def two(home, act):
    """(the first gateway, which does `act`; the other; a client of the proxy)."""
    first, other = First(act), house("a")
    async with first.listening() as one, served(other) as two:
        (home / proxy.GATEWAY).write_text(json.dumps([one, two]))
        async with in_front(home, None) as there, client_of(there) as client:
            yield first, other, client


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(upstreams, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(upstreams, "ANSWERS_WITHIN_S", 0.5)


def test_what_a_killed_gateway_had_not_answered_the_other_one_answers(tmp_path):
    async def main():
        async with two(tmp_path, hangs) as (first, other, client):
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT)) for _ in range(MANY)]
            await until(lambda: len(first.heard) == MANY)
            first.die()
            answered = await asyncio.gather(*asked)
            assert [one.status_code for one in answered] == [200] * MANY
            assert other["a"].calls == MANY
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    uvloop.run(main())


def test_what_a_hung_gateway_has_not_answered_the_other_one_answers_and_new_requests_go_there(tmp_path, quick):
    async def main():
        async with two(tmp_path, hangs) as (first, other, client):
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT)) for _ in range(MANY)]
            assert [one.status_code for one in await asyncio.gather(*asked)] == [200] * MANY
            heard = len(first.heard)
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert len(first.heard) == heard

    uvloop.run(main())


def test_a_stream_that_has_begun_stays_with_a_gateway_that_hangs_for_it_may_go_on(tmp_path, quick):
    async def begins_once(first, head, writer):
        if len(first.heard) == 1 and b"/healthz" not in head:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")

    async def main():
        async with (
            two(tmp_path, begins_once) as (first, other, client),
            client.stream("POST", "/v1/chat/completions", json=CHAT) as answer,
        ):
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b"one"
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert other["a"].calls == 1
            first.asking[0].write(b"3\r\ntwo\r\n0\r\n\r\n")
            assert [piece async for piece in pieces] == [b"two"]

    uvloop.run(main())


def test_a_connection_with_nothing_to_answer_outlives_its_gateway(tmp_path):
    async def main():
        async with two(tmp_path, answers) as (first, _, client):
            for _ in range(3):
                assert (await client.get("/v1/models")).json() == "first"
            first.die()
            pool = client._transport._pool
            (connection,) = pool.connections
            assert (await client.post("/v1/chat/completions", json=CHAT)).json()["replica"] == "a"
            assert pool.connections == [connection]

    uvloop.run(main())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/apps/desk", 503), ("GET", "/v1/apps/desk", 200), ("PUT", "/v1/apps/desk", 200)],
)
def test_what_an_app_may_not_be_asked_twice_is_refused_in_words(tmp_path, method, path, status):
    async def main():
        async with two(tmp_path, dies) as (first, other, client):
            answer = await client.request(method, path, json={})
            assert (answer.status_code, len(first.heard)) == (status, 1)
            if status == 503:
                assert answer.json()["error"]["code"] == "gateway_lost"
                assert other["a"].calls == 0

    uvloop.run(main())


def test_a_request_that_ends_two_gateways_is_asked_of_no_third(tmp_path):
    async def main():
        first, second, third = First(dies), First(dies), First(answers)
        async with first.listening() as one, second.listening() as two, third.listening() as three:
            (tmp_path / proxy.GATEWAY).write_text(json.dumps([one, two, three]))
            async with in_front(tmp_path, None) as there, client_of(there) as client:
                answer = await client.post("/v1/chat/completions", json=CHAT)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_lost")
                assert not third.heard

    uvloop.run(main())


def test_a_body_is_asked_again_whole_also_what_comes_after_the_first_gateway_is_gone(tmp_path):
    body = json.dumps({**CHAT, "text": "x" * 300_000}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + SHOWN + b"Content-Length: %d\r\n\r\n" % len(body)

    async def main():
        first, other = First(hangs), First(answers)
        received = []

        async def whole(self, head, writer):
            received.append(head)
            await answers(self, head, writer)

        other.act = whole
        async with first.listening() as one, other.listening() as two, in_front(tmp_path, None) as (host, port):
            (tmp_path / proxy.GATEWAY).write_text(json.dumps([one, two]))
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head + body[:1000])
            await until(lambda: first.heard)
            first.die()
            await until(lambda: received)
            writer.write(body[1000:])
            assert b"first" in await reader.readuntil(b'"first"')
            writer.close()

    uvloop.run(main())


# --- what can be asked again ----------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def asked(*requests, room=None):
    replay = Replay(room or Room())
    for method, target in requests:
        replay.begins(method, target)
        replay.passes(b"head")
        replay.passes(b"body")
    return replay


def test_a_request_is_kept_until_its_answer_begins_and_then_the_next_one():
    replay = asked((b"POST", b"/v1/chat/completions"))
    assert not replay.is_idle and replay.is_waiting
    replay.answers(OK[:9])
    assert replay.again() is None and not replay.is_waiting
    replay.answers(OK[9:])
    assert replay.is_idle
    replay.begins(b"POST", b"/v1/embeddings")
    replay.passes(b"another")
    assert replay.again() == [b"another"] and replay.again() is None


def test_an_answer_of_the_hundreds_is_none():
    replay = asked((b"POST", b"/v1/chat/completions"))
    replay.answers(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not replay.is_idle
    replay.answers(OK)
    assert replay.is_idle


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\nuntil it is closed", b"this is nothing", OK[:-1]], ids=["long", "none", "part"]
)
def test_what_comes_after_an_answer_without_an_end_is_never_asked_again(answer):
    replay = asked((b"GET", b"/v1/models"))
    replay.answers(answer)
    replay.begins(b"GET", b"/v1/models")
    replay.passes(b"x")
    assert replay.again() is None and not replay.is_idle and not replay.is_waiting


@pytest.mark.parametrize("path", ["/v1/apps/desk", "/v1/audio/speech", "/v1/images/generations?x=1"])
def test_what_code_of_a_user_does_is_not_done_twice(path):
    assert asked((b"POST", path.encode())).again() is None
    assert asked((b"PUT", path.encode())).again() is not None  # HTTP says of it that it may be


def test_of_two_at_once_none_is_asked_again():
    assert asked((b"GET", b"/v1/models"), (b"GET", b"/v1/models")).again() is None


def test_what_is_kept_of_all_connections_is_bounded_and_given_back():
    room = Room(10)
    first = asked((b"GET", b"/v1/models"), room=room)
    assert room.left == 2
    assert asked((b"GET", b"/v1/models"), room=room).again() is None
    assert room.left == 2
    first.answers(OK)
    assert room.left == 10
    asked((b"GET", b"/v1/models"), room=room).close()
    assert room.left == 10
