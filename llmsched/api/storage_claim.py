"""A storage is one journal's. Names of work and numbers of attempts are a journal's own: of another one's storage, the
receipts, checkpoints and results would be taken for what this one's work has come to.

The note that says whose it is lies in the storage, where work could forge it. So it can keep a journal that knows no
work yet from beginning there, and stops no other.
"""

from __future__ import annotations

import hashlib
import logging

from llmsched.errors import RequestError
from llmsched.runtime.storage import Storage, Unreadable

log = logging.getLogger("llmsched.api")
NOTE = "llmsched.id"  # no workload's name has a dot


def identity(store_key: bytes) -> str:
    """Of a journal, wherever it and its copies lie; says nothing of its key."""
    return hashlib.blake2b(store_key, digest_size=16, person=b"llmsched.storage").hexdigest()


def claim(storage: Storage, owner: str, *, is_new: bool) -> None:
    """`owner` as of `identity`; `is_new`: it knows no work. Raises RequestError where another one works or worked,
    OSError and StorageError where the storage cannot be used."""
    mine = owner.encode()
    if storage.write_if_absent(NOTE, mine):
        return
    try:
        found = storage.read_note(NOTE, 4096)
    except (FileNotFoundError, Unreadable):
        found = b""
    if found == mine:
        return
    if is_new and found:
        raise RequestError(
            f"{storage.uri} has what the work of another llmsched left: this one, which is new, would take it for "
            "its own work's.",
            code="storage_taken",
            hint="Name another place with --storage, or move that one away. If it is yours, put back its home "
            "(llmsched restore).",
        )
    log.warning("%s says that it is another llmsched's; two at one storage spoil each other's results", storage.uri)
    storage.write(NOTE, mine)
