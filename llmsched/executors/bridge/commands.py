"""Commands of people beside running attempts: asked of the supervisor, or of the replica itself, and passed on. So are
questions to the dashboards of Ray: a private one's through the worker at its head, the cluster's from here.

A thread each, for a command may take its time; they share nothing with the orders about attempts. Decides nothing.
"""

from __future__ import annotations

import base64
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from llmsched.executors.port import (
    CommandAnswer,
    CommandEnded,
    CommandInput,
    CommandOrder,
    CommandSaid,
    CommandTook,
    DashboardOrder,
    LaunchOrder,
)
from llmsched.gateway import serve_internals
from llmsched.gateway.app import DEPLOYMENT
from llmsched.runtime import dashboard
from llmsched.runtime.command_worker import Ask

AT_ONCE = 16
ASKED_AT_ONCE = 32  # a page of a dashboard asks for six things side by side
_TAKES_WITHIN_S = 60.0
Order = CommandOrder | DashboardOrder


class Commands:
    def __init__(self, send: Any, supervisor: Callable[[str], Any], dashboard: str = "") -> None:
        """`supervisor`: of an attempt by its name, None if it is gone. `dashboard`: http://HOST:PORT of the
        cluster's."""
        self._send, self._supervisor, self._dashboard = send, supervisor, dashboard
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._asked: set[str] = set()
        self._told: dict[str, queue.SimpleQueue[CommandInput | None]] = {}  # of those that are told something

    def run(self, order: CommandOrder) -> None:
        self._begin(order, self._running, AT_ONCE, "commands run")

    def tell(self, told: CommandInput) -> None:
        """One thread a command hands on what it is told, in order: a method of an actor with threads has none."""
        with self._lock:
            if told.order.id not in self._running:
                return
            inbox = self._told.get(told.order.id)
            if inbox is None:
                inbox = self._told[told.order.id] = queue.SimpleQueue()
                threading.Thread(target=self._hand_on, args=(told.order, inbox), daemon=True).start()
        inbox.put(told)

    def _hand_on(self, order: CommandOrder, inbox: queue.SimpleQueue[CommandInput | None]) -> None:
        take = self._taker(order)
        while (told := inbox.get()) is not None:
            frames = [told.frame]
            with suppress(queue.Empty):
                while (more := inbox.get_nowait()) is not None:
                    frames.append(more.frame)
            try:
                take([base64.b64decode(one) for one in frames])
            except Exception as error:  # it is over: its end is said elsewhere
                print(f"command {order.id}: {error!r}", file=sys.stderr)
                return
            self._send(CommandTook(order.id, len(frames)))

    def ask(self, order: DashboardOrder) -> None:
        self._begin(order, self._asked, ASKED_AT_ONCE, "questions to dashboards are open")

    def leave(self, order: DashboardOrder) -> None:
        """Nobody listens any more: with its next piece it is given up."""
        with self._lock:
            self._asked.discard(order.id)

    def _begin(self, order: Order, open_: set[str], at_most: int, what: str) -> None:
        with self._lock:
            if len(open_) >= at_most:
                self._send(CommandEnded(order.id, None, f"{at_most} {what} already; try again later"))
                return
            open_.add(order.id)
        threading.Thread(target=self._pass_on, args=(order,), daemon=True, name=f"command {order.id}").start()

    def end(self, order: CommandOrder) -> None:
        with self._lock:
            if order.id not in self._running:
                return
        threading.Thread(target=self._end, args=(order,), daemon=True).start()

    def end_left_behind(self, attempt: LaunchOrder) -> None:
        """End the commands beside an attempt that a bridge before this one began: nobody hears them any more."""
        with self._lock:
            mine = sorted(self._running)
        try:
            if attempt.kind == "serve":
                serve_internals.handle(DEPLOYMENT, attempt.name).end_commands.remote(mine)
            else:
                self._of(attempt.name).end_commands.remote(mine)
        except Exception as error:  # the attempt is gone, and they with it
            print(f"commands beside {attempt.name}: {error!r}", file=sys.stderr)

    def _pass_on(self, order: Order) -> None:
        last: CommandAnswer = CommandEnded(order.id, None, "it ended without saying how")
        try:
            said = self._said(order) if isinstance(order, CommandOrder) else self._answered(order)
            for stream, text, *code in said:
                if isinstance(order, DashboardOrder) and order.id not in self._asked:
                    break
                if stream == "end":
                    last = CommandEnded(order.id, code[0], text)
                else:
                    self._send(CommandSaid(order.id, stream, text))
        except Exception as error:
            words = (str(error).strip().splitlines() or ["no message"])[0][:300]
            last = CommandEnded(order.id, None, f"{type(error).__name__}: {words}")
        finally:
            with self._lock:
                self._running.discard(order.id)
                self._asked.discard(order.id)
                inbox = self._told.pop(order.id, None)
            if inbox is not None:
                inbox.put(None)
            self._send(last)

    def _of(self, attempt: str) -> Any:
        """Raises ValueError."""
        if (found := self._supervisor(attempt)) is None:
            raise ValueError(f"{attempt} is gone")
        return found

    def _said(self, order: CommandOrder) -> Iterator[Any]:
        if order.kind == "serve":
            handle = serve_internals.handle(DEPLOYMENT, order.name).options(stream=True)
            yield from handle.execute.remote(order.id, _ask_of(order), order.rank)
            return
        call = self._of(order.name).execute.options(num_returns="streaming")
        for item in call.remote(order.id, order.rank, _ask_of(order)):
            yield ray.get(item)

    def _taker(self, order: CommandOrder) -> Any:
        """Takes frames to it, and returns when they are there."""
        if order.kind == "serve":
            handle = serve_internals.handle(DEPLOYMENT, order.name)
            return lambda frames: handle.take.remote(order.id, frames).result(timeout_s=_TAKES_WITHIN_S)
        supervisor = self._of(order.name)
        return lambda frames: ray.get(supervisor.take.remote(order.id, frames), timeout=_TAKES_WITHIN_S)

    def _answered(self, order: DashboardOrder) -> Iterator[Any]:
        if not order.gang:
            if not self._dashboard:
                yield "end", "this Ray has no dashboard", None
                return
            yield from dashboard.ask(self._dashboard, _token(), order.path, dict(order.headers))
            return
        head = ray.get(self._of(order.name).ray_head.remote())
        if head is None:
            yield "end", "its Ray has not come up yet, or has ended", None
            return
        call = head.ask_dashboard.options(num_returns="streaming")
        for item in call.remote(order.path, dict(order.headers)):
            yield ray.get(item)

    def _end(self, order: CommandOrder) -> None:
        if order.kind == "serve":
            serve_internals.handle(DEPLOYMENT, order.name).end_command.remote(order.id)
        else:
            self._of(order.name).end_command.remote(order.id)


def _ask_of(order: CommandOrder) -> Ask:
    return Ask(order.does, list(order.argv), order.timeout_s)


def _token() -> str:
    """With which this process was let in, where Ray itself looks for it. "": the cluster wants none."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    given = os.environ.get("RAY_AUTH_TOKEN")
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return given or Path(file).read_text().strip()
