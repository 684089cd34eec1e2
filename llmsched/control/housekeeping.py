"""What keeps the store and the state from growing with history: put aside, take snapshots, let go of what is too old.

Snapshots are of what is committed, and made elsewhere (snapshot_maker.py) while the loop goes on. A start makes one
itself where that was not done in time: a controller that is killed again and again takes each of its makers with it,
and would have more to fold each time. How long the journal, ended workloads and idempotency keys are kept, the cluster
file says (`history`). Each step is small and done between rounds.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf

from llmsched.control.snapshot_maker import Make, spelled
from llmsched.core import archive
from llmsched.core.archive import Archive
from llmsched.core.configuration import Kept
from llmsched.core.facts import Archived
from llmsched.core.state import State
from llmsched.errors import StoreError
from llmsched.store.journal import Batch, Store
from llmsched.store.tables import ArchiveRow, IdempotencyRow, NoticeRow, SnapshotRow

log = logging.getLogger("llmsched.control")
SNAPSHOT_EVERY = 5_000  # entries
OVERDUE = (
    2  # times as many without one: a start has no more to fold than these, and what one life of a controller writes
)
TIDY_EVERY_S = 60.0
ROWS_AT_ONCE = 500
ENTRIES_AT_ONCE = 2_000
SNAPSHOTS_KEPT = 10
NOTICES_KEPT_S = 30 * 86_400.0


class Housekeeping:
    """`due` and `after_round` are called by the loop; both return at once."""

    def __init__(self, store: Store, make_snapshot: Make) -> None:
        self.puts_aside = True
        self._store = store
        self._make_snapshot = make_snapshot
        self._snapshot_at = 0  # entry of the newest snapshot
        self._tidied_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def begin(self, state: State, kept: Archive, seq: int, at: float) -> None:
        """`state` was just folded up to entry `seq`, and nothing else goes on yet."""
        found = self._store.older(SnapshotRow, inf)
        self._snapshot_at = found[-1][0] if found else 0
        if seq - self._snapshot_at >= OVERDUE * SNAPSHOT_EVERY:

            async def at_once(seq: int, at: float) -> SnapshotRow:
                return spelled(state, kept, seq, at)

            log.info("entry %d: no snapshot since entry %d, so one is made first", seq, self._snapshot_at)
            await self._keep_snapshot(at_once, seq, at)

    def due(self, state: State, at: float) -> Archived | None:
        workloads, replicas = archive.due(state, at) if self.puts_aside else ((), ())
        return Archived(at, workloads, replicas) if workloads or replicas else None

    def after_round(self, state: State, seq: int, at: float) -> None:
        """`seq` is the last entry of the state, which is all on disk."""
        if self._task is not None and not self._task.done():
            return
        if seq - self._snapshot_at >= SNAPSHOT_EVERY:
            self._task = asyncio.create_task(self._keep_snapshot(self._make_snapshot, seq, at))
        elif at - self._tidied_at >= TIDY_EVERY_S:
            self._tidied_at = at
            self._task = asyncio.create_task(self._tidy(state.configuration.kept, at))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep_snapshot(self, make: Make, seq: int, at: float) -> None:
        try:
            row = await make(seq, at)
            await asyncio.wrap_future(self._store.commit(Batch(at, (), [row])))
            await self._thin()
        except StoreError as error:  # the loop will meet it too, and say so
            log.warning("no snapshot of entry %d: %s", seq, error)
            return
        except Exception:
            log.exception("no snapshot of entry %d", seq)
            return
        finally:
            self._snapshot_at = seq  # not again at once, whatever came of it
        log.info("snapshot of entry %d: %d KiB", seq, len(row.body) >> 10)

    async def _tidy(self, kept: Kept, at: float) -> None:
        try:
            for cls, seconds in (
                (IdempotencyRow, kept.idempotency_s),
                (ArchiveRow, kept.ended_s),
                (NoticeRow, NOTICES_KEPT_S),
            ):
                while seconds is not None and (old := self._store.older(cls, at - seconds, ROWS_AT_ONCE)):
                    await asyncio.wrap_future(self._store.remove(cls, old))
            if kept.journal_s is not None:
                await self._compact(at - kept.journal_s)
        except StoreError as error:
            log.warning("nothing was tidied: %s", error)
        except Exception:
            log.exception("nothing was tidied")

    async def _compact(self, before: float) -> None:
        """Entries go that are in a snapshot of before that time; then the snapshots before that one."""
        old = self._store.older(SnapshotRow, before)
        if not old:
            return
        (floor,) = old[-1]
        while await asyncio.wrap_future(self._store.compact(floor, ENTRIES_AT_ONCE)):
            log.info("entries before %d are not kept any more; a snapshot holds what they made", self._store.floor())
        if old[:-1]:
            await asyncio.wrap_future(self._store.remove(SnapshotRow, old[:-1]))

    async def _thin(self) -> None:
        """The first and the last snapshots stay, and of those between enough to compact by."""
        found = [seq for (seq,) in self._store.older(SnapshotRow, inf)]
        last, gone = found[0], []
        for seq in found[1:-1]:
            if seq - last < (found[-1] - found[0]) / SNAPSHOTS_KEPT:
                gone.append((seq,))
            else:
                last = seq
        if gone:
            await asyncio.wrap_future(self._store.remove(SnapshotRow, gone))
