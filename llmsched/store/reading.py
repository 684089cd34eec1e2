"""Reading a store: every entry and row that comes back has been held against its checksum. Writes nothing.

`moment_of` opens one as it is at one moment, beside a running controller; sqlite.py asks the same things of its own
connection. A journal without its key (a copy somebody sent) can be read as well: then only its order is verified.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import StoreError
from llmsched.store import keyfile, schema, seal
from llmsched.store.codec import ENTRIES
from llmsched.store.journal import QUIET, Lease, Written
from llmsched.store.seal import Head, Seal
from llmsched.store.tables import AGE, TABLES, AnyRow, ArchiveQuery, ArchiveRow, Row, UsageQuery, UsageRow, labels_of

BUSY_S = 5.0  # how long to wait for another process to finish its transaction


class Places(NamedTuple):
    """The files of a store: the key and the note lie apart from what they protect. `mark` says that there was one."""

    store: Path
    key: Path
    head: Path
    mark: Path

    @classmethod
    def of(cls, store: Path) -> Places:
        return cls(
            store, store.with_name(f"{store.stem}.key"), store.with_name(f"{store.stem}.head"), store.with_name("began")
        )


def read_only(path: Path) -> list[Written]:
    """Every entry of a journal, also of one that is being written: changes nothing, locks nobody out."""
    with moment_of(path) as moment:
        return moment.read()


@contextmanager
def moment_of(path: Path) -> Iterator[Moment]:
    """A store as it is now, also one that is being written: changes nothing, locks nobody out. Raises StoreError."""
    if not path.is_file():
        raise StoreError(f"there is no journal at {path}")
    key = keyfile.read(Places.of(path).key, "store_key")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute("BEGIN")  # from the first read on, what others write is not seen
            yield Moment(db, path, None if key is None else Seal(key))
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}", code="store_damaged", hint=seal.RESTORE) from error


class Moment:
    """What can be asked of it, as of `journal.Store`; see `moment_of`."""

    def __init__(self, db: sqlite3.Connection, path: Path, key: Seal | None) -> None:
        self._db = db
        self.path = path
        self.key = key

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong with the pages of the file."""
        return [str(line[0]) for line in self._db.execute("PRAGMA integrity_check") if line[0] != "ok"]

    def schema_differences(self) -> list[str]:
        """How its tables, indices and triggers differ from those that we made."""
        return schema.differences(self._db)

    def head(self) -> Head:
        return head(self._db, self.key, self.path)

    def lease(self) -> Lease:
        return lease(self._db, self.path)

    def floor(self) -> int:
        return self.head().floor

    def link_at(self, seq: int) -> str | None:
        return link_at(self._db, self.head(), seq)

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
        return entries(self._db, self.key, self.path, after, workload, limit, kinds, before, last)

    def row(self, cls: type[AnyRow], *key: Any) -> AnyRow | None:
        found = self.rows(cls, *key)
        return found[0] if found else None

    def rows(self, cls: type[AnyRow], *key: Any) -> list[AnyRow]:
        return rows(self._db, self.key, self.path, cls, key)

    def older(self, cls: type[Row], before: float, limit: int = 1_000) -> list[tuple[Any, ...]]:
        return older(self._db, cls, before, limit)

    def archived(self, query: ArchiveQuery) -> list[ArchiveRow]:
        return archived(self._db, self.key, self.path, query)

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        return usage(self._db, self.key, self.path, query)

    def broken_tables(self) -> list[str]:
        """Rows that were changed, added, removed or put back from before by whoever had no key."""
        assert self.key is not None
        expected, broken = self.head().sums, []
        for cls, table in TABLES.items():
            marks = []
            for *columns, mark in self._db.execute(f"SELECT {_columns(cls)} FROM {table.name}"):
                marks.append(mark)
                if mark != self.key.mark(table.name, columns):
                    key = ", ".join(str(part) for part in columns[: table.keys])
                    broken.append(f"{table.name}: the row of {key} was changed or forged")
            if not broken and seal.total(marks) != expected.get(table.name, 0):
                broken.append(_other_rows(table.name, len(marks)))
        return broken


# --- what is asked of a connection --------------------------------------------------------------------------------


def lease(db: sqlite3.Connection, path: Path) -> Lease:
    found = db.execute("SELECT epoch, owner, renewals FROM lease").fetchone()
    if found is None:
        raise _damaged(f"{path} has no lease")
    return Lease(*found)


