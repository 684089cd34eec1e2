"""Log lines of attempts, read from storage, so that they are there when the workload, and the cluster, are gone.

Attempts write `<gang>/<attempt>/logs/<rank>.log`. Following means reading on from where each file ended, and moving to
the next attempt of a gang when there is one. Knows storage keys; of the state only what the two callables say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from llmsched import sanitize
from llmsched.runtime.storage import Storage
from llmsched.spec.http_models import LogLine

POLL_S = 0.3
CHUNK = 1 << 18
LINE_LIMIT = 1 << 16
NEWEST = -1  # attempt, of those in the storage
NOT_SHOWN = "llmsched: this log was replaced by a link, or by what is no file, and is not shown."

Source = tuple[str, int]  # gang, attempt


async def read(
    storage: Storage,
    sources: Callable[[], Sequence[Source]],
    *,
    rank: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: True,
    why_none: Callable[[], str] = lambda: "no log has been written.",
) -> AsyncIterator[LogLine]:
    """Lines of all `sources` (asked anew while following), whole lines only; with `tail`, the last so many of each."""
    positions: dict[str, int | None] = {}  # None: nothing more of it is read
    halves: dict[str, bytes] = {}
    first, silent = True, True
    while True:
        over = ended() or not follow  # asked before reading: what was written before the end is read after it
        for gang, number in sources():
            attempt = number if number != NEWEST else await asyncio.to_thread(_newest, storage, gang)
            for key in await asyncio.to_thread(_files, storage, gang, attempt, rank):
                lines = _rest(storage, key, positions, halves, flush=over)
                if first and tail is not None:
                    lines = _last(lines, tail)
                async for text in lines:
                    silent = False
                    yield LogLine(gang=gang, attempt=attempt, rank=_rank(key), text=text)
        if over:
            break
        first = False
        await asyncio.sleep(POLL_S)
    if silent:
        gang, attempt = next(iter(sources()), ("", 0))
        yield LogLine(gang=gang, attempt=max(attempt, 0), rank=0, text=why_none(), note=True)


async def _last(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    kept: deque[str] = deque(maxlen=count)
    async for line in lines:
        kept.append(line)
    for line in kept:
        yield line


def _rank(key: str) -> int:
    name = key.rpartition("/")[2].removesuffix(".log")
    return int(name) if name.isdecimal() else -1


def _newest(storage: Storage, gang: str) -> int:
    """The last attempt that wrote a log; 0 for none."""
    parts = (key.removeprefix(f"{gang}/").split("/") for key in storage.list(gang))
    return max((int(part[0]) for part in parts if part[0].isdecimal() and part[1:2] == ["logs"]), default=0)


def _files(storage: Storage, gang: str, attempt: int, rank: int | None) -> list[str]:
    if not attempt:
        return []
    keys = [key for key in storage.list(f"{gang}/{attempt}/logs") if key.endswith(".log") and _rank(key) >= 0]
    return sorted((key for key in keys if rank is None or _rank(key) == rank), key=_rank)


async def _rest(
    storage: Storage, key: str, positions: dict[str, int | None], halves: dict[str, bytes], *, flush: bool
) -> AsyncIterator[str]:
    while (at := positions.get(key, 0)) is not None:
        try:
            chunk = await asyncio.to_thread(_read_from, storage, key, at)
        except PermissionError:  # theirs, to what is not theirs
            positions[key] = None
            yield NOT_SHOWN
            return
        if not chunk:
            break
        positions[key] = at + len(chunk)
        *whole, half = (halves.pop(key, b"") + chunk).split(b"\n")
        if len(half) > LINE_LIMIT:
            whole, half = [*whole, half], b""
        if half:
            halves[key] = half
        for line in whole:
            yield _text(line)
    if flush and key in halves:
        yield _text(halves.pop(key))


def _text(line: bytes) -> str:
    """For any terminal: what it would obey is spelled out. Of a progress bar the last state."""
    return sanitize.shown(line.decode(errors="replace").rstrip("\r").rpartition("\r")[2])


def _read_from(storage: Storage, key: str, offset: int) -> bytes:
    try:
        return storage.read_from(key, offset, CHUNK)
    except FileNotFoundError:  # removed meanwhile
        return b""
