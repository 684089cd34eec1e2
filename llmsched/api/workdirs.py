"""Packed workdirs: named by their content, checked on the way in, kept in storage for the workers. Those of
Ray's client have a name of its own beside, under which the same user finds it again.

A workdir is a zip of plain files; names that would leave the folder they are unpacked into are refused here, once, so
that nothing behind this door has to think of them again. An upload goes to a file as it comes, never into memory, a few
at once of each user; one that no workload refers to is removed after a while. Start reading at `Uploads`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import struct
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from llmsched import sanitize
from llmsched.errors import RequestError, SpecError
from llmsched.runtime.storage import Storage, check_key
from llmsched.spec import http_models

log = logging.getLogger("llmsched.api")
UNPACKED_LIMIT = 2 << 30
FILES_LIMIT = http_models.WORKDIR_FILES_AT_MOST
LIST_LIMIT = FILES_LIMIT * 128  # bytes of a zip's own list of files, which is read as a whole
AT_ONCE_OF_USER = 2  # uploads; the next ones wait
AT_ONCE = 8
WAIT_AT_MOST_S = 20.0
UNUSED_BYTES_OF_USER = 2 << 30
KEPT_UNUSED_S = 24 * 3600.0
LOOK_EVERY_S = 3600.0
_PACKAGES = "workdirs/packages"  # <user>/<Ray's name>: the SHA-256
_HEX = re.compile("[0-9a-f]{64}")
_NAME = re.compile(rf"{http_models.WORKDIR_PREFIX}([0-9a-f]{{64}})")
_UPLOAD = re.compile(r"workdirs/([0-9a-f]{64})\.zip")


def key(sha256: str) -> str:
    return f"workdirs/{sha256}.zip"


def unknown(sha256: str) -> RequestError:
    return RequestError(f"no workdir {sha256[:12]}... has been sent.", code="unknown_workdir", http_status=404)


@dataclass(slots=True)
class Upload:
    """`at`: when somebody last sent it or asked for it, in seconds."""

    by: str
    size: int
    at: float


class Uploads:
    """Of one storage. `parcels` are those of all workloads that are known: what they name is in use."""

    def __init__(
        self,
        storage: Callable[[], Storage],
        parcels: Callable[[], Iterable[str]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._parcels = parcels
        self._now = now
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._all = asyncio.Semaphore(AT_ONCE)
        self.drafts: Path | None = None  # a folder on a disk for what is on its way; None: the system's

    async def find(self, sha256: str, user: str) -> http_models.WorkdirStored | None:
        storage = self._storage()
        size = await asyncio.to_thread(storage.size, key(sha256))
        if size is None:
            return None
        await asyncio.to_thread(_note, storage, sha256, Upload(user, size, self._now()))
        return http_models.WorkdirStored(sha256=sha256, size_bytes=size, known=True)

    async def receive(self, sha256: str, user: str, chunks: AsyncIterator[bytes]) -> http_models.WorkdirStored:
        """Raises SpecError when the content is not what its name says, or not a zip of plain relative files;
        RequestError (429) when the user has too much that nobody refers to, or too many uploads under way."""
        known = await self.find(sha256, user)
        if known is not None:
            return known
        _, size = await self._take(user, chunks, sha256)
        return http_models.WorkdirStored(sha256=sha256, size_bytes=size, known=False)

    async def find_package(self, package: str, user: str) -> http_models.WorkdirStored | None:
        """What that user has uploaded under that name of Ray's, while it is kept."""
        storage = self._storage()
        try:
            sha256 = (await asyncio.to_thread(storage.read, _package_key(package, user))).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        return await self.find(sha256, user) if _HEX.fullmatch(sha256) else None

    async def receive_package(self, package: str, user: str, chunks: AsyncIterator[bytes]) -> http_models.WorkdirStored:
        """Raises as `receive`."""
        sha256, size = await self._take(user, chunks)
        await asyncio.to_thread(self._storage().write, _package_key(package, user), sha256.encode())
        return http_models.WorkdirStored(sha256=sha256, size_bytes=size, known=False)

    async def _take(self, user: str, chunks: AsyncIterator[bytes], expected: str | None = None) -> tuple[str, int]:
        """(SHA-256, size) of what is stored now."""
        storage = self._storage()
        async with self._turn(user):
            unused = await asyncio.to_thread(self._unused, storage, list(self._parcels()))
            if sum(one.size for one in unused.values() if one.by == user) >= UNUSED_BYTES_OF_USER:
                raise RequestError(
                    f"{UNUSED_BYTES_OF_USER >> 30} GiB of yours were sent and are used by no workload.",
                    code="unused_workdirs",
                    hint="Apply what was sent; the rest is removed after a day.",
                    http_status=429,
                )
            with tempfile.TemporaryFile(dir=self.drafts) as file:
                found = await _written(file, chunks)
                if expected is not None and found != expected:
                    raise SpecError(
                        "the packed workdir is not what its name says.", code="workdir", hint="Send it again."
                    )
                return found, await asyncio.to_thread(keep, storage, found, file, user, self._now())

    @asynccontextmanager
    async def _turn(self, user: str) -> AsyncIterator[None]:
        mine = self._turns.setdefault(user, asyncio.Semaphore(AT_ONCE_OF_USER))
        try:
            async with asyncio.timeout(WAIT_AT_MOST_S):
                await mine.acquire()
                try:
                    await self._all.acquire()
                except BaseException:
                    mine.release()
                    raise
        except TimeoutError:
            raise RequestError(
                "too many workdirs are being sent.", code="busy", hint="Try again.", http_status=429, retry_after_s=5.0
            ) from None
        try:
            yield
        finally:
            self._all.release()
            mine.release()

    async def sweep_forever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep, list(self._parcels()))
            except Exception:
                log.exception("unused workdirs could not be removed")
            await asyncio.sleep(LOOK_EVERY_S)

    def sweep(self, parcels: list[str]) -> list[str]:
        """Remove what no workload refers to and nobody has sent or asked for in a while; what it was."""
        storage = self._storage()
        old = [name for name, one in self._unused(storage, parcels).items() if self._now() - one.at > KEPT_UNUSED_S]
        for name in old:
            storage.delete(key(name))
            storage.delete(_note_key(name))
            log.info("workdir %s is removed: no workload refers to it", name)
        for named in storage.list(_PACKAGES):
            if storage.size(key(storage.read(named).decode("ascii", "replace"))) is None:
                storage.delete(named)
        return old

    def _unused(self, storage: Storage, parcels: list[str]) -> dict[str, Upload]:
        used = {name for parcel in parcels for name in _NAME.findall(parcel)}
        kept = set(storage.list("workdirs"))
        names = [found[1] for one in sorted(kept) if (found := _UPLOAD.fullmatch(one))]
        return {name: self._noted(storage, name) for name in names if name not in used}

    def _noted(self, storage: Storage, name: str) -> Upload:
        try:
            found = sanitize.loads(storage.read_note(_note_key(name)))
            return Upload(str(found["by"]), int(found["size"]), float(found["at"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
            first_seen = Upload("", storage.size(key(name)) or 0, self._now())
            with suppress(OSError):  # work has put something in its way; nobody's upload may fail for that
                _note(storage, name, first_seen)
            return first_seen


async def _written(file: IO[bytes], chunks: AsyncIterator[bytes]) -> str:
    """The SHA-256 of what came, which is in `file` now."""
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
        await asyncio.to_thread(file.write, chunk)
    file.flush()
    return digest.hexdigest()


def keep(storage: Storage, sha256: str, file: IO[bytes], by: str = "", at: float = 0.0) -> int:
    """Check the zip in an open file and store it; its size. Raises SpecError."""
    check(file)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    _note(storage, sha256, Upload(by, size, at or time.time()))
    storage.write_file(key(sha256), cast(BinaryIO, file))
    return size


def _note(storage: Storage, sha256: str, upload: Upload) -> None:
    storage.write(_note_key(sha256), json.dumps(asdict(upload)).encode())


def _package_key(package: str, user: str) -> str:
    """A name is made of the content by rules that are not ours, so one user's says nothing to another."""
    return f"{_PACKAGES}/{hashlib.sha256(user.encode()).hexdigest()}/{package}"


def _note_key(sha256: str) -> str:
    return f"workdirs/{sha256}.json"


PATH_LIMIT = 1_000  # bytes of a name: the folder that it is unpacked in comes before it
PLAIN = "Pack plain files, deflated or stored, each once and with a path within the folder, as llmsched does."


class _Bounded:
    """Refuses to be read into memory at once, as `zipfile` does with the list of what a zip holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(LIST_LIMIT + 1 if size < 0 else min(size, LIST_LIMIT + 1))
        if len(data) > LIST_LIMIT:
            raise _too_much()
        return data

    def seekable(self) -> bool:
        return True


def check(content: IO[bytes]) -> None:
    """Raises SpecError unless it is a zip of plain files, not too many and not too large, that can be unpacked."""
    try:
        archive = zipfile.ZipFile(cast(BinaryIO, _Bounded(content)))
        members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        raise SpecError("the packed workdir is not a zip file.", code="workdir", hint=PLAIN) from None
    if len(members) > FILES_LIMIT or sum(member.file_size for member in members) > UNPACKED_LIMIT:
        raise _too_much()
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        kind = member.external_attr >> 28  # of a Unix mode: 8 is a plain file, 4 a folder, 0 not said
        try:
            check_key(member.filename.rstrip("/"))
        except ValueError:
            kind = -1
        if kind not in (0, 4, 8):
            raise _unfit(member, "is no plain file in it")
        name = member.filename.rstrip("/")
        if len(name.encode(errors="replace")) > PATH_LIMIT or any(len(part.encode()) > 255 for part in name.split("/")):
            raise _unfit(member, "has a name that no disk takes")
        around = [name[:at] for at, letter in enumerate(name) if letter == "/"]
        if name in files or not files.isdisjoint(around) or (name in folders and not member.is_dir()):
            raise _unfit(member, "is in it twice, or is both a file and a folder")
        folders.update([*around, name] if member.is_dir() else around)
        if not member.is_dir():
            files.add(name)
            _try_to_open(archive, member)


def _try_to_open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """What is encrypted, packed in another way or not where the list says, no worker could unpack either."""
    try:
        archive.open(member).close()
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError, ValueError, OSError, struct.error):
        raise _unfit(member, "cannot be unpacked") from None


def _unfit(member: zipfile.ZipInfo, why: str) -> SpecError:
    return SpecError(
        f"the workdir holds {sanitize.line(member.filename, 100)!r}, which {why}.", code="workdir", hint=PLAIN
    )


def _too_much() -> SpecError:
    return SpecError(
        f"the workdir holds more than {FILES_LIMIT} files or {UNPACKED_LIMIT >> 30} GiB.",
        code="workdir",
        hint="Keep data out of it: name it by path or uri.",
    )
