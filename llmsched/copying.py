"""Files over a channel, as a tar: whole, bounded, and never out of the folder that they are for. The same at both ends
of `llmsched cp`."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, cast

from llmsched.channels import Channel

AT_MOST = 10 * 1024**3  # bytes of one copy
FILES_AT_MOST = 100_000
LEAST_FREE = 1024**3  # bytes that are left free where files come to lie
_ITEM = "item"  # the one entry at the top of the tar: each end has a name of its own for it


class Refused(Exception):
    """What is wrong, for people."""


def within(folder: Path, path: str, *, must_exist: bool) -> Path:
    """`path` in `folder`, no link followed out of it. Raises Refused."""
    root = Path(os.path.realpath(folder))
    place = Path(os.path.realpath(root / path))
    if place != root and root not in place.parents:
        raise Refused(f"{path} is not below the working folder of the worker, {folder}.")
    if must_exist and not place.exists():
        raise Refused(f"{path} is not there: paths count from the working folder of the worker, {folder}.")
    return place


def send(source: Path, channel: Channel) -> None:
    """Files, folders and links as they are; nothing else. Raises Refused, Broken."""
    counted = _Counted()
    with tarfile.open(fileobj=cast(Any, _Sink(channel)), mode="w|", dereference=False) as archive:
        archive.add(source, _ITEM, filter=counted.check)


def receive(channel: Channel, staged: Path, target: Path, name: str) -> Path:
    """What `send` sends, first into the empty folder `staged` of the same file system, then to `target`, or below it
    under `name` where that is a folder. Returns where. Raises Refused, Broken."""
    place = target / name if target.is_dir() else target
    if os.path.lexists(place):
        raise Refused(f"{place} is there already.")
    if not place.parent.is_dir():
        raise Refused(f"there is no folder {place.parent}.")
    counted = _Counted(staged)
    try:
        with tarfile.open(fileobj=cast(Any, _Source(channel)), mode="r|") as archive:
            for member in archive:
                if counted.check(member) is None or member.name.partition("/")[0] != _ITEM:
                    raise Refused(f"{member.name} is neither file nor folder.")
                archive.extract(member, staged, filter="data")  # no name leads out of it, no link, no device
    except tarfile.TarError as error:
        raise Refused(f"what came is no whole copy: {error}.") from None
    if not os.path.lexists(staged / _ITEM):
        raise Refused("nothing came.")
    (staged / _ITEM).replace(place)
    return place


class _Counted:
    def __init__(self, folder: Path | None = None) -> None:
        self._bytes, self._files = 0, 0
        self._folder = folder

    def check(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """None for what is neither file, folder nor link. Raises Refused for too much."""
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            return None
        self._files += 1
        self._bytes += member.size
        if self._files > FILES_AT_MOST or self._bytes > AT_MOST:
            raise Refused(
                f"a copy has at most {AT_MOST >> 30} GiB and {FILES_AT_MOST:,} files; keep more in storage, or pack it."
            )
        if self._folder is not None and shutil.disk_usage(self._folder).free - member.size < LEAST_FREE:
            raise Refused(f"there is no room for it: {LEAST_FREE >> 30} GiB of the disk are to stay free.")
        return member


class _Sink:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def write(self, data: bytes) -> int:
        self._channel.write(data)
        return len(data)


class _Source:
    def __init__(self, channel: Channel) -> None:
        self._channel, self._held = channel, b""

    def read(self, size: int) -> bytes:
        parts, length = [self._held], len(self._held)
        while length < size and (data := self._channel.read()):
            parts.append(data)
            length += len(data)
        whole = b"".join(parts)
        self._held = whole[size:]
        return whole[:size]
