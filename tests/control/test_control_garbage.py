"""What a full pass of the collector took long to look at is not looked at again, until the state is another one."""

from __future__ import annotations

import gc

import pytest

from llmsched.control import garbage
from llmsched.control.clock import RealClock
from llmsched.control.live_state import LiveState
from llmsched.control.metrics import Metrics
from llmsched.store.memory import MemoryStore


class Circle:
    """Never let go but by the collector."""

    ended = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Circle.ended += 1


@pytest.fixture(autouse=True)
def spared():
    Circle.ended = 0
    garbage.spare_the_loop()
    yield
    gc.callbacks.remove(garbage._after_a_pass)
    gc.unfreeze()


def test_only_a_full_pass_that_took_long_leaves_out_what_it_has_looked_at(monkeypatch):
    gc.unfreeze()
    monkeypatch.setattr(garbage, "LONG_S", float("inf"))
    gc.collect()
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(garbage, "LONG_S", 0.0)
    gc.collect(1)
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gc.get_freeze_count() > 1000


def test_what_came_since_is_looked_at_and_a_state_that_was_replaced_is_let_go(monkeypatch):
    monkeypatch.setattr(garbage, "LONG_S", 0.0)
    old = Circle()
    gc.collect()
    del old
    Circle()  # came since
    gc.collect()
    assert Circle.ended == 1
    LiveState(MemoryStore(), RealClock(), Metrics()).fold()
    gc.collect()
    assert Circle.ended == 2
