"""Checksums under a key that is not in the store, and the head: how much was written, noted apart from the store.

    link   of an entry of the journal: covers its every column and the link before, so the last one stands for them all
    mark   of a row of a table: covers its every column
    sum    of a table: the marks of its rows, added up. A row that is gone, or was put back from before, is missed
    head   seq and link of the last entry, the sums, the lease. One row in the store, written with every transaction

Whoever has the store without the key can change nothing unseen. Whoever puts an older store in place of a newer one is
seen by the head's note beside it (`HeadFile`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import StoreError
from llmsched.store import keyfile
from llmsched.store.journal import Lease

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)
_SLOT_BYTES = 512  # one sector of any disk, so that a slot is written whole or not at all


class Seal:
    """`key` is 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._begun: dict[str, blake2b] = {}  # by what it is about

    def link(self, before: str, columns: Iterable[Any]) -> str:
        """`columns` of an entry: seq, epoch, at, kind, workload, body."""
        return self._digest("journal", (before, *columns))

    def mark(self, table: str, columns: Iterable[Any]) -> str:
        return self._digest(table, columns)

    def marks(self, table: str, rows: Iterable[Iterable[Any]]) -> Iterator[str]:
        """Of many rows, each as `mark` has it: each step counts."""
        begun = self._begin(table)
        for columns in rows:
            parts = []
            for value in columns:
                part = b"s" + value.encode() if type(value) is str else _spelled(value)
                parts.append(b"%d:%b" % (len(part), part))
            digest = begun.copy()
            digest.update(b"".join(parts))
            yield digest.hexdigest()

    def _digest(self, about: str, columns: Iterable[Any]) -> str:
        digest = self._begin(about).copy()
        digest.update(b"".join([b"%d:%b" % (len(part), part) for part in map(_spelled, columns)]))
        return digest.hexdigest()

    def _begin(self, about: str) -> blake2b:
        """The part that all of them have in common."""
        begun = self._begun.get(about)
        if begun is None:
            first = _spelled(about)
            begun = blake2b(b"%d:%b" % (len(first), first), key=self._key, digest_size=_DIGEST_BYTES)
            self._begun[about] = begun
        return begun


def _spelled(value: Any) -> bytes:
    """The same before it is written and after it is read: SQLite gives 1 back as 1.0 where a column is REAL."""
    if isinstance(value, str):
        return b"s" + value.encode()
    if value is None:
        return b"-"
    if isinstance(value, bytes):
        return b"b" + value
    return b"n" + repr(float(value)).encode()


@dataclass(slots=True)
class Head:
    """`floor`: entries up to this one were compacted away; `floor_link` is the link of that one."""

    writes: int = 0
    seq: int = 0
    link: str = ""
    floor: int = 0
    floor_link: str = ""
    sums: dict[str, int] = field(default_factory=dict)

    def count(self, table: str, mark: str | None, sign: int = 1) -> None:
        """A row with this mark came (1) or went (-1)."""
        if mark is not None:
            self.sums[table] = (self.sums.get(table, 0) + sign * int(mark, 16)) % _MODULUS

    def columns(self) -> tuple[Any, ...]:
        """As the table `head` has them, without the checksum."""
        sums = {table: f"{total:x}" for table, total in sorted(self.sums.items()) if total}
        return self.writes, self.seq, self.link, self.floor, self.floor_link, json.dumps(sums)

    @classmethod
    def of(cls, writes: int, seq: int, link: str, floor: int, floor_link: str, sums: str) -> Head:
        return cls(
            writes, seq, link, floor, floor_link, {name: int(sum_, 16) for name, sum_ in json.loads(sums).items()}
        )

    def checksum(self, seal: Seal, lease: Lease) -> str:
        return seal.mark("head", (*self.columns(), *lease))


def total(marks: Iterable[str]) -> int:
    """The sum of a table's marks."""
    return sum(int(mark, 16) for mark in marks) % _MODULUS


class Noted(NamedTuple):
    """What is noted beside the store: at least this much was written to it, under this epoch."""

    writes: int
    seq: int
    link: str
    epoch: int


class HeadFile:
    """Two slots, written in turn and in place, each with a checksum: a torn one leaves the other, and a full disk does
    not matter.

    It is written after the commit that it tells of and before anybody is answered, so it never says more than there is.
    It reaches the disk about once a second: after a power cut it may say less, and the store itself is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: int | None = None

    def read(self) -> Noted | None:
        """None when there is none. Raises StoreError when neither slot can be read."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}.", code="store_head") from None
        if not content.strip():
            return None  # it was being made
        slots = [found for at in (0, _SLOT_BYTES) if (found := _read_slot(content[at : at + _SLOT_BYTES])) is not None]
        if not slots:
            raise StoreError(f"{self.path} is damaged", code="store_head", hint=ACCEPT)
        return max(slots)

    def write(self, noted: Noted, *, sync: bool = False) -> None:
        """Raises OSError."""
        if self._opened is None:
            self._open()
        assert self._opened is not None
        os.pwrite(self._opened, _slot(noted), _SLOT_BYTES * (noted.writes % 2))
        if sync:
            os.fdatasync(self._opened)

    def _open(self) -> None:
        is_new = not self.path.exists()
        self._opened = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if is_new:
            os.pwrite(self._opened, b" " * (2 * _SLOT_BYTES), 0)
            os.fsync(self._opened)
            keyfile.sync_folder(self.path.parent)

    def close(self) -> None:
        if self._opened is not None:
            with suppress(OSError):
                os.fsync(self._opened)
            os.close(self._opened)
            self._opened = None


def _slot(noted: Noted) -> bytes:
    text = json.dumps(noted)
    checksum = blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{checksum} {text}".encode().ljust(_SLOT_BYTES)


def _read_slot(content: bytes) -> Noted | None:
    checksum, _, text = content.decode("ascii", "replace").strip().partition(" ")
    if not text or checksum != blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest():
        return None
    return Noted(*json.loads(text))


RESTORE = "Stop the controller, then restore a backup: llmsched restore BACKUP"
ACCEPT = f"{RESTORE}. To go on from what is there and lose the rest: llmsched restore --accept-loss"


def refuse_less(found: Head, epoch: int, link_at: str | None, noted: Noted | None, path: Path) -> None:
    """Raises StoreError when the store holds less than was noted of it. `link_at` is its link of entry `noted.seq`."""
    if noted is None:
        raise StoreError(
            f"the note beside {path} of how much was written to it is gone: whether this is all cannot be said",
            code="store_head",
            hint=ACCEPT,
        )
    if found.seq >= noted.seq and found.writes >= noted.writes and epoch >= noted.epoch and link_at == noted.link:
        return
    if found.seq < noted.seq:
        what = f"has {found.seq} entries, and at least {noted.seq} were written and acknowledged"
    elif link_at != noted.link:
        what = f"has another history than the store that last ran here (they part before entry {noted.seq + 1})"
    else:
        what = f"is older than what last ran here (epoch {epoch}, write {found.writes}; {noted.epoch}, {noted.writes})"
    raise StoreError(
        f"{path} {what}: it is an older copy, or lost its -wal file",
        code="store_old",
        hint=f"Put the right file back, with its -wal. {ACCEPT}",
    )
