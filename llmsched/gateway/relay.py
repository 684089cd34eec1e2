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
from llmsched.gateway.latencies import Took
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
        task = self._carry(errand, self._claim(errand), self._begin(errand), work)
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
        claim, took = self._claim(errand), self._begin(errand)
        task = self._carry(errand, claim, took, _bring(chunks, brought, claim.said, took))
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

    def _begin(self, errand: Errand) -> Took:
        return self._signals.latencies.begin(errand.pool.workload, errand.chosen.slot.name)

    def _carry(self, errand: Errand, claim: Claim, took: Took, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        workload, key, replica = errand.pool.workload, errand.key, errand.chosen.slot.name
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
            has_ended = not task.cancelled() and task.exception() is None  # it was told, or nobody is left to hear it
            if has_ended and task.result() is not None:  # of a stream that is said where it is brought
                took.end(not _is_error(task.result()))
            self._signals.latencies.end(workload, replica, took)
            self._freed(workload)

        task = asyncio.create_task(work)
        self._carrying.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(put_down)
        return task


async def _bring(
    chunks: AsyncGenerator[Any, None], brought: asyncio.Queue[Any], said: Callable[[], None], took: Took
) -> None:
    is_well = True
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                said()
                took.piece()
                is_well &= not _is_error(chunk)
                await brought.put(chunk)
    except Exception as error:
        await brought.put(_Failed(error))
    else:
        took.end(is_well)
        await brought.put(_END)


def _is_error(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("error"), dict)


def timed_out(limit_s: float) -> Refused:
    return Refused(
        504, f"The answer took longer than the {limit_s:g} s that a request may take here (request_timeout).",
        code="timeout",
    )  # fmt: skip
