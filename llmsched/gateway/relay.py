"""Carries one request to a replica and its answer back, and holds the replica's slot until the replica has let go.

The client may leave, or the time limit pass: the request is cancelled then, and its slot stays taken until the replica
has really ended the work. So what a replica cannot end counts against it, and nothing more is sent to one that is full
of it. One task a request does the carrying; whoever answers the client only waits for what it brings.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple

from llmsched.gateway.claim import Claim
from llmsched.gateway.refusals import Refused
from llmsched.gateway.replicas import Chosen, Pool
from llmsched.gateway.signals import Signals

CHUNKS_AHEAD = 64  # of the client, before the replica waits for it
_END: Any = object()


class _Failed(NamedTuple):
    error: Exception


class Errand(NamedTuple):
    """What is carried where: a request with that key, whose answer is expected to have so many tokens."""

    pool: Pool
    chosen: Chosen
    expected: int
    key: str


class Relay:
    def __init__(self, signals: Signals, freed: Callable[[str], None] = lambda workload: None) -> None:
        """`freed` hears of each workload of which a replica has a slot again."""
        self._signals, self._freed = signals, freed
        self._carrying: set[asyncio.Task[Any]] = set()
        self._of_keys: dict[str, Counter[str]] = {}  # by workload

    def in_flight(self, workload: str) -> dict[str, int]:
        """{key: requests that replicas have in hand}."""
        return self._of_keys.get(workload, {})

    async def call(self, errand: Errand, work: Coroutine[Any, Any, Any], limit_s: float) -> Any:
        """What `work` returns. Raises what it raises, and Refused (504) when it takes longer than `limit_s` seconds."""
        task = self._carry(errand, self._claim(errand), work)
        try:
            await asyncio.wait({task}, timeout=limit_s)
            if not task.done():
                raise timed_out(limit_s)
            return task.result()
        finally:
            task.cancel()  # of no effect on what is done

    async def stream(
        self, errand: Errand, chunks: AsyncGenerator[Any, None], limit_s: float
    ) -> AsyncGenerator[Any, None]:
        """The chunks as they come. Raises what they raise, and Refused (504) when they take longer altogether."""
        brought: asyncio.Queue[Any] = asyncio.Queue(CHUNKS_AHEAD)
        claim = self._claim(errand)
        task = self._carry(errand, claim, _bring(chunks, brought, claim.said))
        ends_at = asyncio.get_running_loop().time() + limit_s
        try:
            while True:
                try:
                    async with asyncio.timeout_at(ends_at):
                        chunk = await brought.get()
                except TimeoutError:
                    raise timed_out(limit_s) from None
                if chunk is _END or isinstance(chunk, _Failed):
                    await asyncio.wait({task})  # at once: the slot is free before the client hears of the end
                    if chunk is _END:
                        return
                    raise chunk.error
                yield chunk
        finally:
            task.cancel()

    def _claim(self, errand: Errand) -> Claim:
        return Claim(errand.chosen.slot, errand.chosen.unread, errand.expected)

    def _carry(self, errand: Errand, claim: Claim, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        workload, key = errand.pool.workload, errand.key
        of_keys = self._of_keys.setdefault(workload, Counter())
        self._signals.begin(workload)
        of_keys[key] += 1

        def put_down(task: asyncio.Task[Any]) -> None:
            self._carrying.discard(task)
            claim.end()
            of_keys[key] -= 1
            if not of_keys[key]:
                del of_keys[key]
            self._signals.end(workload)
            self._freed(workload)
            if not task.cancelled():
                task.exception()  # it has been told, or nobody is left to hear it

        task = asyncio.create_task(work)
        self._carrying.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(put_down)
        return task


async def _bring(chunks: AsyncGenerator[Any, None], brought: asyncio.Queue[Any], said: Callable[[], None]) -> None:
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                said()
                await brought.put(chunk)
    except Exception as error:
        await brought.put(_Failed(error))
    else:
        await brought.put(_END)


def timed_out(limit_s: float) -> Refused:
    return Refused(
        504, f"The answer took longer than the {limit_s:g} s that a request may take here (request_timeout).",
        code="timeout",
    )  # fmt: skip
