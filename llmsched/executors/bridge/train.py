"""Attempts of train, batch, tune and task gangs: one supervisor actor each, created or adopted by name, then watched.
That of a task may be one that had another attempt before (`warm_pool.py`).

It holds no truth: a receipt in the storage outranks what Ray says of the actor, and an actor that is gone without one
has vanished. Start reading at `Attempts.launch` and `Attempts.look`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from llmsched import sanitize
from llmsched.executors.bridge.warm_pool import WarmPool
from llmsched.executors.port import (
    AskAnswer,
    AskSeen,
    CheckpointSeen,
    Deliver,
    Ended,
    LaunchAsked,
    LaunchOrder,
    Member,
    NotStarted,
    Progress,
    ResizeDone,
    Stalled,
    Started,
    StopOrder,
    Vanished,
)
from llmsched.runtime import receipt as receipts
from llmsched.runtime.addressed import Addressed, can_be_left, end_at_once, warm_name
from llmsched.runtime.ask_desk import ASKS_AT_ONCE
from llmsched.runtime.attempt import NAMESPACE
from llmsched.runtime.containment import envs_of
from llmsched.runtime.storage import Storage, StorageError
from llmsched.runtime.supervisor import Supervisor
from llmsched.runtime.warm_supervisor import WarmSupervisor

ASKED_AGAIN_S = 30.0  # what is not answered by then
BEGINS_WITHIN_S = 5.0  # who has had another attempt before
SILENT_SAID_S, SILENT_ENDED_S = 10.0, 60.0  # without an answer of a supervisor that had answered before

OF_ANOTHER = (
    "the storage holds under {folder} what other work of this name has left, so this did not start: an older backup of "
    "the journal was put back since, and the name was given again. Submit it under another name."
)


@dataclass
class _Attempt:
    order: LaunchOrder
    actor: Any
    is_started: bool = False
    is_resizing: bool = False
    before: tuple[Member, ...] = ()  # while it resizes: what it may hold still
    progress: dict[str, Any] = field(default_factory=dict)
    checkpoint: list[Any] | None = None
    stalled: str = ""
    asks: dict[str, float] = field(default_factory=dict)  # what its work asked for, and when that was told: monotonic
    answered_at: float | None = None  # monotonic; None: it has not come up yet
    asked: Any = None  # the status call that is under way


class Attempts:
    """Called from several threads; `_lock` guards the table, never a call to Ray."""

    def __init__(
        self,
        deliver: Deliver,
        storage: str,
        mark: Callable[[str], str],
        warm: WarmPool | None = None,
        is_cleared: Callable[[str], None] = lambda attempt: None,
    ) -> None:
        """`is_cleared` is told of an attempt whose workers have looked for what it left on their nodes themselves."""
        self._deliver, self._storage, self._mark, self._is_cleared = deliver, storage, mark, is_cleared
        self._lock = threading.Lock()
        self._live: dict[str, _Attempt] = {}
        self._warm = warm or WarmPool()

    def launch(self, order: LaunchOrder) -> None:
        """Start the attempt, or go on watching it when it runs; one that ended already is told again."""
        if self._tell_receipt(order.gang, order.attempt, receipts.work_of(asdict(order))):
            return
        with self._lock:
            if order.name in self._live:
                return
        self._end_superseded(order)
        self._deliver(LaunchAsked(order.gang, order.attempt, time.time()))
        actor = self._left_by_another(order) or self._new(order)
        with self._lock:
            self._live[order.name] = _Attempt(order, actor)

    def _new(self, order: LaunchOrder) -> Any:
        """A supervisor of its own. Its name makes it one of a kind, so "get if exists" adopts exactly this attempt."""
        self._warm.make_way(order)
        is_warm = can_be_left(order.kind, order.spec)
        name = warm_name(order.name) if is_warm else order.name
        said = [json.dumps(asdict(order)), self._mark(order.name)][: 1 + is_warm]
        actor = (
            ray.remote(WarmSupervisor if is_warm else Supervisor)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=0,
                max_concurrency=16,
                num_cpus=0,
                resources={"node:__internal_head__": 0.001},
                runtime_env={"env_vars": envs_of(self._mark(name))},
            )
            .remote(*said)
        )
        return Addressed(actor, order.name) if is_warm else actor

    def _left_by_another(self, order: LaunchOrder) -> Any:
        """The supervisor of an attempt that has ended on the same places, if there is one."""
        if not can_be_left(order.kind, order.spec) or (actor := self._warm.take(order)) is None:
            return None
        begun = actor.begin_next.remote(json.dumps(asdict(order)), self._mark(order.name))
        try:
            ray.get(begun, timeout=BEGINS_WITHIN_S)
        except ray.exceptions.GetTimeoutError:
            pass  # it will: a second one must not
        except ray.exceptions.RayError as error:
            print(f"{order.name}: the supervisor before it has gone: {sanitize.first_line(error)}", file=sys.stderr)
            return None
        return Addressed(actor, order.name)

    def _end_superseded(self, order: LaunchOrder) -> None:
        """Earlier attempts of the gang are over for the scheduler: they must not hold what the new one is to get."""
        with self._lock:
            old = [one for one in self._live.values() if one.order.gang == order.gang and one.order.name != order.name]
        for one in old:
            one.actor.stop.remote("stop", 0.0)

    def adopt(self, order: LaunchOrder, was_running: bool) -> None:
        """Watch what runs. Without a supervisor and a receipt: launch it if it never ran, else it has vanished."""
        with self._lock:
            if order.name in self._live:
                self._live[order.name].is_started = False  # to be told again
                self._live[order.name].progress = {}
                self._live[order.name].asks = {}
                return
        if self._warm.has_left(order.name):
            self._is_cleared(order.name)
        if self._tell_receipt(order.gang, order.attempt):
            return
        actor = self.supervisor(order.name)
        if actor is None:
            if was_running:
                self._vanish(order, "its supervisor is gone")
            else:
                self.launch(order)
            return
        with self._lock:
            self._live[order.name] = _Attempt(order, actor)

    def resize(self, order: LaunchOrder) -> None:
        """Let the running attempt hold the order's members. `look` says when it does: of a smaller size once it has
        left the old one, before it has begun at the new one."""
        self._warm.make_way(order)
        with self._lock:
            one = self._live.get(order.name)
            if one is not None:
                one.before = (*one.before, *one.order.members)  # it may not yet have left what it held before that
                one.order, one.is_resizing = order, True
        if one is None:
            self._deliver(Vanished(order.gang, order.attempt, "it is not running"))
            return
        one.actor.resize.remote(json.dumps([asdict(member) for member in order.members]), order.grace_s)

    def stop(self, order: StopOrder) -> None:
        """Ask the supervisor; what is gone already is answered as released (or by its receipt, if we know where)."""
        actor = self.supervisor(order.name)
        if actor is None:
            if not self._tell_receipt(order.gang, order.attempt):
                self._deliver(Ended(order.gang, order.attempt, "released", "it was gone already"))
            return
        actor.stop.remote(order.mode, order.grace_s)

    def supervisor(self, name: str) -> Any:
        """Of the attempt of that name; None: it is gone."""
        with self._lock:
            if (known := self._live.get(name)) is not None:
                return known.actor
        for actor_name in (self._warm.name_of(name), name):
            with suppress(ValueError):
                actor = ray.get_actor(actor_name, namespace=NAMESPACE)
                return actor if actor_name == name else Addressed(actor, name)
        return None

    def answer(self, answer: AskAnswer) -> None:
        with self._lock:
            one = self._live.get(answer.name)
        if one is not None:
            one.actor.answered.remote(answer.id, answer.body)

    def held(self) -> dict[str, tuple[Member, ...]]:
        """What each attempt was ordered to hold, by its name; one that changes its size holds both for a while."""
        with self._lock:
            live = {name: one.order.members + one.before for name, one in self._live.items()}
        return live | self._warm.held()

    def names(self) -> set[str]:
        with self._lock:
            return set(self._live)

    def node_gone(self, node: str) -> None:
        """Whoever works or is to work there is ended now: Ray Train would wait a minute for a place."""
        with self._lock:
            hit = [one for one in self._live.values() if any(member.node == node for member in one.order.members)]
        for one in hit:
            one.actor.lost_node.remote(node)
        self._warm.node_gone(node)

    def look(self) -> None:
        """Ask everyone at once, take what is there, and leave slow ones for the next look."""
        self._warm.end_idle()
        with self._lock:
            live = list(self._live.values())
        for one in live:
            if one.asked is None:
                one.asked = one.actor.status.remote()
        if not live:
            return
        answered, _ = ray.wait([one.asked for one in live], num_returns=len(live), timeout=0.2)
        done = set(answered)
        now = time.monotonic()
        for one in live:
            if one.asked in done:
                asked, one.asked = one.asked, None
                one.answered_at = now
                try:
                    self._tell(one, ray.get(asked))
                except ray.exceptions.ActorUnavailableError:
                    continue  # cut off for a moment: the next look tells
                except ray.exceptions.RayActorError as error:
                    print(f"{one.order.name}: {sanitize.first_line(error)}", file=sys.stderr)
                    self._gone(one, "its supervisor died")
                except Exception as error:  # of one attempt; the others are looked at all the same
                    self._give_up(one, error)

            elif one.answered_at is not None and now - one.answered_at > SILENT_SAID_S:
                self._wait_for(one, now - one.answered_at)

    def _wait_for(self, one: _Attempt, silent_s: float) -> None:
        """A supervisor that hangs: say so, and after a while take it for gone, with all that hangs on it."""
        self._tell_stalled(one, "its supervisor does not answer")
        if silent_s > SILENT_ENDED_S:
            end_at_once(one.actor)
            self._gone(one, f"its supervisor did not answer for {SILENT_ENDED_S:.0f} s")

    def _tell_stalled(self, one: _Attempt, message: str) -> None:
        if message != one.stalled:
            one.stalled = message
            self._deliver(Stalled(one.order.gang, one.order.attempt, message))

    def _tell(self, one: _Attempt, status: dict[str, Any]) -> None:
        with self._lock:  # together: whoever hears Started may ask for another size before this is through
            order, is_resizing = one.order, one.is_resizing
        receipt = status["receipt"]
        if status["started"] and not one.is_started:
            one.is_started = True
            self._deliver(Started(order.gang, order.attempt))
        is_smaller = len(order.members) < len(one.before)
        holds = status["started"] or (is_smaller and status["is_clear"])  # who waits for the rest need not wait longer
        if is_resizing and holds and status["size"] == len(order.members) and not status["stopping"]:
            one.is_resizing, one.before = False, ()
            self._deliver(ResizeDone(order.gang, order.attempt, status["size"]))
        self._tell_stalled(one, str(status["stalled"]))
        if status["progress"] != one.progress:
            one.progress = status["progress"]
            self._deliver(Progress(order.gang, order.attempt, one.progress))
        if status["checkpoint"] != one.checkpoint:
            one.checkpoint = status["checkpoint"]
            step, fraction = status["checkpoint"]
            self._deliver(CheckpointSeen(order.gang, order.attempt, int(step), fraction))
        self._tell_asks(one, status["asks"][:ASKS_AT_ONCE])
        if receipt is not None:
            self._forget(one)
            if status["leaves"]:
                self._warm.put(one.actor, order)
                self._is_cleared(order.name)
            else:
                one.actor.dismiss.remote()
            self._deliver(_ended(order.gang, order.attempt, receipts.of(receipt)))

    def _tell_asks(self, one: _Attempt, asks: list[tuple[str, str]]) -> None:
        """Once, and again where no answer comes: what is asked twice is done once."""
        now = time.monotonic()
        told = {id: one.asks[id] for id, _ in asks if id in one.asks and now - one.asks[id] < ASKED_AGAIN_S}
        for id, body in asks:
            if id not in told:
                told[id] = now
                self._deliver(AskSeen(one.order.gang, one.order.attempt, id, body))
        one.asks = told

    def _gone(self, one: _Attempt, message: str) -> None:
        """By its receipt, or as vanished. While the storage is away nobody knows which: it is looked at again."""
        try:
            is_told = self._tell_receipt(one.order.gang, one.order.attempt)
        except (OSError, StorageError) as error:
            self._tell_stalled(one, f"{message}, and its receipt cannot be read: {sanitize.first_line(error)}")
            return
        self._forget(one)
        if not is_told:
            self._vanish(one.order, message)

    def _give_up(self, one: _Attempt, error: Exception) -> None:
        """What cannot be understood cannot be watched: it has failed, and what runs of it is orphaned and reaped."""
        traceback.print_exception(error)
        self._forget(one)
        message = f"what its supervisor says cannot be taken in: {sanitize.first_line(error)}"
        self._deliver(Ended(one.order.gang, one.order.attempt, "failed", message))

    def _vanish(self, order: LaunchOrder, message: str) -> None:
        """What it held is freed by the reaper, which goes by what Ray says of it."""
        self._deliver(Vanished(order.gang, order.attempt, message))

    def _forget(self, one: _Attempt) -> None:
        with self._lock:
            self._live.pop(one.order.name, None)

    def _tell_receipt(self, gang: str, attempt: int, work: str = "") -> bool:
        """`work`: what is asked for, where it begins only now. Raises OSError, StorageError: it cannot be known now."""
        found = receipts.read(Storage.at(self._storage), f"{gang}/{attempt}")
        if found is None:
            return False
        if work and found.work not in ("", work):
            self._deliver(NotStarted(gang, attempt, "input", OF_ANOTHER.format(folder=f"{gang}/{attempt}")))
            return True
        said = found.progress | ({} if found.step is None else {"step": found.step})
        if said:  # of an attempt that nobody looked at: its last reports reached no controller
            self._deliver(Progress(gang, attempt, said))
        self._deliver(_ended(gang, attempt, found))
        return True


def _ended(gang: str, attempt: int, receipt: receipts.Receipt) -> Ended | NotStarted:
    if receipt.outcome == "failed" and not receipt.started:
        return NotStarted(gang, attempt, receipt.event, receipt.message)
    event = "error" if receipt.event == "no-capacity" else receipt.event
    return Ended(gang, attempt, receipt.outcome, receipt.message, event, receipt.artifact, receipt.metrics)
