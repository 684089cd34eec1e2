"""Commands of people beside running attempts: asked of the supervisor, or of the replica itself, and passed on.

A thread each, for a command may take its time; they share nothing with the orders about attempts. Decides nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from llmsched.executors.port import CommandAnswer, CommandEnded, CommandOrder, CommandSaid, LaunchOrder
from llmsched.gateway import serve_internals
from llmsched.gateway.app import DEPLOYMENT
from llmsched.runtime.attempt import NAMESPACE

AT_ONCE = 16


class Commands:
    def __init__(self, send: Any) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._running: set[str] = set()

    def run(self, order: CommandOrder) -> None:
        with self._lock:
            if len(self._running) >= AT_ONCE:
                self._send(CommandEnded(order.id, None, f"{AT_ONCE} commands run already; try again later"))
                return
            self._running.add(order.id)
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

    def _pass_on(self, order: CommandOrder) -> None:
        last: CommandAnswer = CommandEnded(order.id, None, "it ended without saying how")
        try:
            for stream, text, *code in _said(order):
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


def _end(order: CommandOrder) -> None:
    if order.kind == "serve":
        serve_internals.handle(DEPLOYMENT, order.name).end_command.remote(order.id)
    else:
        ray.get_actor(order.name, namespace=NAMESPACE).end_command.remote(order.id)
