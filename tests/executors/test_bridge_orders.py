"""Every order that the bridge takes is answered: done, done at a later try, or told as one that cannot be done."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

import pytest
from waiting import PATIENCE_S

from llmsched.executors import wire
from llmsched.executors.bridge.main import Bridge
from llmsched.executors.bridge.orders import PAUSES_S, Order, Orders
from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    LaunchOrder,
    NotStarted,
    StopOrder,
    Vanished,
)

LAUNCH = LaunchOrder("a", "a/0", 1, 1, "task", (), {}, "/storage")
SERVE = LaunchOrder("a", "a/0", 1, 1, "serve", (), {}, "/storage")
STOP = StopOrder("a/0", 1, 1, "task", "stop", 5.0)


def test_an_order_that_raises_is_tried_again_after_pauses_and_those_behind_it_wait_their_turn():
    done, paused, order_of_things = queue.Queue(), [], []
    orders = Orders(lambda _: None, done.put, paused.append)
    tries = iter((OSError("no"), OSError("no"), None))
    is_followed = threading.Event()

    def sick():
        assert is_followed.wait(PATIENCE_S)
        error = next(tries)
        order_of_things.append("sick")
        if error:
            raise error

    orders.put(Order("a", sick, lambda why: order_of_things.append(why)))
    orders.put(Order("a", lambda: order_of_things.append("next"), lambda why: order_of_things.append(why)))
    is_followed.set()
    assert done.get(timeout=PATIENCE_S) == "a"
    assert order_of_things == ["sick", "sick", "sick", "next"]
    assert paused == list(PAUSES_S[:2])


def test_what_no_try_can_do_is_told_once_and_takes_nothing_else_along():
    done, told = queue.Queue(), []
    orders = Orders(lambda _: None, done.put, lambda _: None)

    def sick():
        raise RuntimeError("Ray is away\nand more")

    def mute(why):
        raise BrokenPipeError("nobody hears it")

    orders.put(Order("a", sick, told.append))
    assert done.get(timeout=PATIENCE_S) == "a" and told == ["RuntimeError: Ray is away"]
    orders.put(Order("b", sick, mute))
    assert done.get(timeout=PATIENCE_S) == "b"
    ran = threading.Event()
    orders.put(Order("c", ran.set, told.append))
    assert ran.wait(PATIENCE_S)


class Sick:
    """A part of the bridge that Ray does not answer: whatever it is asked to do raises."""

    def __getattr__(self, name):
        def fail(*_):
            raise RuntimeError("Ray is away")

        return fail


class Quiet:
    def __getattr__(self, name):
        return lambda *_: None


class Mute:
    """A pipe that keeps what is sent."""

    def __init__(self):
        self.sent = queue.Queue()
        self.send = self.sent.put


@pytest.mark.parametrize(
    ("op", "body", "answer"),
    [
        ("launch", LAUNCH, NotStarted),
        ("launch", SERVE, NotStarted),
        ("resize", LAUNCH, NotStarted),
        ("stop", STOP, Vanished),
        ("adopt", wire.Adopt((wire.Live(LAUNCH, True),), True), Vanished),
        ("adopt", wire.Adopt((wire.Live(SERVE, True),), True), Vanished),
        ("adopt", wire.Adopt((wire.Live(LAUNCH, False),), True), NotStarted),
        ("load_adapter", AdapterOrder("a/0", 1, 1, "x", "s3://x"), AdapterAnswer),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_order_about_an_attempt_is_answered_although_ray_is_away(op, body, answer):
    pipe = Mute()
    bridge = Bridge(pipe)
    bridge._containment = Quiet()
    bridge._containment.deliver = pipe.send
    bridge._attempts = bridge._replicas = Sick()
    bridge._commands = bridge._reaper = bridge._warm = Quiet()
    bridge._orders = Orders(lambda _: None, lambda _: None, lambda _: None)
    bridge._take(op, body)
    told = pipe.sent.get(timeout=PATIENCE_S)
    assert type(told) is answer and (told.gang, told.attempt) == ("a/0", 1)
    assert "Ray is away" in told.message


class Armed:
    """Of the reaper: what is known of those that live when it is told that they are all."""

    def __init__(self) -> None:
        self.expected: list[str] = []
        self.at_the_end: list[list[str]] = []

    def expect(self, name: str) -> None:
        self.expected.append(name)

    def arm(self) -> None:
        self.at_the_end.append([*self.expected])


@pytest.mark.parametrize("count", [0, 1, wire.ADOPTED_AT_ONCE, 3 * wire.ADOPTED_AT_ONCE + 1])
def test_whoever_was_not_named_is_nobodys_only_after_the_last_line_of_those_that_live(count):
    bridge, armed = Bridge(Mute()), Armed()
    bridge._reaper = armed
    bridge._containment = bridge._commands = bridge._attempts = Quiet()
    bridge._orders = Orders(armed.expect, lambda _: None, lambda _: None)
    live = [(replace(LAUNCH, gang=f"a/{number}"), False) for number in range(count)]
    for some in wire.adopts_of(live):
        assert len(some.live) <= wire.ADOPTED_AT_ONCE and not armed.at_the_end
        op, body = wire.decode_order(wire.encode_order("adopt", some))
        bridge._take(op, body)
    assert armed.at_the_end == [[order.name for order, _ in live]]
