"""A Ray that answers no more is given up in good time, however it is silent; a bridge that was stopped itself waits."""

from __future__ import annotations

import threading

import pytest
from waiting import PATIENCE_S

from llmsched.executors.bridge.answering import ASK_EVERY_S, GIVE_UP_AFTER_S, Answering


class Clock:
    """Pauses of the one who asks end at once, those of the one who watches when the test says so."""

    def __init__(self) -> None:
        self.asks = threading.Semaphore(0)
        self.watches = threading.Semaphore(0)
        self.watching = threading.Semaphore(0)

    def pause(self, seconds: float) -> None:
        if threading.current_thread().name.endswith("_watch"):
            self.watching.release()
            self.watches.acquire()
        else:
            self.asks.acquire()

    def tick(self) -> None:
        """One pause of the watcher has ended, and it has begun the next one, or given up."""
        self.watches.release()
        self.watching.acquire(timeout=1.0)


def hangs() -> None:
    threading.Event().wait()


def raises() -> None:
    raise ConnectionError("refused")


@pytest.mark.parametrize("ask", [hangs, raises])
def test_a_question_that_hangs_or_fails_is_given_up(ask) -> None:
    clock, lost = Clock(), threading.Event()
    Answering(ask, lost.set, clock.pause).start()
    assert clock.watching.acquire(timeout=PATIENCE_S)
    for _ in range(int(GIVE_UP_AFTER_S / ASK_EVERY_S) - 1):
        clock.tick()
    assert not lost.is_set()
    clock.watches.release()
    assert lost.wait(PATIENCE_S)


def test_who_answers_now_and_then_is_not_given_up() -> None:
    clock, lost, asked = Clock(), threading.Event(), threading.Semaphore(0)
    Answering(asked.release, lost.set, clock.pause).start()
    assert clock.watching.acquire(timeout=PATIENCE_S) and asked.acquire(timeout=PATIENCE_S)
    for number in range(4 * int(GIVE_UP_AFTER_S / ASK_EVERY_S)):
        if number % 10 == 0:
            clock.asks.release()
            assert asked.acquire(timeout=PATIENCE_S)
        clock.tick()
    assert not lost.is_set()
