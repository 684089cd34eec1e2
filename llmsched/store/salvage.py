"""A store that was copied, put back or damaged becomes one to go on from: checksums anew, an epoch of its own.

Only an operator asks for this, with the controller stopped: it believes what is there. Entries after the first gap are
lost. The epoch is raised far beyond any that may have been given meanwhile, so that whatever still acts for the lost
time is fenced out; what runs is adopted by name, or reaped.
"""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from llmsched.errors import StoreError
from llmsched.store import keyfile, reading, seal
from llmsched.store.codec import ENTRIES, CodecError
from llmsched.store.journal import Lease
from llmsched.store.reading import Places
from llmsched.store.seal import Head, HeadFile, Noted, Seal
from llmsched.store.sqlite import Transaction
from llmsched.store.tables import TABLES, SnapshotRow

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
    return salvaged


def _sealed_anew(db: sqlite3.Connection, key: Seal, before: Noted | None) -> tuple[Salvaged, Noted]:
    db.execute("BEGIN IMMEDIATE")
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    found = db.execute("SELECT writes, floor, floor_link FROM head").fetchone() or (0, 0, "")
    owned = db.execute("SELECT epoch FROM lease").fetchone() or (0,)
    floor = _floor(db, found[1])
    head = Head(max(found[0], before.writes if before else 0) + 1, floor, found[2], floor, found[2])
    entries = db.execute("SELECT * FROM journal WHERE seq > ? ORDER BY seq", (floor,)).fetchall()
    db.execute("DELETE FROM journal")
    change = Transaction(db, key, head, Lease(0, "", 0))
    for seq, epoch, at, kind, workload, body, _ in entries:
        if seq != head.seq + 1 or not _can_be_read(kind, body):
            break  # what comes after a gap tells of a world that nobody knows
        change.append((epoch, at, kind, workload, body))
    db.execute("DELETE FROM snapshots WHERE seq > ?", (head.seq,))
    for cls, (table, _) in TABLES.items():
        rows = db.execute(f"SELECT * FROM {table}").fetchall()
        db.execute(f"DELETE FROM {table}")
        for row in rows:
            change.put(cls(*row[:-1]))
    seen = max(owned[0], before.epoch if before else 0, *(epoch for _, epoch, *_ in entries), 0)
    change.lease = Lease(seen + EPOCHS_AHEAD, "", 0)
    db.execute("DELETE FROM lease")
    db.execute("INSERT INTO lease VALUES (1, 0, '', 0)")
    db.execute("DELETE FROM head")
    db.execute("INSERT INTO head VALUES (1, 0, 0, '', 0, '', '{}', '')")
    change.write_head()
    for _, sql in triggers or _triggers():
        db.execute(sql)
    db.execute("COMMIT")
    written = max(before.seq if before else 0, entries[-1][0] if entries else 0)
    epoch = change.lease.epoch
    return Salvaged(head.seq, epoch, max(written - head.seq, 0)), Noted(head.writes, head.seq, head.link, epoch)


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


def _triggers() -> list[tuple[str, str]]:
    script = (resources.files("llmsched.store") / "migrations" / "0001_store.sql").read_text("utf-8")
    parts = script.split("CREATE TRIGGER ")[1:]
    return [("", "CREATE TRIGGER " + part[: part.index("END;") + 3]) for part in parts]
