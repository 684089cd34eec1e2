"""An executor without Ray: nodes, attempts and their mishaps in memory, on any clock. For tests and for trying things.

`FakeCluster` is the world, and outlives controllers; `FakeExecutor` is one connection to it. How an attempt goes is a
`Script`. A launch that does not fit on its nodes is refused as Ray would refuse it, so a ledger that is wrong shows.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from llmsched.errors import ClusterError
from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    AskAnswer,
    AskSeen,
    CheckpointSeen,
    CommandEnded,
    CommandInput,
    CommandOrder,
    CommandSaid,
    CommandTook,
    Connected,
    DashboardOrder,
    Deliver,
    Disconnected,
    Ended,
    Hear,
    LaunchOrder,
    NodeGone,
    NodeSeen,
    NotStarted,
    Observation,
    Progress,
    ResizeDone,
    RouteTable,
    Started,
    StopOrder,
    Vanished,
)

CPUS_PER_NODE = 64.0
MEMORY_PER_NODE = 256 * 1024**3
SLACK_GPUS = 1e-6  # fractions add up only nearly


class Clock(Protocol):
    async def sleep(self, seconds: float) -> None: ...


class RealSleep:
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class NodeKind(NamedTuple):
    gpus: float
    flavor: str | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """How an attempt goes. Seconds on the cluster's clock; `runs_for_s` None: until it is told to stop."""

    starts_after_s: float = 0.0
    runs_for_s: float | None = 10.0
    steps: int = 10
    loss: float = 1.0  # after the first step, and a part of it after each later one
    stops_after_s: float = 0.0
    resizes_after_s: float = 0.0
    not_started: str = ""  # an event: the launch fails
    outcome: str = "succeeded"
    event: str = "error"
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def by_kind(order: LaunchOrder) -> Script:
    """Replicas answer until they are told to stop, everything else takes ten seconds."""
    return Script(runs_for_s=None) if order.kind == "serve" else Script()


@dataclass(slots=True)
class FakeAttempt:
    order: LaunchOrder
    script: Script
    running: bool = False
    ended: Observation | None = None
    step: int | None = None  # the last one that it reported: its receipt says it, too
    told: asyncio.Event = field(default_factory=asyncio.Event)  # to stop
    task: asyncio.Task[None] | None = None


