"""Time, as a port: the loop, leases and the fake executor ask here, so that tests and the simulator own the clock.

`now` is for stamps and for people; `monotonic` is for how long something took and for leases. Stamps never go back:
the real clock reads the wall once and counts on from there, so that a clock set back an hour expires nothing early
and nothing late.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds since some moment."""

    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """Stands still until `advance`; who sleeps wakes in the order of time."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._count = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, woken))
        await woken

    async def advance(self, seconds: float, *, settle: int = 20) -> None:
        """Let time pass; after each wake-up everyone else gets `settle` turns of the event loop."""
        until = self._now + seconds
        await _yield(settle)
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not woken.done():
                woken.set_result(None)
                await _yield(settle)
        self._now = until
        await _yield(settle)


async def wait_for_event(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Until the event is set or this much time has passed, whichever comes first."""
    if event.is_set() or seconds <= 0:
        return
    tasks = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _yield(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
