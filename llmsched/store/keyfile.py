"""Keys that are kept in files of their own, apart from what they protect: 64 hex digits, for the owner alone (0600)."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from llmsched.errors import StoreError

BYTES = 32


def read(file: Path, code: str) -> bytes | None:
    """The key; None when there is no such file. Raises StoreError (`code`) for one that cannot be read or is no key."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}.", code=code) from None
    except UnicodeDecodeError:
        text = ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != BYTES:
        raise StoreError(f"{file} holds no key of 64 hex digits.", code=code, hint="Put the right file there.")
    return key


def make(file: Path, code: str) -> bytes:
    """A new key, whole, private and on disk from its first moment. Raises StoreError (`code`)."""
    key = secrets.token_bytes(BYTES)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(key.hex() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}.", code=code) from None
    return key


def make_mark(file: Path) -> None:
    """That there was a store here, for when nothing else of it is left."""
    with suppress(OSError):  # it is there; or the disk is full, and it is made at the next start
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write("A store was made in this folder: a start that finds none stops, and does not begin anew.\n")
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """What was created, renamed or removed in it survives a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
