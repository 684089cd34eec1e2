"""The store on disk: one SQLite file in WAL mode, written by one connection in one thread.

`synchronous=FULL`, so that a commit that returned survives a power cut; what waits while one transaction syncs goes
into the next together. The one reading connection never checkpoints: SQLite before 3.51.3 can lose commits when two
connections do. After any failed write the connection is thrown away with whatever it held, and the next write begins
with a fresh one. A store that holds less than once was written to it (seal.py) is an error, never a smaller cluster.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import Bug, StoreError
from llmsched.store import file_systems, keyfile, reading, schema, seal
from llmsched.store.codec import ENTRIES
from llmsched.store.journal import Batch, Lease, StaleEpoch, Written, workload_of
from llmsched.store.reading import BUSY_S, Places
from llmsched.store.seal import Head, HeadFile, Noted, Seal
from llmsched.store.tables import TABLES, AnyRow, ArchiveQuery, ArchiveRow, ProgressRow, Row, UsageQuery, UsageRow

log = logging.getLogger("llmsched.store")
GROUP_AT_MOST = 256  # writes in one transaction
SYNC_HEAD_S = 1.0  # how often the note of the head is forced to the disk; see seal.HeadFile


@dataclass(slots=True)
class Transaction:
    """What one write changes; `head` and `lease` are written with it, sealed."""

    db: sqlite3.Connection
    seal: Seal
    head: Head
    lease: Lease

    def append(self, entry: tuple[Any, ...]) -> int:
        """(epoch, at, kind, workload, body) as the next entry; its seq."""
        head = self.head
        columns = (head.seq + 1, *entry)
        head.link = self.seal.link(head.link, columns)
        head.seq += 1
        self.db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", (*columns, head.link))
        return head.seq

    def put(self, row: Row) -> None:
        table, keys = TABLES[type(row)]
        where = " AND ".join(f"{column} = ?" for column in row._fields[:keys])
        known = self.db.execute(f"SELECT checksum FROM {table} WHERE {where}", row[:keys]).fetchone()
        mark = self.seal.mark(table, row)
        self.db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({'?, ' * len(row)}?)", (*row, mark))
        self.head.count(table, known[0] if known else None, -1)
        self.head.count(table, mark)

    def drop(self, table: str, where: str, values: Sequence[Any]) -> None:
        for (mark,) in self.db.execute(f"SELECT checksum FROM {table} WHERE {where}", values).fetchall():
            self.head.count(table, mark, -1)
        self.db.execute(f"DELETE FROM {table} WHERE {where}", values)

    def write_head(self) -> None:
        self.db.execute("UPDATE lease SET epoch = ?, owner = ?, renewals = ?", self.lease)
        self.db.execute(
            "UPDATE head SET writes = ?, seq = ?, link = ?, floor = ?, floor_link = ?, sums = ?, checksum = ?",
            (*self.head.columns(), self.head.checksum(self.seal, self.lease)),
        )


class _Work(NamedTuple):
    write: Callable[[Transaction], Any]
    future: Future[Any]


class SqliteStore:
    """See `journal.Store`. `allow_remote` takes a network file system, whose locks may lie, at one's own risk.
    `proofs` are files that are there only where a store was: with one of them, no new one is made."""

    def __init__(self, path: Path, *, allow_remote: bool = False, proofs: Sequence[Path] = ()) -> None:
        self.path = path
        self._places = Places.of(path)
        self._proofs = proofs
        self._allow_remote = allow_remote
        self._seal: Seal | None = None
        self._head_file = HeadFile(self._places.head)
        self._head_synced = 0.0  # monotonic
        self._writer: sqlite3.Connection | None = None  # touched by the writer thread only, once `open` has returned
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._alone = False  # the disk has no room for the file that connections share: one at a time
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._epoch = 0

    # --- life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._refuse_remote()
        noted = self._head_file.read()
        key = keyfile.read(self._places.key, "store_key")
        if not (self.path.exists() and self.path.stat().st_size):
            self._refuse_to_begin_anew(noted, key)
        db = self._first_connection()
        try:
            self._migrate(db)
            self._seal = self._verified(db, key, noted)
            keyfile.make_mark(self._places.mark)
        except sqlite3.Error as error:
            db.close()
            raise self._failed(error) from error
        except StoreError:
            db.close()
            raise
        if self._alone:
            self._reader = db
        else:
            self._writer = db
        self._thread = threading.Thread(target=self._write_forever, name="llmsched-store", daemon=True)
        self._thread.start()

    def _refuse_to_begin_anew(self, noted: Noted | None, key: bytes | None) -> None:
        """Raises StoreError where anything shows that there was a store."""
        shown = [file for file in (self._places.mark, *self._proofs) if file.exists()]
        shown += [self._places.head] if noted is not None else [self._places.key] if key is not None else []
        if shown:
            raise StoreError(
                f"{self.path} is missing, but a cluster was run from it ({shown[0].name} says so)",
                code="store_missing",
                hint=seal.ACCEPT,
            )

    def close(self) -> None:
        if self._thread is None:
            return
        with suppress(StoreError):  # someone else's by now, or the disk is gone: the lease will be seen as dead
            self._do(_give_back(self._epoch)).result()
        self._works.put(None)
        self._thread.join()
        self._thread = None
        with self._reading:  # readers first: the last connection to close does the checkpoint
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._head_file.close()

    def _verified(self, db: sqlite3.Connection, key: bytes | None, noted: Noted | None) -> Seal:
        """The key, once the store has shown that it goes with it and lacks nothing. Made for a store that is new."""
        places = self._places
        head = reading.head(db, None, self.path)
        if not head.writes and noted is None:  # nothing was acknowledged yet: the first start, or one that was killed
            (entries,) = db.execute("SELECT count(*) FROM journal").fetchone()
            if not entries:
                made = Seal(key or keyfile.make(places.key, "store_key"))
                self._note(head, reading.lease(db, self.path), sync=True)
                return made
        if key is None:
            raise StoreError(
                f"the key of {self.path} is gone: {places.key} does not exist",
                code="store_key",
                hint=f"Put it back. {seal.ACCEPT}",
            )
        found = Seal(key)
        head, lease = reading.head(db, found, self.path), reading.lease(db, self.path)
        link = noted and (noted.link if noted.seq < head.floor else reading.link_at(db, head, noted.seq))
        seal.refuse_less(head, lease.epoch, link, noted, self.path)
        (last,) = db.execute("SELECT coalesce(max(seq), ?) FROM journal", (head.floor,)).fetchone()
        if last != head.seq or reading.link_at(db, head, last) != head.link:
            raise StoreError(
                f"{self.path} lacks its last entries: {last} are there, {head.seq} were written",
                code="store_damaged",
                hint=seal.ACCEPT,
            )
        other = reading.tables_with_other_rows(db, head)
        if other:
            raise StoreError(
                f"{self.path} has other rows than were written: {'; '.join(other)}",
                code="store_damaged",
                hint=seal.ACCEPT,
            )
        try:
            self._note(head, lease, sync=True)
        except OSError as error:  # a full disk: what is noted is still true
            log.warning("%s cannot be written: %s", places.head, error.strerror)
        return found

    # --- writing ----------------------------------------------------------------------------------------------------

    def lease(self) -> Lease:
        found: Lease = self._read(lambda db: reading.lease(db, self.path))
        return found

    def take_over(self, owner: str, seen: Lease) -> int:
        def raise_epoch(change: Transaction) -> int:
            if change.lease != seen:
                raise StaleEpoch("another controller took over first")
            change.lease = Lease(seen.epoch + 1, owner, 0)
            change.head.writes += 1
            return seen.epoch + 1

        self._epoch = self._do(raise_epoch).result()
        return self._epoch

    def commit(self, batch: Batch) -> Future[list[Written]]:
        epoch = self._epoch

        def append(change: Transaction) -> list[Written]:
            _fence(change, epoch)
            # All of them before the first is written, and not in the caller's thread, which has a loop to keep going.
            spelled = [(ENTRIES.tag(entry), workload_of(entry), ENTRIES.dump(entry)) for entry in batch.entries]
            written = [
                Written(change.append((epoch, batch.at, *each)), batch.at, entry)
                for each, entry in zip(spelled, batch.entries, strict=True)
            ]
            for row in batch.rows:
                change.put(row)
            change.head.writes += bool(written or batch.rows)
            change.lease = change.lease._replace(renewals=change.lease.renewals + 1)
            return written

        return self._do(append)

    def remove(self, cls: type[Row], keys: Sequence[tuple[Any, ...]]) -> Future[None]:
        epoch = self._epoch
        table, count = TABLES[cls]

        def remove(change: Transaction) -> None:
            _fence(change, epoch)
            for key in keys:
                change.drop(table, " AND ".join(f"{column} = ?" for column in cls._fields[:count]), key)
                if cls is ArchiveRow:  # its book and the last numbers of its gangs go with it
                    change.drop(TABLES[UsageRow].name, "workload = ?", key)
                    change.drop(TABLES[ProgressRow].name, "gang > ? AND gang < ?", (f"{key[0]}/", f"{key[0]}0"))
            change.head.writes += 1

        return self._do(remove)

    def older(self, cls: type[Row], before: float, limit: int = 1_000) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._read(lambda db: reading.older(db, cls, before, limit))
        return found

    def compact(self, floor: int, limit: int) -> Future[int]:
        epoch = self._epoch

        def remove(change: Transaction) -> int:
            _fence(change, epoch)
            head = change.head
            to = min(floor, head.floor + limit)
            if to <= head.floor:
                return 0
            (snapshot,) = change.db.execute("SELECT coalesce(max(seq), 0) FROM snapshots").fetchone()
            if to > snapshot:
                raise Bug(f"entries up to {to} are in no snapshot: the newest is of entry {snapshot}")
            link = reading.link_at(change.db, head, to)
            assert link is not None
            removed, head.floor, head.floor_link = to - head.floor, to, link
            head.writes += 1
            change.write_head()  # first: the floor is what lets entries go
            change.db.execute("DELETE FROM journal WHERE seq <= ?", (to,))
            return removed

        return self._do(remove)

    def floor(self) -> int:
        found: int = self._read(lambda db: reading.head(db, self._seal, self.path).floor)
        return found

    def _do(self, write: Callable[[Transaction], Any]) -> Future[Any]:
        if self._thread is None:
            raise StoreError(f"{self.path} is not open")
        future: Future[Any] = Future()
        self._works.put(_Work(write, future))
        return future

    def _write_forever(self) -> None:
        while (work := self._works.get()) is not None:
            group: list[_Work] = [work]
            stop = False
            while len(group) < GROUP_AT_MOST and not stop and not self._works.empty():
                more = self._works.get()
                if more is None:
                    stop = True
                else:
                    group.append(more)
            self._write_together(group)
            if stop:
                return

    def _write_together(self, group: list[_Work]) -> None:
        self._write_all_or_each([work for work in group if work.future.set_running_or_notify_cancel()])

    def _write_all_or_each(self, group: list[_Work]) -> None:
        """In one transaction; but what one of them does wrong is told to that one alone."""
        try:
            with self._transaction() as change:
                results = [work.write(change) for work in group]
                change.write_head()
            self._note(change.head, change.lease)
        except Exception as error:
            if len(group) > 1 and not _is_the_disks(error):
                for work in group:
                    self._write_all_or_each([work])
            else:
                self._reject(group, self._told(error))
        else:
            for work, result in zip(group, results, strict=True):
                work.future.set_result(result)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError):
            return Bug(f"the store refused an entry that breaks a rule: {error}")
        return self._failed(error) if _is_the_disks(error) else error  # type: ignore[arg-type]

    @staticmethod
    def _reject(group: list[_Work], error: Exception) -> None:
        for work in group:
            work.future.set_exception(error)

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        if self._writer is None:
            self._writer = self._connected_to_write()
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            assert self._seal is not None
            yield Transaction(db, self._seal, reading.head(db, self._seal, self.path), reading.lease(db, self.path))
            db.execute("COMMIT")
        except Exception as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                self._writer = None  # after a failed write or sync its pages cannot be trusted
                db.close()
            raise

    def _note(self, head: Head, lease: Lease, *, sync: bool = False) -> None:
        """Beside the store, before anybody is answered. Raises OSError."""
        sync = sync or time.monotonic() - self._head_synced >= SYNC_HEAD_S
        self._head_file.write(Noted(head.writes, head.seq, head.link, lease.epoch), sync=sync)
        if sync:
            self._head_synced = time.monotonic()

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(
        self,
        after: int = 0,
        workload: str | None = None,
        limit: int | None = None,
        *,
        kinds: Sequence[str] | None = None,
        before: int | None = None,
        last: bool = False,
    ) -> list[Written]:
        written: list[Written] = self._read(
            lambda db: reading.entries(db, self._seal, self.path, after, workload, limit, kinds, before, last)
        )
        return written

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        found = self.rows(cls, *key)
        return found[0] if found else None

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        found: list[AnyRow] = self._read(lambda db: reading.rows(db, self._seal, self.path, cls, key))
        return found

    def archived(self, query: ArchiveQuery) -> list[ArchiveRow]:
        found: list[ArchiveRow] = self._read(lambda db: reading.archived(db, self._seal, self.path, query))
        return found

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        found: list[UsageRow] = self._read(lambda db: reading.usage(db, self._seal, self.path, query))
        return found

    def _read(self, ask: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._reading:
            try:
                db = self._read_connection()
                db.execute("BEGIN")  # one moment, whatever is written between two statements
                try:
                    return ask(db)
                finally:
                    db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreError(f"{self.path} cannot be read: {error}", hint=seal.RESTORE) from error

    def _read_connection(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = self._connected(alone=self._alone)
            self._reader.execute("PRAGMA wal_autocheckpoint = 0")
            self._reader.execute("PRAGMA query_only = 1")
        return self._reader

    # --- the file ---------------------------------------------------------------------------------------------------

    def _first_connection(self) -> sqlite3.Connection:
        """On a full disk the file that connections share cannot be made. Then one of them can read, alone."""
        try:
            return self._connected()
        except StoreError:
            if not self.path.exists():
                raise
        db = self._connected(alone=True)
        log.warning("%s can only be read: there is no room on its disk", self.path)
        self._alone = True
        return db

    def _connected_to_write(self) -> sqlite3.Connection:
        """A connection that reads alone must make way first; it comes back when there still is no room."""
        with self._reading:
            if self._alone and self._reader is not None:
                self._reader.close()
                self._reader = None
            db = self._connected()
            self._alone = False
        return db

    def _connected(self, *, alone: bool = False) -> sqlite3.Connection:
        db: sqlite3.Connection | None = None
        with suppress(OSError):  # its owner's alone before there is anything in it: its -wal takes the mode from it
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
        try:
            db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            if db is not None:
                db.close()
            raise self._failed(error) from error
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        scripts, version = schema.migrations(), schema.version(db)
        if version > len(scripts):
            raise StoreError(
                f"{self.path} has schema {version}, this llmsched knows {len(scripts)}",
                code="store_newer",
                hint="Use the version that wrote it, or a newer one.",
            )
        if other := schema.differences(db):
            raise StoreError(
                f"{self.path} has another schema than it was made with: {'; '.join(other)}",
                code="store_damaged",
                hint=seal.ACCEPT,
            )
        for number, script in enumerate(scripts[version:], start=version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _refuse_remote(self) -> None:
        kind = file_systems.kind_of(self.path.parent)
        if kind in file_systems.REMOTE and not self._allow_remote:
            raise StoreError(
                f"{self.path} lies on a network file system ({kind}), where file locks do not hold",
                hint="Put LLMSCHED_HOME on a local disk.",
            )

    def _failed(self, error: sqlite3.Error | OSError) -> StoreError:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return StoreError(
            f"{self.path} cannot be written: {error} ({name})",
            code="store_failed",
            hint="Free disk space or repair the disk; what already runs goes on.",
        )


def _is_the_disks(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error | OSError) and not isinstance(error, sqlite3.IntegrityError)


def _fence(change: Transaction, epoch: int) -> None:
    now = change.lease.epoch
    if epoch == 0 or now != epoch:
        raise StaleEpoch(f"epoch {epoch} is over: {now} writes now", hint="Another controller has taken over.")


def _give_back(epoch: int) -> Callable[[Transaction], None]:
    def write(change: Transaction) -> None:
        _fence(change, epoch)
        change.lease = change.lease._replace(owner="")

    return write
