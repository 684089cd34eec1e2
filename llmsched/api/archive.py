"""The result of a run as one tar, read from storage as it is sent: nothing is kept in memory or on disk here."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from llmsched.errors import ClusterError, RequestError
from llmsched.runtime.storage import Storage

CHUNK = 1 << 20
TAR = "application/x-tar"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "a tar", "content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}
}


def within(artifact: str | None, storage: str, name: str) -> str:
    """`artifact`, which lies in the storage of this controller. Raises RequestError: nothing else is handed out."""
    root = Storage.at(storage).uri.rstrip("/") + "/"
    if artifact is None:
        raise RequestError(f"{name} has no result.", code="no_result", hint="A run that succeeded has one.")
    if not Storage.at(artifact).uri.startswith(root) or ".." in artifact.split("/"):
        message = f"the result of {name} lies at {artifact}, which this controller does not hand out."
        raise RequestError(message, code="no_result", hint="Fetch it from there.")
    return artifact


async def respond(storage: Storage, name: str) -> StreamingResponse:
    """Every file of a result. Raises RequestError when there is none any more."""

    def look() -> list[tuple[str, int]]:
        return [(key, size) for key in storage.list() if (size := storage.size(key)) is not None]

    found = await asyncio.to_thread(look)
    if not found:
        message = f"the result of {name} is not in the storage any more."
        raise RequestError(message, code="no_result", hint="Train it again.")
    return StreamingResponse(_as_tar(storage, found), media_type=TAR)


async def _as_tar(storage: Storage, files: list[tuple[str, int]]) -> AsyncIterator[bytes]:
    for key, size in files:
        about = tarfile.TarInfo(key)
        about.size = size
        yield about.tobuf(tarfile.PAX_FORMAT)
        sent = 0
        while sent < size:
            data = await asyncio.to_thread(storage.read_from, key, sent, min(CHUNK, size - sent))
            if not data:
                raise ClusterError(f"{key} became shorter while it was sent.", code="storage")
            sent += len(data)
            yield data
        yield b"\0" * (-size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
