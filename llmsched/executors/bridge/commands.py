"""Commands of people beside running attempts: asked of the supervisor, or of the replica itself, and passed on. So are
questions to the dashboards of Ray: a private one's through the worker at its head, the cluster's from here.

A thread each, for a command may take its time; they share nothing with the orders about attempts. Decides nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from llmsched.executors.port import CommandAnswer, CommandEnded, CommandOrder, CommandSaid, DashboardOrder, LaunchOrder
from llmsched.gateway import serve_internals
from llmsched.gateway.app import DEPLOYMENT
from llmsched.runtime import dashboard
from llmsched.runtime.attempt import NAMESPACE

AT_ONCE = 16
ASKED_AT_ONCE = 32  # a page of a dashboard asks for six things side by side
Order = CommandOrder | DashboardOrder


class Commands:
    def __init__(self, send: Any, dashboard: str = "") -> None:
        """`dashboard`: http://HOST:PORT of the cluster's."""
        self._send, self._dashboard = send, dashboard
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._asked: set[str] = set()

    def run(self, order: CommandOrder) -> None:
        self._begin(order, self._running, AT_ONCE, "commands run")

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
        threading.Thread(target=_end, args=(order,), daemon=True).start()

    def end_left_behind(self, attempt: LaunchOrder) -> None:
        """End the commands beside an attempt that a bridge before this one began: nobody hears them any more."""
        with self._lock:
            mine = sorted(self._running)
        try:
            if attempt.kind == "serve":
                serve_internals.handle(DEPLOYMENT, attempt.name).end_commands.remote(mine)
            else:
                ray.get_actor(attempt.name, namespace=NAMESPACE).end_commands.remote(mine)
        except Exception as error:  # the attempt is gone, and they with it
            print(f"commands beside {attempt.name}: {error!r}", file=sys.stderr)

    def _pass_on(self, order: Order) -> None:
        last: CommandAnswer = CommandEnded(order.id, None, "it ended without saying how")
        try:
            said = _said(order) if isinstance(order, CommandOrder) else _answered(order, self._dashboard)
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
            self._send(last)


def _said(order: CommandOrder) -> Iterator[Any]:
    if order.kind == "serve":
        handle = serve_internals.handle(DEPLOYMENT, order.name).options(stream=True)
        yield from handle.execute.remote(order.id, list(order.argv), order.timeout_s)
        return
    supervisor = ray.get_actor(order.name, namespace=NAMESPACE)
    call = supervisor.execute.options(num_returns="streaming")
    for item in call.remote(order.id, order.rank, list(order.argv), order.timeout_s):
        yield ray.get(item)


def _answered(order: DashboardOrder, of_cluster: str) -> Iterator[Any]:
    if not order.gang:
        if not of_cluster:
            yield "end", "this Ray has no dashboard", None
            return
        yield from dashboard.ask(of_cluster, _token(), order.path, dict(order.headers))
        return
    head = ray.get(ray.get_actor(order.name, namespace=NAMESPACE).ray_head.remote())
    if head is None:
        yield "end", "its Ray has not come up yet, or has ended", None
        return
    call = head.ask_dashboard.options(num_returns="streaming")
    for item in call.remote(order.path, dict(order.headers)):
        yield ray.get(item)


def _token() -> str:
    """With which this process was let in, where Ray itself looks for it. "": the cluster wants none."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    given = os.environ.get("RAY_AUTH_TOKEN")
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return given or Path(file).read_text().strip()


def _end(order: CommandOrder) -> None:
    if order.kind == "serve":
        serve_internals.handle(DEPLOYMENT, order.name).end_command.remote(order.id)
    else:
        ray.get_actor(order.name, namespace=NAMESPACE).end_command.remote(order.id)