def head(db: sqlite3.Connection, key: Seal | None, path: Path) -> Head:
    found = db.execute("SELECT writes, seq, link, floor, floor_link, sums, checksum FROM head").fetchone()
    if found is None:
        raise _damaged(f"{path} has no head")
    *columns, checksum = found
    try:
        made = Head.of(*columns)
    except (ValueError, TypeError, AttributeError):
        raise _damaged(f"the head of {path} is damaged") from None
    is_new = not made.writes and not checksum
    if key is not None and not is_new and checksum != made.checksum(key, lease(db, path)):
        raise _damaged(f"the head of {path} does not go with the key: it was changed, or the key is another one")
    return made


def tables_with_other_rows(db: sqlite3.Connection, of: Head) -> list[str]:
    """Those that lack rows, or have more or older ones. It looks at the marks alone, so that it may be asked at each
    start: that a row goes with its mark is seen when the row is read."""
    other = []
    for table in TABLES.values():
        marks = [mark for (mark,) in db.execute(f"SELECT checksum FROM {table.name}")]
        try:
            total = seal.total(marks)
        except ValueError:  # a mark that is none
            total = -1
        if total != of.sums.get(table.name, 0):
            other.append(_other_rows(table.name, len(marks)))
    return other


def _other_rows(table: str, count: int) -> str:
    return f"{table}: rows are missing, too many, or from an earlier time ({count} rows)"


def link_at(db: sqlite3.Connection, of: Head, seq: int) -> str | None:
    """The link of entry `seq`; None when there is no such entry."""
    if seq <= of.floor:
        return of.floor_link if seq == of.floor else None
    found = db.execute("SELECT checksum FROM journal WHERE seq = ?", (seq,)).fetchone()
    return None if found is None else str(found[0])


