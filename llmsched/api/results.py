"""Results, logs and uploads as the controller reaches them: every file of them as the user that Ray runs as.

Work writes there what it likes, links too. A controller that looked as root would follow a link to its own token and
read it out in a log. Only the verbs of the storage happen in that user's place, nothing around them: a Python that
imports something meanwhile has to find it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from llmsched.errors import Bug
from llmsched.executors.ray_user import RayUser, acting_as
from llmsched.runtime.storage import LocalStorage, Storage

BY_PATH = "files of the Ray user are read by the verbs of its storage, and never by their path"


def open_storage(place: str, user: RayUser | None) -> Storage:
    """The storage at `place`. Its verbs raise PermissionError for what `user` may not do; None: nobody else's."""
    found = Storage.at(place)
    return Theirs(found, user) if user is not None and isinstance(found, LocalStorage) else found


class Theirs(Storage):
    """A storage of `user`. What is abstract in Storage must be here, so that no verb is left out by being forgotten."""

    def __init__(self, storage: LocalStorage, user: RayUser) -> None:
        super().__init__(storage.uri)
        self._storage, self._user = storage, user

    def read(self, key: str) -> bytes:
        with acting_as(self._user):
            return self._storage.read(key)

    def read_from(self, key: str, offset: int, limit: int) -> bytes:
        with acting_as(self._user):
            return self._storage.read_from(key, offset, limit)

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        with acting_as(self._user):
            return self._storage.read_versioned(key)

    def size(self, key: str) -> int | None:
        with acting_as(self._user):
            return self._storage.size(key)

    def list(self, prefix: str = "") -> list[str]:
        with acting_as(self._user):
            return self._storage.list(prefix)

    def fetch_folder(self, key: str, cache: Path, starting: str = "") -> Path:
        raise Bug(BY_PATH)

    def fetch_file(self, key: str, cache: Path) -> Path:
        raise Bug(BY_PATH)

    def write(self, key: str, data: bytes) -> None:
        with acting_as(self._user):
            self._storage.write(key, data)

    def write_file(self, key: str, source: BinaryIO) -> None:
        with acting_as(self._user):
            self._storage.write_file(key, source)

    def append(self, key: str, data: bytes) -> None:
        with acting_as(self._user):
            self._storage.append(key, data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with acting_as(self._user):
            return self._storage.write_if_absent(key, data)

    def compare_and_swap(self, key: str, version: str | None, data: bytes) -> bool:
        with acting_as(self._user):
            return self._storage.compare_and_swap(key, version, data)

    def put_folder(self, key: str, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        with acting_as(self._user):
            return self._storage.put_folder(key, write)

    def delete(self, key: str) -> None:
        with acting_as(self._user):
            self._storage.delete(key)
