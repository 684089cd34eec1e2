"""Requests that come through Ray: whole, in pieces, and from callers that go."""

import asyncio
import threading

import pytest
from waiting import PATIENCE_S

from llmsched.gateway.asked import AHEAD, Asked


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def flat(asked):
    return [message for some in asked.pieces() for message in some]


def test_the_application_gets_the_body_once_and_its_messages_come_back_in_order(loop):
    async def app(scope, receive, send):
        message = await receive()
        for n in range(3 * AHEAD):
            await send({"n": n, "said": message["body"], "path": scope["path"], "more": message["more_body"]})

    made = flat(Asked(app, loop, {"type": "http", "path": "/v1/x"}, b"hello"))
    assert [one["n"] for one in made] == list(range(3 * AHEAD))
    assert made[0] == {"n": 0, "said": b"hello", "path": "/v1/x", "more": False}


def test_what_the_application_raises_reaches_the_caller_after_what_it_sent(loop):
    async def app(scope, receive, send):
        await send({"n": 0})
        raise ValueError("no")

    pieces = Asked(app, loop, {}, b"").pieces()
    assert next(pieces) == [{"n": 0}]
    with pytest.raises(ValueError, match="no"):
        next(pieces)


def test_a_caller_that_goes_is_a_client_that_has_left(loop):
    seen = threading.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"n": 0})
        assert (await receive())["type"] == "http.disconnect"
        seen.set()

    asked = Asked(app, loop, {}, b"")
    pieces = asked.pieces()
    assert next(pieces) == [{"n": 0}]
    asked.hang_up()
    assert seen.wait(PATIENCE_S)


def test_an_application_is_never_far_ahead_of_who_reads_and_ends_when_nobody_does(loop):
    sent, over = [], threading.Event()

    async def app(scope, receive, send):
        for n in range(10 * AHEAD):
            sent.append(n)
            await send({"n": n})
        over.set()

    pieces = Asked(app, loop, {}, b"").pieces()
    next(pieces)
    assert len(sent) <= 2 * AHEAD + 2
    pieces.close()
    assert over.wait(PATIENCE_S)
