"""What waits for the loop: what users ask, bounded, and what the executor saw, merged where only the last one counts.

Everything is called from the loop's thread. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from llmsched import sanitize
from llmsched.errors import RequestError
from llmsched.executors.port import ExcessSeen, ForeignSeen, LoadSeen, Observation, Progress

REQUESTS_AT_MOST = 1000
ASKED_OF_A_ROUND = 100  # the rest is for the next one: between two rounds everybody else has a turn
SEEN_OF_A_ROUND = 500
LATENCIES_AT_MOST = 16  # measurements of one endpoint, of which each counts


@dataclass(slots=True)
class Asked:
    """One request of a user; `answer` is given after the commit."""

    request: Any
    answer: asyncio.Future[Any] = field(repr=False)


class Inbox:
    def __init__(self, limit: int = REQUESTS_AT_MOST) -> None:
        self.filled = asyncio.Event()
        self._limit = limit
        self._asked: deque[Asked] = deque()
        self._seen: deque[Observation] = deque()
        self._last: dict[tuple[object, ...], Observation] = {}  # of those where only the last one counts

    def __len__(self) -> int:
        return len(self._asked) + len(self._seen) + len(self._last)

    def ask(self, request: Any) -> asyncio.Future[Any]:
        """Raises RequestError (429) when too much waits already."""
        if len(self._asked) >= self._limit:
            raise RequestError(
                "the controller has more requests than it can take.",
                code="busy",
                hint="Try again in a moment.",
                http_status=429,
                retry_after_s=1.0,
            )
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(Asked(request, answer))
        self.filled.set()
        return answer

    def deliver(self, seen: Observation) -> None:
        """Never raises: whatever an executor says is made valid first, field by field."""
        seen = sanitize.record(seen)
        match seen:
            case LoadSeen():
                kept = self._last.get((LoadSeen, seen.workload))
                measured = kept.latencies if isinstance(kept, LoadSeen) else ()
                measured = (*measured, *seen.latencies)[-LATENCIES_AT_MOST:]
                self._last[LoadSeen, seen.workload] = replace(seen, latencies=measured)
            case ForeignSeen():
                self._last[ForeignSeen, seen.node] = seen
            case ExcessSeen():
                self._last[ExcessSeen, seen.gang, seen.attempt] = seen
            case Progress():
                before = self._last.get((Progress, seen.gang, seen.attempt))
                data = {**before.data, **seen.data} if isinstance(before, Progress) else seen.data
                self._last[Progress, seen.gang, seen.attempt] = Progress(seen.gang, seen.attempt, data)
            case _:
                self._seen.append(seen)
        self.filled.set()

    def drain(self) -> tuple[list[Asked], list[Observation]]:
        """What waits, as much as one round takes in. The observations that count one by one come first, in order."""
        asked = [self._asked.popleft() for _ in range(min(len(self._asked), ASKED_OF_A_ROUND))]
        seen = [self._seen.popleft() for _ in range(min(len(self._seen), SEEN_OF_A_ROUND))]
        if not self._seen:
            seen += self._last.values()
            self._last.clear()
        if not self._asked and not self._seen:
            self.filled.clear()
        return [item for item in asked if not item.answer.done()], seen

    def put_back(self, seen: list[Observation]) -> None:
        """What could not be written is seen again later, before anything newer."""
        newer = [*self._seen, *self._last.values()]
        self._seen.clear()
        self._last.clear()
        for item in (*seen, *newer):
            self.deliver(item)

    def refuse(self, error: Exception) -> None:
        """Answer everyone who waits with this error."""
        for item in self._asked:
            if not item.answer.done():
                item.answer.set_exception(error)
        self._asked.clear()
