"""Lives of a controller for `test_control_breakage`: between them they reach every handler that the test breaks.

Nothing that a scenario asks for must succeed, because anything may be broken; time passes only when it says so.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest
from control_harness import ANN, TWO_OF_TWO, ManualClock, Script, serve, task, train
from waiting import PATIENCE_S

from llmsched.api import event_text, views
from llmsched.control import execution, housekeeping
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.controller import Controller
from llmsched.core import facts
from llmsched.core.invariants import violations
from llmsched.core.state import State
from llmsched.errors import LlmschedError
from llmsched.executors import port
from llmsched.executors.fake import FakeCluster, FakeExecutor
from llmsched.spec import cluster as cluster_spec
from llmsched.store.memory import MemoryStore
from llmsched.store.tables import ArchiveQuery

SETTLE = 60  # turns of the event loop for everybody else after each wake-up
OPERATOR = "operator"


class Broken(Exception):
    pass


class World:
    """One cluster and one store, and the controllers that come and go on them. `acknowledged`: the ids of the workloads
    whose submission was answered."""

    def __init__(self, script):
        self.clock = ManualClock()
        self.store = MemoryStore()
        self.cluster = FakeCluster(TWO_OF_TWO, clock=self.clock, script=script)
        self.acknowledged: list[str] = []
        self.controller: Controller | None = None
        self._running: asyncio.Task | None = None

    async def begin(self):
        keys = [{"id": "t", "sha256": "0", "user": ANN, "role": OPERATOR, "expires": None}]
        executor = FakeExecutor(cluster=self.cluster)
        self.controller = Controller(self.store, executor, self.clock, storage="/storage", keys=lambda: keys)
        self._running = asyncio.create_task(self.controller.run())
        await self.until(lambda: self._running.done() or self.controller.health.status == "ready")
        self.lives()

    def lives(self):
        if self._running.done():
            self._running.result()
            raise AssertionError("the loop has ended")

    async def end(self):
        ending = asyncio.create_task(self.controller.stop())
        await self.until(self._running.done)
        await ending
        self._running.result()

    async def passes(self, seconds=0.1):
        await self.clock.advance(seconds, settle=SETTLE)

    async def until(self, condition, seconds=900):
        """As a person who waits: an hour is no time here."""
        for _ in range(seconds):
            if condition():
                return
            await self.passes(1.0)
        raise AssertionError("it never came true")

    async def asked(self, work):
        """What is asked is answered or refused, sooner or later."""
        asking = asyncio.ensure_future(work)
        for _ in range(600):
            if asking.done():
                break
            await self.passes(0.1)
        assert asking.done(), "nobody answers"
        with suppress(LlmschedError, Broken):
            return asking.result()

    async def submit(self, *specs, key=None, again=False):
        answers = await self.asked(
            self.controller.submit(specs, user=ANN, role=OPERATOR, idempotency_key=key, again=again)
        )
        self.acknowledged += [answer.id for answer in answers or ()]

    async def configure(self, text):
        await self.asked(self.controller.configure(cluster_spec.load(text, "llmsched.yaml"), by=ANN))

    async def housekept(self):
        """Its one task is done: it works in a thread too."""
        found = self.controller._housekeeping._task
        if found is not None:
            await asyncio.wait({found}, timeout=PATIENCE_S)
        await self.passes()

    async def settles(self):
        """The loop lives: new work runs to its end, and whatever was begun can be cancelled and holds nothing then."""
        self.lives()
        self.cluster.lose_contact()
        self.cluster.regain_contact()  # what was missed meanwhile is said again
        state = lambda: self.controller.state  # noqa: E731
        await self.until(
            lambda: self.controller.health.status == "ready" and len(state().nodes) == len(self.cluster.nodes)
        )
        for name, record in list(state().workloads.items()):
            if not record.outcome:
                await self.asked(self.controller.cancel(name, by=ANN))
        await self.until(lambda: not state().holding)
        await self.submit(task("afterwards", gpus=1))
        await self.until(lambda: state().workloads["afterwards"].outcome == "succeeded")
        assert violations(state()) == []

    async def nothing_is_lost(self):
        """By a controller that starts anew on what is written."""
        await self.end()
        await self.begin()
        state = self.controller.state
        there = {*state.workloads, *(row.id for row in self.store.archived(ArchiveQuery(10_000)))}
        assert set(self.acknowledged) <= there
        assert self.controller.health.message == ""
        await self.end()


# --- scenarios ----------------------------------------------------------------------------------------------------


async def crowd(world):
    """A bit of everything that a controller is asked and hears of."""
    controller, cluster = world.controller, world.cluster
    await world.submit(train("grows", workers={"min": 1, "max": 2}), serve("talks"))
    await world.submit(task("quick"), key="k")
    await world.submit(task("quick"), key="k")
    for gang in list(controller.state.gangs.values()):
        for seen in (
            port.LaunchAsked(gang.id, gang.attempt, 1.0),
            port.AskSeen(gang.id, gang.attempt, "1", '{"ask": "watch", "names": ["a"]}'),
            port.Progress(gang.id, gang.attempt, {"step": 1, "total_steps": 9}),
            port.CheckpointSeen(gang.id, gang.attempt, 1),
            port.AdapterAnswer(gang.id, gang.attempt, "a", "s3://a"),
            port.LoadSeen(gang.workload_id, 3.0, 1.0),
            port.KeyUsageSeen("gateway", (port.KeyUse(0, "t", ANN, "talks", 1, 2, 3, 0),)),
            port.Stalled(gang.id, gang.attempt, "it has not moved for a minute"),
            port.ExcessSeen(gang.id, gang.attempt, (port.ForeignSeen("node-1", 0.5, 0.0, 0),)),
            port.ExcessSeen(gang.id, gang.attempt, ()),
        ):
            cluster.say(seen)
        await world.passes()
    cluster.say(port.EndpointSeen("the gateway does not answer"))
    cluster.say(port.EndpointSeen(""))
    await world.asked(controller.scale("talks", 1, by=ANN))
    await world.configure("limits: {max_pending_per_queue: 50}")
    window = {"name": "night", "start": "2030-01-01T00:00:00Z", "duration": "1h", "accelerators": "A100:1"}
    await world.asked(controller.reserve(cluster_spec.load_reservation(window), by=ANN))
    await world.asked(controller.end_reservation("night", by=ANN))
    await world.asked(echoed(controller))
    cluster.say(port.ForeignSeen("node-1", 1.0, 0.0, 0))
    await world.passes()
    cluster.say(port.ForeignSeen("node-1", 0.0, 0.0, 0))
    cluster.say(port.NodeSeen("too-large", 1e9, 1.0, 1))
    node = cluster.add_node(1, "A100")
    await world.passes()
    await world.asked(controller.drain_node(node, OPERATOR, within_s=60.0))
    await world.asked(controller.undrain_node(node, OPERATOR))
    cluster.take_away(node, world.clock.now() + 30.0)
    await world.passes()
    cluster.lose_node(node)
    await world.asked(controller.cancel("quick", by=ANN))
    await world.passes()
    await world.asked(controller.unlist("quick", by=ANN))
    await world.asked(controller.ask_dashboard(None, "/", {}))
    await world.submit(*(task(f"ends-{n}", gpus=0.1) for n in range(len(ENDS))))
    await world.passes()
    for n, end in enumerate(ENDS):
        cluster.say(end(f"ends-{n}/0", 1))
    await world.passes()
    cluster.lose_contact()
    await world.passes()
    cluster.regain_contact()
    await world.passes()
    await world.asked(controller.cancel("grows", by=ANN))
    with suppress(Broken):
        controller.metrics()


async def echoed(controller):
    begun = await controller.execute(execution.Command("talks", ("echo", "hello"), ANN))
    async with aclosing(begun.said):
        async for _ in begun.said:
            await begun.tell(b"more")


ENDS = [
    lambda gang, attempt: port.Ended(gang, attempt, "succeeded", artifact="s3://a", metrics={"loss": 1.0}),
    lambda gang, attempt: port.Ended(gang, attempt, "failed", "no", "error"),
    lambda gang, attempt: port.Ended(gang, attempt, "released"),
    lambda gang, attempt: port.Vanished(gang, attempt, "gone"),
    lambda gang, attempt: port.NotStarted(gang, attempt, "error", "no"),
    lambda gang, attempt: port.ResizeDone(gang, attempt, 1),
]


async def pushed_aside(world):
    """Elastic work shrinks, low priority leaves, a promise of capacity is taken back; what runs grows again."""
    world.cluster.script = lambda order: Script(runs_for_s=None, stops_after_s=20.0, resizes_after_s=5.0)
    await world.configure("scheduling: {preemption: {within_queue: lower_priority}}")
    await world.submit(train("grows", workers={"min": 1, "max": 4}))
    await world.passes(2)
    await world.submit(task("second", gpus=2, priority=80))
    await world.passes(120)
    await world.submit(task("low", gpus=1, priority=1))
    await world.passes(5)
    await world.submit(*(task(f"urgent-{n}", gpus=2, priority=90) for n in range(2)))
    await world.passes(1)
    for used in 2.0, 0.0:
        for node in world.cluster.nodes:
            world.cluster.say(port.ForeignSeen(node, used, 0.0, 0))
        await world.passes(1)
    for n in range(2):
        await world.asked(world.controller.cancel(f"urgent-{n}", by=ANN))
    await world.passes(60)
    await world.asked(world.controller.cancel("second", by=ANN))
    await world.passes(1200)
    world.cluster.script = at_once


async def steps(world):
    """Somebody who says how far they are, and takes a while."""
    await world.submit(task("slow"))
    for step in range(1, 8):
        await world.passes(20)
        world.cluster.say(port.Progress("slow/0", 1, {"step": step, "total_steps": 100}))
    await world.passes(5)


async def hours(world):
    """A schedule."""
    await world.submit(task("quick", schedule={"cron": "*/5 * * * *"}))
    await world.passes(700)


async def hopeless(world):
    """Work that waits for what fails, or until it is too late."""
    await world.submit(task("fails"))
    await world.submit(task("follows", after=["fails"]), task("late", gpus=2, deadline="1970-01-12T14:00:00Z"))
    await world.passes(30)
    await world.submit(task("hog"))
    await world.passes(5)
    over = (port.ForeignSeen("node-1", 1.0, 0.0, 0),)
    world.cluster.say(port.ExcessSeen("hog/0", 1, over))
    await world.passes(120)


async def nodes_come_and_go(world):
    """A cluster that can grow."""
    await world.configure(GROWS)
    await world.submit(task("quick", gpus=8))
    await world.passes(5)
    node = world.cluster.add_node(8, "A100", labels={"ray.io/node-group": "p4d"})
    await world.passes(60)
    await world.passes(600)
    if node in world.cluster.nodes:
        world.cluster.lose_node(node)


GROWS = """
flavors: [{name: a100-spot, labels: {ray.io/accelerator-type: A100}, price_per_gpu_hour: 2}]
node_types: [{name: p4d, flavor: a100-spot, gpus: 8, max: 2, idle_timeout: 5m}]
price_ceiling_per_hour: 40
"""


async def published(world):
    """An endpoint that scales, and gets an adapter and a model from trainings; and back to the model of its spec."""
    controller = world.controller
    auto = {"replicas": {"min": 1, "max": 2}, "autoscaling": {"upscale_delay_s": 1, "downscale_delay_s": 60}}
    await world.submit(serve("talks", **auto))
    await world.passes(5)
    polite = {"to": "talks", "as": "adapter", "name": "polite", "when": "loss < 2"}
    await world.submit(train("learns", publish=polite))
    await world.passes(30)
    await world.submit(train("learns-more", publish={"to": "talks", "as": "model"}))
    await world.passes(60)
    await world.submit(serve("silent", source="run://says-nothing"))
    await world.submit(train("says-nothing"))
    await world.submit(serve("silent", source="run://says-nothing"))
    await world.passes(10)
    for attempt in (1, 2):
        world.cluster.say(port.Ended("says-nothing/0", attempt, "succeeded"))
    await world.passes(30)
    for _ in range(5):
        world.cluster.say(port.LoadSeen("talks", 9.0, 9.0))
        await world.passes(30)
    for _ in range(4):
        world.cluster.say(port.LoadSeen("talks", 0.0, 0.0))
        await world.passes(60)
    await world.submit(serve("talks", source="package:models/other", **auto))
    await world.passes(120)
    await world.asked(controller.roll_back("talks", ANN, OPERATOR))
    await world.passes(60)
    await world.asked(controller.scale("talks", 2, by=ANN))
    await world.passes(10)
    await world.asked(controller.scale("talks", 1, by=ANN))
    await world.passes(120)
    found = controller.state.workloads.get("talks")
    if found is not None:
        with suppress(LlmschedError, Broken):
            seen = Permissions(Person(ANN, OPERATOR), controller.state.configuration)
            views.why(controller.state, found, controller.entries(0, "talks"), KnownNames(controller.state, seen))
    await world.asked(echoed(controller))


async def seen_from_outside(world):
    """What people are told of work that waits."""
    controller = world.controller
    await world.submit(*(task(f"waits-{n}", gpus=2) for n in range(4)))
    await world.passes(5)
    with suppress(LlmschedError, Broken):
        for person in (Person(ANN, OPERATOR), Person("eve")):
            names = KnownNames(controller.state, Permissions(person, controller.state.configuration))
            for found in controller.state.workloads.values():
                views.workload(controller.state, found, {}, names)
                views.why(controller.state, found, controller.entries(0, found.workload.id), names)
            for written in controller.entries():
                event_text.data(written.entry, names)
    await world.asked(controller.plan([task("waits-9", gpus=2)], ANN))


async def long_ago(world):
    """What ended is put aside, snapshots are taken, and what is too old is let go of: all of it soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(housekeeping, "SNAPSHOT_EVERY", 40)
        patch.setattr(housekeeping, "SNAPSHOTS_KEPT", 3)
        await _long_ago(world)