def entries(
    db: sqlite3.Connection,
    key: Seal | None,
    path: Path,
    after: int,
    workload: str | None,
    limit: int | None,
    kinds: Sequence[str] | None,
    before: int | None,
    last: bool,
) -> list[Written]:
    """See `journal.Store.read`."""
    now = head(db, key, path)
    every = workload is None and kinds is None and not last
    if every and after < now.floor:
        raise StoreError(
            f"entries up to {now.floor} are not kept any more", code="compacted", hint=f"Read on after {now.floor}."
        )
    terms, values = ["seq > ?"], [after]
    story = f"workload = ? AND kind NOT IN {QUIET}"  # word for word as in the index
    for term, value in ((story, workload), ("seq < ?", before)):
        if value is not None:
            terms.append(term)
            values.append(value)  # type: ignore[arg-type]
    if kinds is not None:
        terms.append(f"kind IN ({', '.join('?' * len(kinds))})")
        values += kinds  # type: ignore[arg-type]
    lines = db.execute(
        "SELECT seq, epoch, at, kind, workload, body, checksum, "
        "(SELECT checksum FROM journal AS earlier WHERE earlier.seq = journal.seq - 1) "
        f"FROM journal WHERE {' AND '.join(terms)} ORDER BY seq {'DESC' if last else ''} LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    written = []
    expected = after
    for *columns, checksum, earlier in lines:
        seq, _, at, kind, _, body = columns
        expected += 1
        if every and seq != expected:
            raise _damaged(f"{path} lacks entry {expected}")
        link = earlier if seq > now.floor + 1 else now.floor_link
        if key is not None and (link is None or checksum != key.link(link, columns)):
            raise _damaged(f"entry {seq} of {path} is damaged" if link is not None else f"{path} lacks entry {seq - 1}")
        written.append(Written(seq, at, ENTRIES.load(kind, body)))
    if every and before is None and (limit is None or len(written) < limit):
        there = written[-1].seq if written else max(after, now.floor)
        if there < now.seq:
            raise _damaged(f"{path} lacks entry {there + 1}: its last {now.seq - there} are gone")
    if last:
        written.reverse()
    return written


def rows(
    db: sqlite3.Connection, key: Seal | None, path: Path, cls: type[AnyRow], start: tuple[Any, ...]
) -> list[AnyRow]:
    columns = cls._fields[: TABLES[cls].keys]
    where = " AND ".join(f"{column} = ?" for column in columns[: len(start)]) or "1"
    query = f"SELECT {_columns(cls)} FROM {TABLES[cls].name} WHERE {where} ORDER BY {', '.join(columns)}"
    return [_verified(cls, line, key, path) for line in db.execute(query, start).fetchall()]


def older(db: sqlite3.Connection, cls: type[Row], before: float, limit: int) -> list[tuple[Any, ...]]:
    table, keys = TABLES[cls]
    age = AGE.get(cls, "at")
    columns = ", ".join(cls._fields[:keys])
    return db.execute(
        f"SELECT {columns} FROM {table} WHERE {age} < ? ORDER BY {age}, {columns} LIMIT ?", (before, limit)
    ).fetchall()


def archived(db: sqlite3.Connection, key: Seal | None, path: Path, query: ArchiveQuery) -> list[ArchiveRow]:
    """Each selection goes along an index of its own, so that what it costs is what it gives."""
    terms: list[str] = []
    values: list[Any] = []
    if query.name is not None:
        terms.append("name = ?")
        values.append(query.name)
    if query.results:
        terms.append("artifact NOTNULL")
    if query.models:
        terms.append("kind = 'train' AND outcome = 'succeeded' AND artifact NOTNULL")
    if query.after_run is not None:
        terms.append("name >= ? AND (name > ? OR run < ?)")
        values += (query.after_run[0], *query.after_run)
    if query.after_age is not None:
        terms.append("submitted_at <= ? AND (submitted_at < ? OR id > ?)")
        values += (query.after_age[0], *query.after_age)
    for column, wanted in (("user", query.of), ("queue", query.queue)):
        if wanted is not None:
            terms.append(f"{column} = ?")
            values.append(wanted)
    if query.outcomes:
        terms.append(f"outcome IN ({', '.join('?' * len(query.outcomes))})")
        values += query.outcomes
    if query.parent is not None:
        terms.append("substr(name, 1, instr(name, '.')) = ?")
        values.append(query.parent and f"{query.parent}.")
    for label in query.labels:
        terms.append("instr(labels, ?)")
        values.append(labels_of([label]))
    owners: list[tuple[str, str]] = [("queue = ?", queue) for queue in query.queues]
    if query.user is not None:
        owners.append(("user = ?", query.user))
    order = "name, run DESC" if query.by_run else "submitted_at DESC, id"
    found: dict[str, ArchiveRow] = {}
    for more, value in owners or [("1", "")]:
        lines = db.execute(
            f"SELECT {_columns(ArchiveRow)} FROM archive WHERE {' AND '.join([*terms, more])} ORDER BY {order} LIMIT ?",
            (*values, *([value] if owners else []), query.limit),
        )
        for line in lines.fetchall():
            row = _verified(ArchiveRow, line, key, path)
            found[row.id] = row
    return sorted(found.values(), key=query.place)[: query.limit]


def usage(db: sqlite3.Connection, key: Seal | None, path: Path, query: UsageQuery) -> list[UsageRow]:
    begin = "(day, workload, queue, flavor) > (?, ?, ?, ?)" if query.after else "day >= ?"  # SQLite goes there at once
    lines = db.execute(
        f"SELECT {_columns(UsageRow)} FROM usage WHERE {begin} AND day <= ? "
        "ORDER BY day, workload, queue, flavor LIMIT ?",
        (*(query.after or (query.since,)), query.until, query.limit),
    )
    return _all_verified(UsageRow, lines.fetchall(), key, path)


def _columns(cls: type) -> str:
    return ", ".join((*cls._fields, "checksum"))  # type: ignore[attr-defined]


def _verified(cls: type[AnyRow], line: tuple[Any, ...], key: Seal | None, path: Path) -> AnyRow:
    (row,) = _all_verified(cls, [line], key, path)
    return row


def _all_verified(cls: type[AnyRow], lines: list[tuple[Any, ...]], key: Seal | None, path: Path) -> list[AnyRow]:
    """Of a hundred thousand rows each step counts."""
    table, rows = TABLES[cls], [line[:-1] for line in lines]
    if key is not None:
        for line, mark in zip(lines, key.marks(table.name, rows), strict=True):
            if line[-1] != mark:
                keys = ", ".join(map(str, line[: table.keys]))
                raise _damaged(f"a row of {table.name} in {path} was changed: {keys}")
    return [cls._make(row) for row in rows]


def _damaged(message: str) -> StoreError:
    return StoreError(message, code="store_damaged", hint=f"See what is whole: llmsched fsck. {seal.ACCEPT}")
