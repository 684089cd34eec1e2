"""Requests that wait for a replica: nobody is turned away at once while an endpoint has none that answers, and critical
requests are not while all are full.

Whoever waits is ahead of who comes later, until nobody does. A higher priority goes first; of one priority the key that
has the fewest requests in flight, and of equal keys each in turn; of one key the request that came first. What waits is
bounded: in number, in bytes, and in time (`hold_timeout`). Where it is too much, the newest of the lowest priority
makes room, of the key that has most of it, so that no key keeps the others out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection

from llmsched.gateway.keys import CRITICAL
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

    __slots__ = ("key", "priority", "size", "turn")

    def __init__(self, key: str, priority: int, size: int) -> None:
        self.key, self.priority, self.size = key, priority, size
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Holds:
    def __init__(self, signals: Signals, in_flight: Callable[[str], dict[str, int]] = lambda workload: {}) -> None:
        """`in_flight`: of a workload, {key: requests that replicas have in hand}."""
        self._signals, self._in_flight = signals, in_flight
        self._lines: dict[str, _Line] = {}  # by workload
        self._bytes = 0

    def anyone(self, workload: str) -> bool:
        return workload in self._lines

    def anyone_for_want_of_replicas(self, workload: str) -> bool:
        """And not only critical requests, which wait for those that are full."""
        return workload in self._lines and self._lines[workload].lowest_priority() != CRITICAL

    async def slot(
        self, pool: Pool, key: str, priority: int, size: int, patience_s: float, choose: Callable[[], Chosen]
    ) -> Chosen:
        """What `choose` gives once it is this request's turn. Raises Refused: 503 when that takes too long, or too many
        wait; and what `choose` raises, unless it is for want of a replica."""
        line = self._lines.get(pool.workload) or self._begin(pool)
        held = Held(key, priority, size)
        self._make_room(line, held)
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
        line = self._lines[pool.workload] = _Line(lambda: self._in_flight(pool.workload))

        async def run() -> None:
            try:
                await line.run(pool)
            finally:
                del self._lines[pool.workload]

        line.task = asyncio.create_task(run())
        return line

    def _make_room(self, line: _Line, held: Held) -> None:
        while len(line) >= HELD_AT_MOST or self._bytes + held.size > HELD_BYTES:
            lowest = line.lowest_priority()
            if lowest is None or lowest > held.priority:
                raise _too_many()
            most = line.key_with_most(lowest)
            if lowest == held.priority and line.count(lowest, most) <= line.count(lowest, held.key) + 1:
                raise _too_many()
            line.refuse_newest(lowest, most, _too_many())


class _Line:
    """Who waits for one endpoint."""

    def __init__(self, in_flight: Callable[[], dict[str, int]]) -> None:
        """`in_flight`: {key: requests that replicas have in hand}."""
        self.news = asyncio.Event()
        self.task: asyncio.Task[None]
        self._in_flight = in_flight
        self._by_priority: dict[int, OrderedDict[str, deque[Held]]] = {}  # by key, the one whose turn it is first
        self._going: set[Held] = set()  # their turn is over, and they have not tried yet

    def __len__(self) -> int:
        waiting = (len(of_key) for keys in self._by_priority.values() for of_key in keys.values())
        return len(self._going) + sum(waiting)

    def lowest_priority(self) -> int | None:
        return min(self._by_priority, default=None)

    def count(self, priority: int, key: str) -> int:
        of_keys = self._by_priority.get(priority)
        return len(of_keys[key]) if of_keys is not None and key in of_keys else 0

    def key_with_most(self, priority: int) -> str:
        return max(self._by_priority[priority], key=lambda key: self.count(priority, key))

    def join(self, held: Held) -> None:
        self._of_key(held).append(held)
        self.news.set()

    def _of_key(self, held: Held) -> deque[Held]:
        return self._by_priority.setdefault(held.priority, OrderedDict()).setdefault(held.key, deque())

    def go_back(self, held: Held) -> None:
        """It tried in vain: it is the next of its key again."""
        self._going.discard(held)
        held.turn = asyncio.get_running_loop().create_future()
        self._of_key(held).appendleft(held)

    def leave(self, held: Held) -> None:
        self._going.discard(held)
        self._take_out(held)
        self.news.set()

    def _take_out(self, held: Held) -> None:
        keys = self._by_priority.get(held.priority, OrderedDict[str, deque[Held]]())
        if held.key not in keys or held not in keys[held.key]:
            return
        keys[held.key].remove(held)
        if not keys[held.key]:
            del keys[held.key]
        if not keys:
            del self._by_priority[held.priority]

    def refuse_newest(self, priority: int, key: str, why: Refused) -> None:
        self._end(self._by_priority[priority][key][-1], why)

    def refuse_all(self, why: Refused) -> None:
        for held in [each for keys in self._by_priority.values() for of_key in keys.values() for each in of_key]:
            self._end(held, why)

    def _end(self, held: Held, why: Refused) -> None:
        self.leave(held)
        if not held.turn.done():
            held.turn.set_exception(why)

    async def run(self, pool: Pool) -> None:
        """Gives turns for as long as anybody waits."""
        while self._by_priority or self._going:
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
        while self._by_priority:
            keys = self._by_priority[max(self._by_priority)]
            going, in_flight = Counter(held.key for held in self._going), self._in_flight()
            key = min(keys, key=lambda key: in_flight.get(key, 0) + going[key])  # noqa: B023  called at once
            held = keys[key][0]
            keys.move_to_end(key)
            self._take_out(held)
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
