"""A store that was copied, put back or damaged becomes one to go on from: checksums anew, an epoch of its own.

Only an operator asks for this, with the controller stopped: it believes what is there. Entries after the first gap are
lost. The epoch is raised far beyond any that may have been given meanwhile, so that whatever still acts for the lost
time is fenced out; what runs is adopted by name, or reaped.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import StoreError
from llmsched.store import keyfile, reading, schema, seal
from llmsched.store.codec import ENTRIES, CodecError
from llmsched.store.journal import Lease
from llmsched.store.reading import Places
from llmsched.store.seal import Head, HeadFile, Noted, Seal
from llmsched.store.sqlite import SqliteStore, Transaction
from llmsched.store.tables import TABLES, Row, SnapshotRow

EPOCHS_AHEAD = 1_000  # more starts than anybody makes between a backup and its restore


class Salvaged(NamedTuple):
    seq: int
    epoch: int
    lost: int  # entries that are known to have been written and are not there


def copy(source: Path, target: Path) -> None:
    """A consistent copy of a store, taken while a controller writes on. Raises StoreError."""
    if not source.is_file():
        raise StoreError(f"there is no journal at {source}", code="store_missing")
    try:
        live = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=reading.BUSY_S)
        made = sqlite3.connect(target)
        try:
            target.chmod(0o600)
            live.backup(made)
            made.execute("PRAGMA journal_mode = DELETE")  # one file, whatever becomes of it
        finally:
            made.close()
            live.close()
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{source} cannot be copied to {target}: {error}", code="backup") from error


def note_of(path: Path) -> Noted:
    """What a copy says of itself, for the file beside it."""
    with reading.moment_of(path) as moment:
        head = moment.head()
        return Noted(head.writes, head.seq, head.link, moment.lease().epoch)


def begin(path: Path) -> None:
    """An empty store where there is none any more. Raises StoreError."""
    Places.of(path).mark.unlink(missing_ok=True)
    store = SqliteStore(path)
    store.open()
    store.close()


def go_on_from(path: Path, before: Noted | None) -> Salvaged:
    """Make `path` the store of its folder. `before`: what was noted of the store that was there. Raises StoreError."""
    places = Places.of(path)
    key = keyfile.read(places.key, "store_key") or keyfile.make(places.key, "store_key")
    try:
        db = sqlite3.connect(path, timeout=reading.BUSY_S, isolation_level=None)
        try:
            salvaged, note = _sealed_anew(db, Seal(key), before)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be made whole: {error}", code="store_damaged", hint=seal.RESTORE) from error
    places.head.unlink(missing_ok=True)
    head_file = HeadFile(places.head)
    head_file.write(note, sync=True)
    head_file.close()
    keyfile.make_mark(places.mark)
    return salvaged


def _sealed_anew(db: sqlite3.Connection, key: Seal, before: Noted | None) -> tuple[Salvaged, Noted]:
    db.execute("BEGIN IMMEDIATE")
    if (number := schema.version(db)) > len(schema.migrations()):
        raise sqlite3.DatabaseError(f"it has schema {number}, this llmsched knows {len(schema.migrations())}")
    found = _first(db, "head", "writes, floor, floor_link") or (0, 0, "")
    owned = _first(db, "lease", "epoch") or (0,)
    floor = _floor(db, found[1])
    head = Head(max(found[0], before.writes if before else 0) + 1, floor, found[2], floor, found[2])
    entries = db.execute(
        "SELECT seq, epoch, at, kind, workload, body FROM journal WHERE seq > ? ORDER BY seq", (floor,)
    ).fetchall()
    rows = [row for cls in TABLES for row in _rows(db, cls)]
    schema.drop_all(db)
    for statement in schema.statements():
        db.execute(statement)
    change = Transaction(db, key, head, Lease(0, "", 0))
    for seq, epoch, at, kind, workload, body in entries:
        if seq != head.seq + 1 or not _can_be_read(kind, body):
            break  # what comes after a gap tells of a world that nobody knows
        change.append((epoch, at, kind, workload, body))
    for row in rows:
        if not isinstance(row, SnapshotRow) or row.seq <= head.seq:
            change.put(row)
    seen = max(owned[0], before.epoch if before else 0, *(epoch for _, epoch, *_ in entries), 0)
    change.lease = Lease(seen + EPOCHS_AHEAD, "", 0)
    db.execute("INSERT INTO lease VALUES (1, 0, '', 0)")
    db.execute("INSERT INTO head VALUES (1, 0, 0, '', 0, '', '{}', '')")
    change.write_head()
    db.execute(f"PRAGMA user_version = {len(schema.migrations())}")
    db.execute("COMMIT")
    written = max(before.seq if before else 0, entries[-1][0] if entries else 0)
    epoch = change.lease.epoch
    return Salvaged(head.seq, epoch, max(written - head.seq, 0)), Noted(head.writes, head.seq, head.link, epoch)


def _first(db: sqlite3.Connection, table: str, columns: str) -> tuple[Any, ...] | None:
    return next(iter(_lines(db, table, columns)), None)


def _rows(db: sqlite3.Connection, cls: type[Row]) -> list[Row]:
    return [cls(*line) for line in _lines(db, TABLES[cls].name, ", ".join(cls._fields))]


def _lines(db: sqlite3.Connection, table: str, columns: str) -> list[tuple[Any, ...]]:
    """None where the table is gone."""
    is_there = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    if not db.execute(is_there, (table,)).fetchone()[0]:
        return []
    return db.execute(f"SELECT {columns} FROM {table}").fetchall()


def _floor(db: sqlite3.Connection, noted: int) -> int:
    """Entries begin after this one; a snapshot must hold what was before."""
    (first,) = db.execute("SELECT coalesce(min(seq), 1) FROM journal").fetchone()
    floor = max(noted, first - 1)
    (held,) = db.execute(f"SELECT count(*) FROM {TABLES[SnapshotRow].name} WHERE seq >= ?", (floor,)).fetchone()
    if floor and not held:
        raise sqlite3.DatabaseError(f"it begins with entry {first}, and no snapshot holds what was before")
    return int(floor)


def _can_be_read(kind: str, body: str) -> bool:
    try:
        ENTRIES.load(kind, body)
    except CodecError:
        return False
    return True
