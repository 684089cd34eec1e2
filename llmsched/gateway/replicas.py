"""The replicas of one workload as the gateway sees them: how busy each is, which to avoid, which is asked next.

`Replica` is the port: `app.py` gives one that calls through Ray Serve, a test gives a plain object. A replica that
turned out to be gone is avoided for a while that doubles each time, and forgiven by its next answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, Protocol

from llmsched.gateway.limits import RETRY_FULL_S, RETRY_NO_REPLICA_S
from llmsched.gateway.refusals import Refused
from llmsched.policies.routing import Ask, Routing, named
from llmsched.policies.routing.work import AnswerLengths, tokens_of

AVOID_S = 2.0
AVOID_MAX_S = 30.0


class ReplicaGone(Exception):
    """The replica did not answer and will not: its process, its node or its application is gone."""


class Replica(Protocol):
    """One replica's application. Both methods raise ReplicaGone; every other failure is an answer with "error".

    Cancelling asks the replica to end the work; both end only when it has, for until then its slot is taken."""

    async def call(self, route: str, body: Any, adapter: dict[str, str] | None) -> Any: ...

    def stream(
        self, route: str, body: Any, adapter: dict[str, str] | None, incoming: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Chunks. Closing the generator cancels the request in the replica. `incoming`: what the client goes on to
        send, for a replica that has begun to answer."""


class Slot:
    """One replica with the gateway's own counts. `tokens` is the estimated work of its requests in flight."""

    __slots__ = ("name", "replica", "ongoing", "tokens", "avoid_until", "strikes")

    def __init__(self, name: str, replica: Replica) -> None:
        self.name = name
        self.replica = replica
        self.ongoing = 0
        self.tokens = 0
        self.avoid_until = 0.0
        self.strikes = 0


class Chosen(NamedTuple):
    """The replica for a request. `unread`: tokens of the prompt that it will have to read, by what is known here."""

    slot: Slot
    unread: int


class Pool:
    """The replicas of one workload. Counts survive a new route table; a replica that left it only finishes."""

    def __init__(self, workload: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.workload = workload
        self.max_ongoing = 1
        self.lengths = AnswerLengths()
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._routing_name = ""
        self._routing: Routing

    def update(
        self, names: Iterable[str], connect: Callable[[str], Replica], *, routing: str, max_ongoing: int, seed: int
    ) -> None:
        """Take the replicas, the policy and the bound per replica of a new table."""
        self.max_ongoing = max_ongoing
        if routing != self._routing_name:
            self._routing_name, self._routing = routing, named(routing, seed)
        self._slots = {name: self._slots.get(name) or Slot(name, connect(name)) for name in names}

    def choose(self, ask: Ask, not_these: set[str], model: str = "") -> Chosen:
        """A replica with room; for a multiplexed model, of those the one that has been asked for it. Raises Refused:
        429 when all that work are full, 503 when none is there."""
        now = self._clock()
        there = [s for s in self._slots.values() if s.name not in not_these and s.avoid_until <= now]
        room = [s for s in there if s.ongoing < self.max_ongoing]
        if room and model:
            slot = max(room, key=lambda s: hashlib.blake2b(f"{model}\0{s.name}".encode(), digest_size=8).digest())
            return Chosen(slot, tokens_of(ask.text))
        if room:
            return Chosen(*self._routing.choose(room, ask))
        if there:
            raise Refused(
                429,
                f"{self.workload} is full: each of its {len(there)} replicas has {self.max_ongoing} requests in hand. "
                "Try again shortly.",
                code="full",
                retry_after_s=RETRY_FULL_S,
            )
        back = min((s.avoid_until - now for s in self._slots.values() if s.avoid_until > now), default=0.0)
        raise Refused(
            503,
            f"{self.workload} has no replica that answers now. Try again shortly.",
            code="no_replica",
            retry_after_s=max(back, 1.0) if back else RETRY_NO_REPLICA_S,
        )

    def capacity(self) -> int:
        """How many requests those may have in hand that work."""
        now = self._clock()
        return self.max_ongoing * sum(s.avoid_until <= now for s in self._slots.values())

    def room(self) -> int:
        """How many more requests those take that work."""
        now = self._clock()
        return sum(max(0, self.max_ongoing - s.ongoing) for s in self._slots.values() if s.avoid_until <= now)

    def avoid(self, slot: Slot) -> None:
        slot.strikes += 1
        slot.avoid_until = self._clock() + min(AVOID_S * 2 ** (slot.strikes - 1), AVOID_MAX_S)

    def forgive(self, slot: Slot) -> None:
        slot.strikes = 0
        slot.avoid_until = 0.0
