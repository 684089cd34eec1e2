"""Whatever breaks while one request or one observation is handled breaks nothing else.

What is broken here is listed by the code itself: every kind of fact, request, observation, decision and row, every
method of the executor, and every function of the loop's parts. So a new one is covered without a word here.
"""

import asyncio
import inspect
import sys
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from breakage_scenarios import SCENARIOS, Broken, new_world
from control_harness import ANN, controlling, fake_cluster, task, until

from llmsched.control import dispatch, housekeeping, lease, metrics, progress, reasons, requests, routes
from llmsched.control.asks import Asks
from llmsched.control.controller import Controller
from llmsched.control.intake import Intake
from llmsched.core import decisions, facts
from llmsched.core.state import State
from llmsched.executors import port
from llmsched.executors.fake import FakeExecutor
from llmsched.store.memory import MemoryStore


def raising(original, breaks=lambda *arguments: True):
    """`original`, which raises when `breaks` says so."""
    if inspect.iscoroutinefunction(original):

        async def broken_later(*arguments, **more):
            if breaks(*arguments):
                raise Broken("broken on purpose")
            return await original(*arguments, **more)

        return broken_later

    def broken(*arguments, **more):
        if breaks(*arguments):
            raise Broken("broken on purpose")
        return original(*arguments, **more)

    return broken


def holds(cls):
    return lambda *arguments: any(type(each) is cls for each in arguments)


FACTS = [(State, "apply", holds(cls), cls.__name__) for cls in get_args(facts.Fact)]
DECISIONS = [
    (owner, name, holds(cls), cls.__name__)
    for cls in get_args(decisions.Decision)
    for owner, name in ((dispatch, "send_of"), (State, "apply"))
]
REQUESTS = [(requests, "accept", holds(cls), cls.__name__) for cls in get_args(requests.UserRequest)]
OBSERVATIONS = [
    (Asks, "_answer", holds(cls), cls.__name__)
    if cls is port.AskSeen
    else (Intake, "_facts_of", holds(cls), cls.__name__)
    for cls in get_args(port.Observation)
]
ORDERS = [
    (FakeExecutor, name, lambda *_: True, name)
    for name, _ in inspect.getmembers(port.Executor, inspect.isfunction)
    if not name.startswith("_") and name not in ("start", "close")
]
PARTS = [
    (owner, name, lambda *_: True, name)
    for owner in (progress.ProgressBook, metrics.Metrics, housekeeping.Housekeeping, routes.Routes)
    for name, _ in inspect.getmembers(owner, inspect.isfunction)
    if name != "__init__"
]
FUNCTIONS = [
    (module, name, lambda *_: True, name)
    for module in (dispatch, requests, routes, housekeeping, reasons)
    for name, found in inspect.getmembers(module, inspect.isfunction)
    if found.__module__ == module.__name__
]
COMMITS = [
    (MemoryStore, "commit", lambda _, batch, cls=cls: any(type(each) is cls for each in batch.entries), cls.__name__)
    for cls in (*get_args(facts.Fact), *get_args(decisions.Decision))
]
CONTROL = [module for key, module in sorted(sys.modules.items()) if key.startswith("llmsched.control.")]
EVERY = [*FACTS, *DECISIONS, *REQUESTS, *OBSERVATIONS, *ORDERS, *PARTS, *FUNCTIONS, *COMMITS]


@dataclass
class Breakage:
    """One handler, which is broken while `armed`. `hits`: how often it was reached in that time."""

    owner: Any
    name: str
    breaks: Any
    armed: bool = False
    hits: int = 0

    def patch(self, patch):
        original = getattr(self.owner, self.name)

        def reached(*arguments):
            if self.armed and self.breaks(*arguments):
                self.hits += 1
                return True
            return False

        watched = raising(original, reached)
        for holder in (self.owner, *CONTROL):  # wherever it was imported by its name
            if getattr(holder, self.name, None) is original:
                patch.setattr(holder, self.name, watched)


def reached_by(scenario):
    """Which of EVERY a scenario reaches when nothing is broken."""
    found = set()
    begun = asyncio.Event()

    def noting(original, number, breaks):
        def noted(*arguments):
            if begun.is_set() and breaks(*arguments):
                found.add(number)
            return False

        return raising(original, noted)

    async def told():
        world = new_world()
        await world.begin()
        begun.set()
        await scenario(world)
        begun.clear()
        await world.end()

    with pytest.MonkeyPatch.context() as patch:
        rarely_renewed(patch)
        for number, (owner, name, breaks, _) in enumerate(EVERY):
            original = getattr(owner, name)
            watched = noting(original, number, breaks)
            for holder in (owner, *CONTROL):
                if getattr(holder, name, None) is original:
                    patch.setattr(holder, name, watched)
        asyncio.run(told())
    return found


def rarely_renewed(patch):
    """Its lease need not be renewed every two seconds of hours that pass in no time."""
    patch.setattr(lease, "RENEW_EVERY_S", 60.0)


@pytest.fixture(scope="module")
def where():
    """Number of EVERY -> the first scenario that reaches it."""
    found = {}
    for scenario in SCENARIOS:
        for number in reached_by(scenario):
            found.setdefault(number, scenario)
    return found


IDS = [f"{owner.__name__}-{name}-{what}" for owner, name, _, what in EVERY]


@pytest.mark.parametrize("number", range(len(EVERY)), ids=IDS)
def test_what_throws_ends_neither_the_loop_nor_anybody_elses_work(monkeypatch, where, number):
    assert number in where, "no scenario reaches this: add one to breakage_scenarios.py"
    owner, name, breaks, _ = EVERY[number]
    rarely_renewed(monkeypatch)
    breakage = Breakage(owner, name, breaks)
    breakage.patch(monkeypatch)
    asyncio.run(_throws(breakage, where[number]))
    assert breakage.hits, "it was never reached"


async def _throws(breakage, scenario):
    world = new_world()
    await world.begin()
    try:
        breakage.armed = True
        await scenario(world)
        world.lives()
        breakage.armed = False
        await world.settles()
        await world.nothing_is_lost()
    finally:
        breakage.armed = False
        await world.end()


def test_an_entry_that_the_state_cannot_take_in_does_not_stop_a_start(monkeypatch):
    asyncio.run(_start_with_an_unfit_entry(monkeypatch))


async def _start_with_an_unfit_entry(monkeypatch):
    store, cluster = MemoryStore(), fake_cluster()
    async with controlling(cluster, store) as controller:
        await controller.submit([task("first"), task("second")], user=ANN)
        await until(lambda: len(cluster.running()) == 2)
    original = State.apply

    def broken(self, entry):
        if isinstance(entry, facts.Submitted) and entry.workload.name == "first":
            raise Broken("broken on purpose")
        return original(self, entry)

    monkeypatch.setattr(State, "apply", broken)
    again = Controller(store, FakeExecutor(cluster=cluster), storage="/storage")
    running = asyncio.create_task(again.run())
    try:
        await until(lambda: again.health.status == "ready" or running.done())
        assert list(again.state.workloads) == ["second"]
        assert "Submitted, cannot be applied: broken on purpose" in again.health.message
        await again.submit([task("third")], user=ANN)
        await until(lambda: "third" in again.state.workloads)
    finally:
        await again.stop()
        await running