class FakeCluster:
    """`launched` lists every launch that really began; `refused` those that did not fit."""

    def __init__(
        self,
        nodes: Iterable[Any] = (),
        *,
        clock: Clock | None = None,
        script: Callable[[LaunchOrder], Script] = by_kind,
    ) -> None:
        self.id = "fake-1"
        self.clock = clock or RealSleep()
        self.script = script
        self.nodes: dict[str, NodeSeen] = {}
        self.attempts: dict[str, FakeAttempt] = {}
        self.launched: list[str] = []
        self.refused: list[str] = []
        self.stopped: list[StopOrder] = []
        self.adapters: list[AdapterOrder] = []
        self.asks: dict[tuple[str, str], AskSeen] = {}  # without an answer yet, by attempt and id
        self.answers: dict[tuple[str, str], str] = {}
        self.commands: dict[str, CommandOrder] = {}  # that run: `sleep` does until it is ended
        self.folder = "."  # where what is done by hand is done
        self._by_hand: dict[str, tuple[Any, threading.Event]] = {}
        self.routes: RouteTable | None = None
        self.capacity: tuple[Any, ...] = ()
        self.epoch = 0
        self._deliver: Deliver | None = None
        self._used: dict[str, float] = {}  # node -> GPUs of the attempts that have not ended
        self._numbers = itertools.count(1)
        for node in nodes:
            self.add_node(node.gpus, node.flavor)

    # --- what happens to the world ----------------------------------------------------------------------------------

    def add_node(self, gpus: float, flavor: str | None = None, *, labels: dict[str, str] | None = None) -> str:
        number = next(self._numbers)
        name = f"node-{number}"
        known = {"ray.io/node-id": name, **({"ray.io/accelerator-type": flavor} if flavor else {}), **(labels or {})}
        self.nodes[name] = NodeSeen(name, gpus, CPUS_PER_NODE, MEMORY_PER_NODE, known, {}, name)
        self.say(self.nodes[name])
        return name

    def take_away(self, node: str, at: float | None = None) -> None:
        """The cluster says that it will, at that time; it does so when `lose_node` says."""
        self.nodes[node] = replace(self.nodes[node], leaving=True, leaves_at=at)
        self.say(self.nodes[node])

    def keep(self, node: str) -> None:
        """It will not take it away after all."""
        self.nodes[node] = replace(self.nodes[node], leaving=False, leaves_at=None)
        self.say(self.nodes[node])

    def lose_node(self, node: str) -> None:
        """The node and whatever touches it are gone at once."""
        del self.nodes[node]
        self.say(NodeGone(node))
        for name, attempt in list(self.attempts.items()):
            if any(member.node == node for member in attempt.order.members):
                self.kill(name, f"node {node} was lost")

    def kill(self, name: str, message: str = "its process died") -> None:
        """The attempt vanishes without a receipt."""
        attempt = self._drop(name)
        self.say(Vanished(attempt.order.gang, attempt.order.attempt, message))

    def lose_contact(self, message: str = "the connection was lost") -> None:
        self.say(Disconnected(message))

    def regain_contact(self) -> None:
        self.say(Connected(self.id, self.urls, tuple(self.nodes)))
        for node in self.nodes.values():
            self.say(node)

    def start_anew(self) -> None:
        """Ray died and came back empty: other node ids, nothing runs."""
        kinds = [(node.gpus, node.labels.get("ray.io/accelerator-type")) for node in self.nodes.values()]
        self.drop_all()
        self.nodes.clear()
        self.id = f"fake-{int(self.id.partition('-')[2]) + 1}"
        deliver, self._deliver = self._deliver, None
        for gpus, flavor in kinds:
            self.add_node(gpus, flavor)
        self._deliver = deliver
        self.lose_contact()
        self.regain_contact()

    @property
    def urls(self) -> dict[str, str]:
        return {}

    def running(self) -> list[str]:
        return sorted(name for name, attempt in self.attempts.items() if attempt.running and attempt.ended is None)

    # --- what the executor asks of it -------------------------------------------------------------------------------

    def say(self, seen: Observation) -> None:
        if self._deliver is not None:
            self._deliver(seen)

    def watch(self, deliver: Deliver | None) -> None:
        self._deliver = deliver

    def is_stale(self, epoch: int) -> bool:
        self.epoch = max(self.epoch, epoch)
        return epoch < self.epoch

    def launch(self, order: LaunchOrder) -> None:
        known = self.attempts.get(order.name)
        if known is not None:
            self._say_again(known)
            return
        if not self._fits(order):
            self.refused.append(order.name)
            self.say(NotStarted(order.gang, order.attempt, "no-capacity", "it does not fit on its nodes"))
            return
        attempt = self.attempts[order.name] = FakeAttempt(order, self.script(order))
        self._count(order, 1)
        self.launched.append(order.name)
        attempt.task = asyncio.create_task(self._live(attempt))

    def adopt(self, live: Sequence[tuple[LaunchOrder, bool]]) -> None:
        wanted = {order.name for order, _ in live}
        for name in [name for name in self.attempts if name not in wanted]:
            self._drop(name)
        for order, was_running in live:
            if order.name in self.attempts or not was_running:
                self.launch(order)
            else:
                self.say(Vanished(order.gang, order.attempt, "nothing of it was found"))

    async def resize(self, order: LaunchOrder) -> None:
        attempt = self.attempts.get(order.name)
        if attempt is None or attempt.ended is not None:
            self.say(Vanished(order.gang, order.attempt, "nothing of it was found"))
            return
        await self.clock.sleep(attempt.script.resizes_after_s)
        if self.attempts.get(order.name) is not attempt:
            return  # it vanished meanwhile, and that was said
        if attempt.ended is None:
            self._count(attempt.order, -1)
            self._count(order, 1)
        attempt.order = replace(attempt.order, members=order.members)
        self.say(ResizeDone(order.gang, order.attempt, len(order.members)))

    def stop(self, order: StopOrder) -> None:
        self.stopped.append(order)
        attempt = self.attempts.get(order.name)
        if attempt is None:
            self.say(Ended(order.gang, order.attempt, "released"))
        elif attempt.ended is not None:
            self.say(attempt.ended)
        else:
            attempt.told.set()

    def load_adapter(self, order: AdapterOrder) -> None:
        self.adapters.append(order)
        self.say(AdapterAnswer(order.gang, order.attempt, order.name, order.uri))

    def ask(self, name: str, id: str, body: str) -> None:
        """The work of an attempt does: told until it is answered, as a supervisor does."""
        order = self.attempts[name].order
        self.asks[name, id] = AskSeen(order.gang, order.attempt, id, body)
        self.say(self.asks[name, id])

    def answer(self, answer: AskAnswer) -> None:
        if self.asks.pop((answer.name, answer.id), None) is not None:
            self.answers[answer.name, answer.id] = answer.body

    def execute(self, order: CommandOrder, hear: Hear) -> None:
        """Three programs are known: `echo WORDS`, `exit CODE`, and `sleep`, which runs until it is ended."""
        program, *words = order.argv
        if order.name not in self.running():
            hear(CommandEnded(order.id, None, "nothing of it was found"))
        elif program == "sleep":
            self.commands[order.id] = order
            hear(CommandSaid(order.id, "stdout", "zzz\n"))
        elif program == "exit":
            hear(CommandEnded(order.id, int(words[0])))
        elif program == "echo":
            hear(CommandSaid(order.id, "stdout", f"{' '.join(words)}\n"))
            hear(CommandEnded(order.id, 0))
        else:
            hear(CommandSaid(order.id, "stderr", f"cannot run {program!r}: No such file or directory\n"))
            hear(CommandEnded(order.id, 127))

    def by_hand(self, order: CommandOrder, hear: Hear) -> None:
        """Really, on this machine, in `folder`; heard from a thread, in the loop that asked."""
        from llmsched.runtime.by_hand import ByHand

        if order.name not in self.running():
            hear(CommandEnded(order.id, None, "nothing of it was found"))
            return
        stop, loop = threading.Event(), asyncio.get_running_loop()
        beside = ByHand(order.does, order.argv, self.folder, dict(os.environ), stop)
        self.commands[order.id] = order
        self._by_hand[order.id] = beside, stop

        def listen() -> None:
            for stream, text, *code in beside.said():
                answer = (
                    CommandEnded(order.id, code[0], text) if stream == "end" else CommandSaid(order.id, stream, text)
                )
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(hear, answer)
            self.commands.pop(order.id, None)
            self._by_hand.pop(order.id, None)

        threading.Thread(target=listen, daemon=True).start()

    def take(self, told: CommandInput) -> None:
        if (beside := self._by_hand.get(told.order.id)) is not None:
            beside[0].take([base64.b64decode(told.frame)])

    def end_command(self, order: CommandOrder | DashboardOrder) -> None:
        if (beside := self._by_hand.get(order.id)) is not None:
            beside[1].set()
        else:
            self.commands.pop(order.id, None)

    def ask_dashboard(self, order: DashboardOrder, hear: Hear) -> None:
        """Says whose it is and what it was asked; below /none there is nothing, /broken breaks off, and of jobs it has
        one."""
        if order.gang and order.name not in self.running():
            hear(CommandEnded(order.id, None, "its dashboard does not answer"))
            return
        head = {"status": 404 if order.path.startswith("/none") else 200, "headers": {"content-type": "text/plain"}}
        hear(CommandSaid(order.id, "head", json.dumps(head)))
        said = f"{order.gang or 'the cluster'}: {order.path} {dict(order.headers)}\n"
        if order.path.startswith("/api/jobs/"):
            said = json.dumps([{"type": "DRIVER", "job_id": "01000000", "submission_id": None, "status": "RUNNING"}])
        hear(CommandSaid(order.id, "body", base64.b64encode(said.encode()).decode()))
        is_broken = order.path.startswith("/broken")
        hear(CommandEnded(order.id, None if is_broken else 0, "it broke" if is_broken else ""))

    def _say_again(self, attempt: FakeAttempt) -> None:
        if attempt.ended is not None:
            if attempt.step is not None:
                self.say(Progress(attempt.order.gang, attempt.order.attempt, {"step": attempt.step}))
            self.say(attempt.ended)
        elif attempt.running:
            self.say(Started(attempt.order.gang, attempt.order.attempt))
            for (name, _), seen in self.asks.items():
                if name == attempt.order.name:
                    self.say(seen)

    def _fits(self, order: LaunchOrder) -> bool:
        wanted: dict[str, float] = {}
        for member in order.members:
            wanted[member.node] = wanted.get(member.node, 0.0) + member.gpus
        return all(
            node in self.nodes and self._used.get(node, 0.0) + gpus <= self.nodes[node].gpus + SLACK_GPUS
            for node, gpus in wanted.items()
        )

    def _count(self, order: LaunchOrder, sign: int) -> None:
        for member in order.members:
            self._used[member.node] = self._used.get(member.node, 0.0) + sign * member.gpus

    def drop_all(self) -> None:
        """Nothing runs any more, and nobody is told."""
        for name in list(self.attempts):
            self._drop(name)

    def _drop(self, name: str) -> FakeAttempt:
        attempt = self.attempts.pop(name)
        if attempt.task is not None:
            attempt.task.cancel()
        if attempt.ended is None:
            self._count(attempt.order, -1)
        return attempt

    async def _live(self, attempt: FakeAttempt) -> None:
        order, script = attempt.order, attempt.script
        gang, number = order.gang, order.attempt
        if await self._pause(attempt, script.starts_after_s):
            return
        if script.not_started:
            self._end(attempt, NotStarted(gang, number, script.not_started, script.message))
            return
        attempt.running = True
        self.say(Started(gang, number))
        if script.runs_for_s is None:
            await attempt.told.wait()
            await self._release(attempt)
            return
        for step in range(1, script.steps + 1):
            if await self._pause(attempt, script.runs_for_s / script.steps):
                return
            attempt.step = step
            self.say(Progress(gang, number, {"step": step, "total_steps": script.steps, "loss": script.loss / step}))
            self.say(CheckpointSeen(gang, number, step, step / script.steps))
        ok = script.outcome == "succeeded"
        artifact = f"{order.storage}/{gang}/artifact/{number}-{order.epoch}" if ok else None
        self._end(attempt, Ended(gang, number, script.outcome, script.message, script.event, artifact, script.metrics))

    async def _pause(self, attempt: FakeAttempt, seconds: float) -> bool:
        """True when it was told to stop meanwhile, and has."""
        told = asyncio.ensure_future(attempt.told.wait())
        asleep = asyncio.ensure_future(self.clock.sleep(seconds))
        try:
            await asyncio.wait({told, asleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            asleep.cancel()
        if attempt.told.is_set():
            await self._release(attempt)
            return True
        return False

    async def _release(self, attempt: FakeAttempt) -> None:
        await self.clock.sleep(attempt.script.stops_after_s)
        self._end(attempt, Ended(attempt.order.gang, attempt.order.attempt, "released"))

    def _end(self, attempt: FakeAttempt, seen: Observation) -> None:
        self._count(attempt.order, -1)
        attempt.ended = seen  # kept, as a receipt is: who was away hears of it at the next adopt
        self.say(seen)


class FakeExecutor:
    """One controller's connection. Give it nodes, or a `cluster` that others have used before."""

    def __init__(self, nodes: Iterable[Any] = (), *, cluster: FakeCluster | None = None) -> None:
        self.cluster = cluster or FakeCluster(nodes)
        self._open = False
        self._hearers: dict[str, Hear] = {}

    async def start(self, deliver: Deliver, epoch: int) -> None:
        self._open = True
        self.cluster.is_stale(epoch)
        self.cluster.watch(deliver)
        self.cluster.regain_contact()

    async def adopt(self, live: Sequence[tuple[LaunchOrder, bool]]) -> None:
        if not any(self._is_refused(order.epoch) for order, _ in live):
            self.cluster.adopt(live)

    async def launch(self, order: LaunchOrder) -> None:
        if not self._is_refused(order.epoch):
            self.cluster.launch(order)

    async def resize(self, order: LaunchOrder) -> None:
        if not self._is_refused(order.epoch):
            await self.cluster.resize(order)

    async def stop(self, order: StopOrder) -> None:
        if not self._is_refused(order.epoch):
            self.cluster.stop(order)

    async def load_adapter(self, order: AdapterOrder) -> None:
        if not self._is_refused(order.epoch):
            self.cluster.load_adapter(order)

    async def answer(self, answer: AskAnswer) -> None:
        if not self._is_refused(answer.epoch):
            self.cluster.answer(answer)

    async def execute(self, order: CommandOrder, hear: Hear) -> None:
        if not self._is_refused(order.epoch):
            by_hand = order.does != "run"
            self._hearers[order.id] = hear
            (self.cluster.by_hand if by_hand else self.cluster.execute)(order, hear)

    async def tell_command(self, told: CommandInput) -> None:
        self.cluster.take(told)
        self._hearers[told.order.id](CommandTook(told.order.id, 1))

    async def ask_dashboard(self, order: DashboardOrder, hear: Hear) -> None:
        if not self._is_refused(order.epoch):
            self.cluster.ask_dashboard(order, hear)

    async def end_command(self, order: CommandOrder | DashboardOrder) -> None:
        self._hearers.pop(order.id, None)
        self.cluster.end_command(order)

    async def route(self, table: RouteTable) -> None:
        self._is_refused(self.cluster.epoch)
        self.cluster.routes = table

    async def request_capacity(self, bundles: Sequence[tuple[dict[str, float], dict[str, str], int]]) -> None:
        self._is_refused(self.cluster.epoch)
        self.cluster.capacity = tuple(bundles)

    async def close(self, *, stop_everything: bool = False) -> None:
        if not self._open:
            return
        self._open = False
        self.cluster.watch(None)
        if stop_everything:
            self.cluster.drop_all()

    def _is_refused(self, epoch: int) -> bool:
        """Orders of an older controller change nothing. Raises ClusterError when not connected."""
        if not self._open:
            raise ClusterError("not connected", code="disconnected")
        return self.cluster.is_stale(epoch)
