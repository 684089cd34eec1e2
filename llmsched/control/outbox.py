"""What leaves the loop: orders, one after the other, in the order in which they were decided.

What a lost executor misses it hears when it is back (`dispatch.resync`). What cannot be said at all is answered here as
if the cluster had refused it: nothing waits for an order that never left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from llmsched import sanitize
from llmsched.control.dispatch import Send
from llmsched.errors import ClusterError
from llmsched.executors import port

log = logging.getLogger("llmsched.control")


class Outbox:
    """`deliver` takes the answers to orders that could not leave."""

    def __init__(self, executor: port.Executor, deliver: port.Deliver) -> None:
        self._executor = executor
        self._deliver = deliver
        self._orders: asyncio.Queue[Send] = asyncio.Queue()

    def __len__(self) -> int:
        return self._orders.qsize()

    def put(self, sends: Iterable[Send]) -> None:
        for send in sends:
            self._orders.put_nowait(send)

    def clear(self) -> None:
        while not self._orders.empty():
            self._orders.get_nowait()

    async def run(self) -> None:
        while True:
            send = await self._orders.get()
            await asyncio.sleep(0)  # an executor may not wait: thousands of orders must not keep everybody else waiting
            try:
                await getattr(self._executor, send.method)(send.order)
            except ClusterError as error:
                log.warning("%s of %s: %s", send.method, send.gang or "all", error)
                if error.code != "disconnected":
                    self._answer(send, error)
            except Exception as error:
                log.exception("%s of %s failed", send.method, send.gang or "all")
                self._answer(send, error)

    def _answer(self, send: Send, error: Exception) -> None:
        """For whoever would wait for ever: a launch has failed; what cannot be told to leave or to change is gone, and
        taken away as nobody's."""
        why = f"the cluster could not be asked: {sanitize.first_line(error)}"
        if send.method == "launch":
            self._deliver(port.NotStarted(send.gang, send.attempt, "error", why))
        elif send.method in ("resize", "stop"):
            self._deliver(port.Vanished(send.gang, send.attempt, why))
