"""Whatever breaks while one request or one observation is handled breaks nothing else.

What is broken here is listed by the code itself: every kind of fact, request, observation, decision and row, every
method of the executor, and every function of the loop's parts. So a new one is covered without a word here.
"""

import asyncio
import inspect
import sys
from contextlib import suppress
from typing import get_args

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, serve, task, train, until

from llmsched.control import dispatch, execution, housekeeping, metrics, progress, reasons, requests, routes
from llmsched.control.controller import Controller
from llmsched.control.intake import Intake
from llmsched.core import decisions, facts
from llmsched.core.invariants import violations
from llmsched.core.state import State
from llmsched.errors import LlmschedError
from llmsched.executors import port
from llmsched.executors.fake import FakeExecutor
from llmsched.spec import cluster as cluster_spec
from llmsched.store.memory import MemoryStore


class Broken(Exception):
    pass


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
OBSERVATIONS = [(Intake, "_facts_of", holds(cls), cls.__name__) for cls in get_args(port.Observation)]
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


async def life(controller, cluster):
    """A bit of everything that a controller is asked and hears of. Nothing of it must succeed."""

    async def asked(work):
        with suppress(LlmschedError, Broken):
            await asyncio.wait_for(work, 10)

    await asked(controller.submit([train("grows", workers={"min": 1, "max": 2}), serve("talks")], user=ANN))
    await asked(controller.submit([task("quick")], user=ANN, idempotency_key="k"))
    await asyncio.sleep(0)
    for gang in list(controller.state.gangs.values()):
        for seen in (
            port.LaunchAsked(gang.id, gang.attempt, 1.0),
            port.Progress(gang.id, gang.attempt, {"step": 1, "total_steps": 9}),
            port.CheckpointSeen(gang.id, gang.attempt, 1),
            port.AdapterAnswer(gang.id, gang.attempt, "a", "s3://a"),
            port.LoadSeen(gang.workload_id, 3.0, 1.0),
        ):
            cluster.say(seen)
    await asked(controller.scale("talks", 1, by=ANN))
    await asked(controller.configure(cluster_spec.load_json({"limits": {"max_pending_per_queue": 50}}), by=ANN))
    window = {"name": "night", "start": "2030-01-01T00:00:00Z", "duration": "1h", "accelerators": "A100:1"}
    await asked(controller.reserve(cluster_spec.load_reservation(window), by=ANN))
    await asked(controller.end_reservation("night", by=ANN))
    await asked(_echo(controller))
    cluster.say(port.ForeignSeen("node-1", 1.0, 0.0, 0))
    cluster.say(port.ForeignSeen("node-1", 0.0, 0.0, 0))
    node = cluster.add_node(1, "A100")
    cluster.lose_node(node)
    await asked(controller.cancel("quick", by=ANN))
    await asked(controller.submit([task(f"ends-{n}", gpus=0.1) for n in range(len(ENDS))], user=ANN))
    await asyncio.sleep(0.02)  # as far as it comes: what is broken may keep it from starting
    for n, end in enumerate(ENDS):
        cluster.say(end(f"ends-{n}/0", 1))
    cluster.lose_contact()
    cluster.regain_contact()
    await asked(controller.cancel("grows", by=ANN))


async def _echo(controller):
    async for _ in await controller.execute(execution.Command("talks", ("echo", "hello"), ANN)):
        pass


ENDS = [
    lambda gang, attempt: port.Ended(gang, attempt, "succeeded", artifact="s3://a", metrics={"loss": 1.0}),
    lambda gang, attempt: port.Ended(gang, attempt, "failed", "no", "error"),
    lambda gang, attempt: port.Ended(gang, attempt, "released"),
    lambda gang, attempt: port.Vanished(gang, attempt, "gone"),
    lambda gang, attempt: port.NotStarted(gang, attempt, "error", "no"),
    lambda gang, attempt: port.ResizeDone(gang, attempt, 1),
]


async def settles(controller, cluster):
    """The loop lives: new work runs to its end, and whatever was begun can be cancelled and holds nothing then."""
    cluster.lose_contact()
    cluster.regain_contact()  # what was missed meanwhile is said again
    await until(lambda: controller.health.status == "ready" and len(controller.state.nodes) == len(cluster.nodes))
    for name, record in list(controller.state.workloads.items()):
        if not record.outcome:
            with suppress(LlmschedError):
                await controller.cancel(name, by=ANN)
    await until(lambda: not controller.state.holding)
    await controller.submit([task("afterwards", gpus=2)], user=ANN)
    await until(lambda: controller.state.workloads["afterwards"].outcome == "succeeded")
    assert violations(controller.state) == []


IDS = [f"{owner.__name__}-{name}-{what}" for owner, name, _, what in EVERY]


@pytest.mark.parametrize(("owner", "name", "breaks", "what"), EVERY, ids=IDS)
def test_what_throws_ends_neither_the_loop_nor_anybody_elses_work(monkeypatch, owner, name, breaks, what):
    asyncio.run(_throws(monkeypatch, owner, name, breaks))


async def _throws(monkeypatch, owner, name, breaks):
    quick = Script(runs_for_s=0.02, steps=2)
    cluster = fake_cluster(quick=quick, afterwards=quick)
    controller = Controller(MemoryStore(), FakeExecutor(cluster=cluster), storage="/storage")
    running = asyncio.create_task(controller.run())
    try:
        await until(lambda: len(controller.state.nodes) == len(cluster.nodes))
        with monkeypatch.context() as patch:
            broken = raising(getattr(owner, name), breaks)
            original = getattr(owner, name)
            for holder in (owner, *CONTROL):  # wherever it was imported by its name
                if getattr(holder, name, None) is original:
                    patch.setattr(holder, name, broken)
            await life(controller, cluster)
            assert not running.done(), "the loop has ended"
        await settles(controller, cluster)
    finally:
        await controller.stop()
        await asyncio.wait_for(running, 10)


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
