"""The store on disk: one SQLite file in WAL mode, written by one connection in one thread.

`synchronous=FULL`, so that a commit that returned survives a power cut; what waits while one transaction syncs goes
into the next together. The one reading connection never checkpoints: SQLite before 3.51.3 can lose commits when two
connections do. After any failed write the connection is thrown away with whatever it held, and the next write begins
with a fresh one. A store that once existed and is gone is an error, never an empty cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import Bug, StoreError
from llmsched.store.codec import ENTRIES
from llmsched.store.journal import Batch, Lease, StaleEpoch, Written, workload_of
from llmsched.store.tables import TABLES, AnyRow, Row

GROUP_AT_MOST = 256  # writes in one transaction
BUSY_S = 5.0  # how long to wait for another process to finish its transaction
REMOTE_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "ceph", "glusterfs", "afs"}


class _Work(NamedTuple):
    write: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


class SqliteStore:
    """See `journal.Store`. `allow_remote` takes a network file system, whose locks may lie, at one's own risk."""

    def __init__(self, path: Path, *, allow_remote: bool = False) -> None:
        self.path = path
        self._allow_remote = allow_remote
        self._writer: sqlite3.Connection | None = None  # touched by the writer thread only, once `open` has returned
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._epoch = 0

    # --- life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._refuse_remote()
        mark = _read_mark(self._mark)
        if mark is not None and not (self.path.exists() and self.path.stat().st_size):
            raise StoreError(
                f"{self.path} is missing, but a cluster was run from it",
                code="store_missing",
                hint=f"Restore it from a backup. To begin with an empty cluster, remove {self._mark} first.",
            )
        db = self._connected()
        try:
            self._migrate(db)
            self._refuse_older(_read_lease(db).epoch, mark)
        except sqlite3.Error as error:
            db.close()
            raise self._failed(error) from error
        except StoreError:
            db.close()
            raise
        self._writer = db
        self._thread = threading.Thread(target=self._write_forever, name="llmsched-store", daemon=True)
        self._thread.start()

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

    def backup(self, target: Path) -> None:
        """A consistent copy, taken while writes go on."""
        with self._reading, sqlite3.connect(target) as copy:
            self._read_connection().backup(copy)
        copy.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def lease(self) -> Lease:
        found: Lease = self._read(_read_lease)
        return found

    def take_over(self, owner: str, seen: Lease) -> int:
        def raise_epoch(db: sqlite3.Connection) -> int:
            changed = db.execute(
                "UPDATE lease SET epoch = ?, owner = ?, renewals = 0 WHERE (epoch, owner, renewals) = (?, ?, ?)",
                (seen.epoch + 1, owner, *seen),
            ).rowcount
            if changed != 1:
                raise StaleEpoch("another controller took over first")
            return seen.epoch + 1

        self._epoch = self._do(raise_epoch).result()
        _write_mark(self._mark, self._epoch)
        return self._epoch

    def commit(self, batch: Batch) -> Future[list[Written]]:
        epoch = self._epoch
        # Spelled out here, in the caller's thread, so that a record without a spelling never reaches a transaction.
        spelled = [(ENTRIES.tag(entry), workload_of(entry), ENTRIES.dump(entry)) for entry in batch.entries]

        def append(db: sqlite3.Connection) -> list[Written]:
            _fence(db, epoch)
            (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()
            lines = [
                (seq, epoch, batch.at, kind, workload, body, _checksum(seq, epoch, batch.at, kind, body))
                for seq, (kind, workload, body) in enumerate(spelled, start=last + 1)
            ]
            db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", lines)
            for row in batch.rows:
                db.execute(_replace(type(row)), row)
            db.execute("UPDATE lease SET renewals = renewals + 1")
            return [Written(line[0], batch.at, entry) for line, entry in zip(lines, batch.entries, strict=True)]

        return self._do(append)

    def _do(self, write: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
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
        group = [work for work in group if work.future.set_running_or_notify_cancel()]
        try:
            with self._transaction() as db:
                results = [work.write(db) for work in group]
        except sqlite3.IntegrityError as error:
            self._reject(group, Bug(f"the store refused an entry that breaks a rule: {error}"))
        except sqlite3.Error as error:
            self._reject(group, self._failed(error))
        except Exception as error:  # whatever it is, the thread goes on and whoever waits hears of it
            self._reject(group, error)
        else:
            for work, result in zip(group, results, strict=True):
                work.future.set_result(result)

    @staticmethod
    def _reject(group: list[_Work], error: Exception) -> None:
        for work in group:
            work.future.set_exception(error)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._writer is None:
            self._writer = self._connected()
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except Exception as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                self._writer = None  # after a failed write or sync its pages cannot be trusted
                db.close()
            raise

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]:
        written: list[Written] = self._read(lambda db: _entries(db, self.path, after, workload, limit))
        return written

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        found = self.rows(cls, *key)
        return found[0] if found else None

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        found: list[AnyRow] = self._read(lambda db: _rows(db, cls, key))
        return found

    def _read(self, ask: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._reading:
            try:
                return ask(self._read_connection())
            except sqlite3.Error as error:
                raise StoreError(f"{self.path} cannot be read: {error}", hint=_RESTORE) from error

    def _read_connection(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = self._connected()
            self._reader.execute("PRAGMA wal_autocheckpoint = 0")
            self._reader.execute("PRAGMA query_only = 1")
        return self._reader

    # --- the file ---------------------------------------------------------------------------------------------------

    @property
    def _mark(self) -> Path:
        return self.path.with_name(self.path.name + ".exists")

    def _connected(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self.path.chmod(0o600)
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        scripts = migrations()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(scripts):
            raise StoreError(
                f"{self.path} has schema {version}, this llmsched knows {len(scripts)}",
                code="store_newer",
                hint="Use the version that wrote it, or a newer one.",
            )
        for number, script in enumerate(scripts[version:], start=version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _refuse_older(self, epoch: int, mark: int | None) -> None:
        if mark is not None and epoch < mark:
            raise StoreError(
                f"{self.path} is older than what last ran here (epoch {epoch}, expected {mark} or later)",
                code="store_old",
                hint=f"To go on from this older copy all the same, remove {self._mark} first.",
            )

    def _refuse_remote(self) -> None:
        kind = _file_system(self.path.parent)
        if kind in REMOTE_FILE_SYSTEMS and not self._allow_remote:
            raise StoreError(
                f"{self.path} lies on a network file system ({kind}), where file locks do not hold",
                hint="Put LLMSCHED_HOME on a local disk.",
            )

    def _failed(self, error: sqlite3.Error) -> StoreError:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return StoreError(
            f"{self.path} cannot be written: {error} ({name})",
            code="store_failed",
            hint="Free disk space or repair the disk; what already runs goes on.",
        )


_RESTORE = "Restore it from a backup."


def read_only(path: Path) -> list[Written]:
    """Every entry of a journal, also of one that is being written: changes nothing, locks nobody out."""
    with moment_of(path) as moment:
        return moment.read()


@contextmanager
def moment_of(path: Path) -> Iterator[Moment]:
    """A store as it is now, also one that is being written: changes nothing, locks nobody out. Raises StoreError."""
    if not path.is_file():
        raise StoreError(f"there is no journal at {path}")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute("BEGIN")  # from the first read on, what others write is not seen
            yield Moment(db, path)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}", code="store_damaged", hint=_RESTORE) from error


class Moment:
    """What can be asked of it, as of `journal.Store`; see `moment_of`."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong with the pages of the file."""
        return [str(line[0]) for line in self._db.execute("PRAGMA integrity_check") if line[0] != "ok"]

    def read(self, after: int = 0, workload: str | None = None, limit: int | None = None) -> list[Written]:
        return _entries(self._db, self._path, after, workload, limit)

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        found = self.rows(cls, *key)
        return found[0] if found else None

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        return _rows(self._db, cls, key)


def _entries(db: sqlite3.Connection, path: Path, after: int, workload: str | None, limit: int | None) -> list[Written]:
    where = "" if workload is None else " AND workload = ?"
    values = (after,) if workload is None else (after, workload)
    lines = db.execute(
        f"SELECT seq, epoch, at, kind, body, checksum FROM journal WHERE seq > ?{where} ORDER BY seq LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    written = []
    for expected, (seq, epoch, at, kind, body, checksum) in enumerate(lines, start=after + 1):
        if workload is None and seq != expected:
            raise StoreError(f"{path} lacks entry {expected}", code="store_damaged", hint=_RESTORE)
        if checksum != _checksum(seq, epoch, at, kind, body):
            raise StoreError(f"entry {seq} of {path} is damaged", code="store_damaged", hint=_RESTORE)
        written.append(Written(seq, at, ENTRIES.load(kind, body)))
    return written


def _rows(db: sqlite3.Connection, cls: type[AnyRow], key: tuple[Any, ...]) -> list[AnyRow]:
    columns = cls._fields[: TABLES[cls].keys]
    where = " AND ".join(f"{column} = ?" for column in columns[: len(key)]) or "1"
    query = f"SELECT * FROM {TABLES[cls].name} WHERE {where} ORDER BY {', '.join(columns)}"
    return [cls(*line) for line in db.execute(query, key).fetchall()]


def migrations() -> list[str]:
    """The scripts in order; number n brings schema n-1 to n."""
    folder = resources.files("llmsched.store") / "migrations"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return [item.read_text(encoding="utf-8") for item in files]


def _fence(db: sqlite3.Connection, epoch: int) -> None:
    now = _read_lease(db).epoch
    if epoch == 0 or now != epoch:
        raise StaleEpoch(f"epoch {epoch} is over: {now} writes now", hint="Another controller has taken over.")


def _read_lease(db: sqlite3.Connection) -> Lease:
    return Lease(*db.execute("SELECT epoch, owner, renewals FROM lease").fetchone())


def _give_back(epoch: int) -> Callable[[sqlite3.Connection], None]:
    def write(db: sqlite3.Connection) -> None:
        _fence(db, epoch)
        db.execute("UPDATE lease SET owner = ''")

    return write


def _replace(cls: type[Row]) -> str:
    return f"INSERT OR REPLACE INTO {TABLES[cls].name} VALUES ({', '.join('?' * len(cls._fields))})"


def _checksum(seq: int, epoch: int, at: float, kind: str, body: str) -> str:
    text = f"{seq}|{epoch}|{float(at)!r}|{kind}|{body}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read_mark(mark: Path) -> int | None:
    """The last epoch known to have written; None when no cluster was run from here."""
    try:
        return int(json.loads(mark.read_text())["epoch"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return 0


def _write_mark(mark: Path, epoch: int) -> None:
    draft = mark.with_name(mark.name + ".new")
    with draft.open("w") as file:
        json.dump({"epoch": epoch, "note": "A cluster was run from the store beside this file."}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(mark)
    folder = os.open(mark.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _file_system(folder: Path) -> str:
    """The type of the file system `folder` is on, "" where the kernel does not say."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    place = str(folder.resolve())
    for line in lines:
        _, mount, mounted_kind, *_ = line.split()
        under = place == mount or place.startswith(mount.rstrip("/") + "/")
        if under and len(mount) >= len(best):
            best, kind = mount, mounted_kind
    return kind
