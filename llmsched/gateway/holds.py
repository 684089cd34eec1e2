"""Requests that wait for a replica: while an endpoint has none that answers, nobody is turned away at once.

Whoever waits is ahead of who comes later, until nobody does: the keys take turns, and of one key the one that came
first. What waits is bounded: in number, in bytes, and in time (`hold_timeout`). Where it
is too much, the newest of the key that has most of it makes room, so that no key keeps the others out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Collection

from llmsched.gateway.limits import RETRY_NO_REPLICA_S
from llmsched.gateway.refusals import Refused
from llmsched.gateway.replicas import Chosen, Pool
from llmsched.gateway.signals import Signals

HELD_AT_MOST = 1000  # requests to one endpoint
HELD_BYTES = 64 << 20  # of all their bodies together
LOOK_S = 0.25  # a replica that is avoided may be asked again after a while: nobody says so
_MAY_COME = ("no_replica", "full")


class Held:
    """One that waits. `turn` is over when it may try for a replica."""

    __slots__ = ("key", "size", "turn")

    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Holds:
    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._lines: dict[str, _Line] = {}  # by workload
        self._bytes = 0

    def anyone(self, workload: str) -> bool:
        return workload in self._lines

    async def slot(self, pool: Pool, key: str, size: int, patience_s: float, choose: Callable[[], Chosen]) -> Chosen:
        """What `choose` gives once it is this request's turn. Raises Refused: 503 when that takes too long, or too many
        wait; and what `choose` raises, unless it is for want of a replica."""
        line = self._lines.get(pool.workload) or self._begin(pool)
        self._make_room(line, key, size)
        held = Held(key, size)
        line.join(held)
        self._bytes += size
        self._signals.hold(pool.workload)
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    await held.turn
                    try:
                        return choose()
                    except Refused as refused:
                        if refused.code not in _MAY_COME:
                            raise
                    line.go_back(held)
        except TimeoutError:
            raise _too_long(pool.workload, patience_s) from None
        finally:
            self._signals.let_go(pool.workload)
            self._bytes -= size
            line.leave(held)

    def wake(self, workload: str) -> None:
        """A replica has come, or has room again."""
        if (line := self._lines.get(workload)) is not None:
            line.news.set()

    def keep_only(self, workloads: Collection[str]) -> None:
        """Of endpoints that are gone nobody will answer."""
        for workload in [each for each in self._lines if each not in workloads]:
            gone = Refused(503, f"{workload} has been stopped.", code="no_replica")
            self._lines[workload].refuse_all(gone)

    def _begin(self, pool: Pool) -> _Line:
        line = self._lines[pool.workload] = _Line()

        async def run() -> None:
            try:
                await line.run(pool)
            finally:
                del self._lines[pool.workload]

        line.task = asyncio.create_task(run())
        return line

    def _make_room(self, line: _Line, key: str, size: int) -> None:
        while len(line) >= HELD_AT_MOST or self._bytes + size > HELD_BYTES:
            most = line.key_with_most()
            if most is None or line.count(most) <= line.count(key) + 1:
                raise _too_many()
            line.refuse_newest(most, _too_many())


class _Line:
    """Who waits for one endpoint."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.task: asyncio.Task[None]
        self._keys: OrderedDict[str, deque[Held]] = OrderedDict()  # the key whose turn it is first
        self._going: set[Held] = set()  # their turn is over, and they have not tried yet

    def __len__(self) -> int:
        return len(self._going) + sum(map(len, self._keys.values()))

    def count(self, key: str) -> int:
        return len(self._keys.get(key, ()))

    def key_with_most(self) -> str | None:
        return max(self._keys, key=self.count, default=None)

    def join(self, held: Held) -> None:
        self._keys.setdefault(held.key, deque()).append(held)
        self.news.set()

    def go_back(self, held: Held) -> None:
        """It tried in vain: it is the next of its key again."""
        self._going.discard(held)
        held.turn = asyncio.get_running_loop().create_future()
        self._keys.setdefault(held.key, deque()).appendleft(held)

    def leave(self, held: Held) -> None:
        self._going.discard(held)
        of_key = self._keys.get(held.key)
        if of_key is not None and held in of_key:
            of_key.remove(held)
            if not of_key:
                del self._keys[held.key]
        self.news.set()

    def refuse_newest(self, key: str, why: Refused) -> None:
        self._end(self._keys[key][-1], why)

    def refuse_all(self, why: Refused) -> None:
        for held in [each for of_key in self._keys.values() for each in of_key]:
            self._end(held, why)

    def _end(self, held: Held, why: Refused) -> None:
        self.leave(held)
        if not held.turn.done():
            held.turn.set_exception(why)

    async def run(self, pool: Pool) -> None:
        """Gives turns for as long as anybody waits."""
        while self._keys or self._going:
            self.news.clear()
            for _ in range(pool.room() - len(self._going)):
                if (held := self._next()) is None:
                    break
                held.turn.set_result(None)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.news.wait()
            except TimeoutError:
                pass

    def _next(self) -> Held | None:
        while self._keys:
            key, of_key = next(iter(self._keys.items()))
            held = of_key.popleft()
            if of_key:
                self._keys.move_to_end(key)
            else:
                del self._keys[key]
            if not held.turn.done():  # else its client left a moment ago
                self._going.add(held)
                return held
        return None


def _too_many() -> Refused:
    return Refused(
        503, "No replica answers yet, and no more requests can wait for one. Try again shortly.",
        code="no_replica", retry_after_s=RETRY_NO_REPLICA_S,
    )  # fmt: skip


def _too_long(workload: str, patience_s: float) -> Refused:
    return Refused(
        503, f"No replica of {workload} was free for this request in the {patience_s:g} s that it may wait "
        "(hold_timeout). Try again shortly.", code="no_replica", retry_after_s=RETRY_NO_REPLICA_S,
    )  # fmt: skip
