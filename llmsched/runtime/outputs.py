"""What a program writes below its working folder, which is gone afterwards: kept, and given back to the next attempt.

A script with `output_dir="out"` finds its folder again after a preemption or a failure, so one that looks for its own
last checkpoint there goes on from it. When the work has succeeded and named no other result, what it wrote is the
result. A node that is lost takes along what it wrote since; `checkpoint.save` keeps what must not be lost.

    <gang>/outputs/<attempt>-<epoch>/<n>/...    of the n-th folder: one a node, worker 0's first
    <gang>/outputs.json                         which of them are whole: {"attempt": [attempt, epoch], "key", "parts"}
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from llmsched import sanitize
from llmsched.runtime import artifact, context
from llmsched.runtime.storage import Storage

AT_MOST_BYTES = 50 * 1024**3  # of one folder
_NEVER = frozenset(("__pycache__", ".git", ".venv", "venv", "node_modules", ".cache", ".ipynb_checkpoints"))
_OURS = ".llmsched-"


class Outputs:
    """Of one working folder, laid out and ready: what is there now is no output. `of` has an order's gang, attempt,
    epoch and storage."""

    def __init__(self, of: dict[str, Any], folder: Path) -> None:
        self._gang, self._attempt = of["gang"], [int(of["attempt"]), int(of["epoch"])]
        self._storage, self._folder = Storage.at(of["storage"]), folder
        self._given = dict(self._files())
        self._restore()

    def keep(self, part: int) -> str:
        """Store what is new, as the `part`-th of this attempt; "" or why nothing is kept."""
        new = [name for name, state in self._files() if self._given.get(name) != state]
        size = sum((self._folder / name).stat().st_size for name in new)
        if size > AT_MOST_BYTES:
            return f"{size / 1e9:.0f} GB below its working folder are not kept: more than {AT_MOST_BYTES / 1e9:.0f} GB"
        if new:
            self._storage.put_folder(f"{self._key}/{part}", partial(self._copy, new))
        return ""

    def publish(self, parts: int) -> None:
        """All parts are stored: they are what the next attempt begins with."""
        whole, before = self._parts(self._key, parts), self._pointer()
        if before and before["attempt"] > self._attempt:
            return  # a newer attempt has taken over
        if whole:
            new = {"attempt": self._attempt, "key": self._key, "parts": whole}
            self._storage.write(self._pointer_key, json.dumps(new).encode())
        if whole and before and before["key"] != self._key:
            self._storage.delete(before["key"])

    def become_the_result(self, who: context.Context, parts: int) -> None:
        """Of work that has succeeded, unless it named another. `who` is worker 0."""
        whole = self._parts(self._key, parts)
        before = self._pointer()
        named = artifact.read_result(who.storage, who.gang, who.attempt, who.epoch)["artifact"]
        if whole and named is None:
            with context.enter(who):
                artifact.save(partial(self._merge, self._key, whole))
        for key in {self._key, *([before["key"]] if before else [])}:
            self._storage.delete(key)
        self._storage.delete(self._pointer_key)

    @property
    def _key(self) -> str:
        return f"{self._gang}/outputs/{self._attempt[0]}-{self._attempt[1]}"

    @property
    def _pointer_key(self) -> str:
        return f"{self._gang}/outputs.json"

    def _pointer(self) -> dict[str, Any] | None:
        """What the program may have overwritten, as everything in the storage, counts as nothing."""
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            found = sanitize.loads(self._storage.read_note(self._pointer_key))
            attempt, epoch = found["attempt"]
            key = f"{self._gang}/outputs/{int(attempt)}-{int(epoch)}"
            return {"attempt": [attempt, epoch], "key": key, "parts": [int(one) for one in found["parts"]]}
        return None

    def _parts(self, key: str, count: int) -> list[int]:
        return [part for part in range(count) if self._storage.list(f"{key}/{part}")]

    def _restore(self) -> None:
        if found := self._pointer():
            self._merge(found["key"], found["parts"], self._folder)

    def _merge(self, key: str, parts: list[int], folder: Path) -> None:
        """Where two nodes wrote the same name, that of worker 0's stands."""
        with tempfile.TemporaryDirectory() as cache:
            for part in reversed(parts):
                found = self._storage.fetch_folder(f"{key}/{part}", Path(cache))
                shutil.copytree(found, folder, dirs_exist_ok=True)

    def _copy(self, names: list[str], folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # a program that has not quite ended removes it
                shutil.copy2(self._folder / name, folder / name)

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Plain files by name, with what tells that one has changed. No link is followed."""
        for root, folders, files in os.walk(self._folder):
            folders[:] = [one for one in folders if one not in _NEVER]
            for name in files:
                path = Path(root, name)
                if name.startswith(_OURS) or name.endswith(".pyc") or path.is_symlink():
                    continue
                with suppress(FileNotFoundError):
                    state = path.stat()
                    yield str(path.relative_to(self._folder)), (state.st_mtime_ns, state.st_size)