async def _long_ago(world):
    await world.configure("history: {journal: 1h, idempotency: 1h}")
    for n in range(12):
        await world.submit(task(f"quick-{n}"), key=f"k{n}")
        await world.passes(30)
        await world.housekept()
    await world.passes(1200)
    for _ in range(3):
        await world.submit(task("quick"), again=True)
        await world.passes(1300)
        await world.housekept()


async def again(world):
    """A controller that stops and one that starts, while work runs, grows and leaves."""
    world.cluster.script = lambda order: Script(
        runs_for_s=None, stops_after_s=100.0, resizes_after_s=100.0, starts_after_s=1.0
    )
    await world.submit(train("grows", workers={"min": 1, "max": 2}), task("leaves"), serve("talks"))
    await world.passes(5)
    world.cluster.say(port.Progress("grows/0", 1, {"step": 1, "total_steps": 9}))
    await world.passes(1)
    await world.asked(world.controller.cancel("leaves", by=ANN))
    await world.passes(1)
    await world.end()
    await world.begin()
    await world.passes(200)
    world.cluster.script = at_once


async def unheard(world):
    """What the cluster says of a start cannot be taken in: that attempt is given up."""
    original = State.apply

    def broken(self, entry):
        if isinstance(entry, facts.Bound) and entry.gang == "first/0":
            raise Broken("broken on purpose")
        return original(self, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "apply", broken)
        await world.submit(task("first"), task("second"))
        await world.passes(30)


def at_once(order):
    return Script(runs_for_s=0.5, steps=2)


# The quick ones first: a handler is broken in the first of them that reaches it.
SCENARIOS = (
    hopeless, steps, unheard, seen_from_outside, hours, crowd, again, nodes_come_and_go, pushed_aside, published,
    long_ago,
)  # fmt: skip


def new_world():
    quick = Script(runs_for_s=0.5, steps=2)
    learns = Script(runs_for_s=2.0, steps=2, metrics={"loss": 1.0})
    scripts = {f"quick_{n}": quick for n in range(30)}
    scripts |= {"quick": quick, "afterwards": quick, "learns": learns, "learns_more": learns}
    scripts["fails"] = Script(runs_for_s=1.0, outcome="failed", event="input", message="boom")

    def script(order):
        return scripts.get(order.workload.partition("@")[0].replace("-", "_"), Script(runs_for_s=None))

    return World(script)
