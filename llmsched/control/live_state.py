"""The one live `State`: folded from the journal, and nothing in it for long that is not committed.

Only the loop changes it, within a round; readers look at it at any time. Whenever a write fails it is folded again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from llmsched.control import garbage, lease, recovery
from llmsched.control.archive import StoreArchive
from llmsched.control.clock import Clock
from llmsched.control.metrics import Metrics
from llmsched.core.facts import Fact
from llmsched.core.policy import Policies
from llmsched.core.state import State
from llmsched.policies.registry import load as load_policies
from llmsched.store.codec import Entry
from llmsched.store.journal import Batch, Store, Written
from llmsched.store.tables import Row

FOLLOW_AT_MOST = 500  # entries a follower reads at a time


class LiveState:
    """`wake_at`: when the scheduler wants to be asked again though nothing happens. `left_out` says which entry of the
    journal nothing could take in. `ended`: nothing more comes, for followers."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self.archive = StoreArchive(store)
        self.state = State(archive=self.archive)
        self.seq = 0  # of the last entry
        self.wake_at: float | None = None
        self.left_out = ""
        self.ended = asyncio.Event()
        self.renew_at = 0.0  # monotonic
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._grew = asyncio.Event()  # replaced each time it is set

    @property
    def policies(self) -> Policies:
        return load_policies(self.state.configuration.policies)

    @property
    def now(self) -> float:
        """Never earlier than what the journal says: a clock may have been set back between two runs."""
        return max(self._clock.now(), self.state.now)

    def fold(self) -> None:
        """What is committed, and no more."""
        garbage.look_at_all()
        self.archive = StoreArchive(self._store)
        self.state, self.seq, left_out = recovery.fold_all_that_can(self._store, self.archive)
        self.left_out = f"{left_out[0].message} It was left out." if left_out else ""
        self.wake_at = self.state.now

    def refold(self, facts: Sequence[Fact]) -> None:
        """Back to what is committed, and the facts of this round that stand."""
        self.fold()
        for fact in facts:
            self.state.apply(fact)

    async def commit(self, at: float, entries: Sequence[Entry], rows: Iterable[Row] = ()) -> None:
        """On disk when it returns, with what was put aside. Raises StoreError."""
        aside = self.archive.unwritten()
        rows = [*rows, *aside]
        if not entries and not rows:
            return
        began = self._clock.monotonic()
        written = await asyncio.wrap_future(self._store.commit(Batch(at, entries, rows)))
        self.archive.written(aside)
        self._metrics.commit(self._clock.monotonic() - began, len(written))
        self.put_off_renewal()
        if written:
            self.seq = written[-1].seq
            self._grew.set()
            self._grew = asyncio.Event()

    async def renew(self, at: float, rows: Callable[[], Sequence[Row]]) -> None:
        """The lease, when it is time, and `rows` with it; a commit has renewed it too."""
        if self._clock.monotonic() >= self.renew_at:
            await asyncio.wrap_future(self._store.commit(Batch(at, (), rows())))
            self.put_off_renewal()

    def put_off_renewal(self) -> None:
        self.renew_at = self._clock.monotonic() + lease.RENEW_EVERY_S

    async def follow(self, after: int) -> AsyncIterator[Written]:
        """Every committed entry from `after` on, as it comes, without a gap, until the end."""
        after = max(after, self._store.floor())
        while not self.ended.is_set():
            grew = self._grew
            written = self._store.read(after, limit=FOLLOW_AT_MOST)
            for item in written:
                yield item
                after = item.seq
            if not written:
                await grew.wait()

    def end(self) -> None:
        self.ended.set()
        self._grew.set()
