"""Packed workdirs: named by their content, checked on the way in, kept in storage for the workers.

A workdir is a zip of plain files; names that would leave the folder they are unpacked into are refused here, once,
so that nothing behind this door has to think of them again.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

from llmsched.errors import RequestError, SpecError
from llmsched.runtime.storage import Storage, check_key
from llmsched.spec import http_models

UNPACKED_LIMIT = 2 << 30
FILES_LIMIT = 50_000


def key(sha256: str) -> str:
    return f"workdirs/{sha256}.zip"


def find(storage: Storage, sha256: str) -> http_models.WorkdirStored | None:
    size = storage.size(key(sha256))
    return None if size is None else http_models.WorkdirStored(sha256=sha256, size_bytes=size, known=True)


def unknown(sha256: str) -> RequestError:
    return RequestError(f"no workdir {sha256[:12]}... has been sent.", code="unknown_workdir", http_status=404)


def keep(storage: Storage, sha256: str, content: bytes) -> http_models.WorkdirStored:
    """Raises SpecError when the content is not what its name says, or not a zip of plain relative files."""
    known = find(storage, sha256)
    if known is not None:
        return known
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SpecError("the packed workdir is not what its name says.", code="workdir", hint="Send it again.")
    check(content)
    storage.write(key(sha256), content)
    return http_models.WorkdirStored(sha256=sha256, size_bytes=len(content), known=False)


def check(content: bytes) -> None:
    try:
        members = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except zipfile.BadZipFile:
        raise SpecError("the packed workdir is not a zip file.", code="workdir") from None
    if len(members) > FILES_LIMIT or sum(member.file_size for member in members) > UNPACKED_LIMIT:
        raise SpecError(
            f"the workdir holds more than {FILES_LIMIT} files or {UNPACKED_LIMIT >> 30} GiB.",
            code="workdir",
            hint="Keep data out of it: name it by path or uri.",
        )
    for member in members:
        kind = member.external_attr >> 28  # of a Unix mode: 8 is a plain file, 4 a folder, 0 not said
        try:
            check_key(member.filename.rstrip("/"))
        except ValueError:
            kind = -1
        if kind not in (0, 4, 8):
            raise SpecError(f"the workdir holds {member.filename!r}, which is no plain file in it.", code="workdir")
