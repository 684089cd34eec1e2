"""Folders that others' code filled, removed whatever they left in them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def remove(folder: Path) -> None:
    """Also what is read-only, as Go's cache of modules is and as unpacked archives may be. Raises OSError."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        _open(folder)
        shutil.rmtree(folder)


def _open(folder: Path) -> None:
    """Let its owner write in it and in all folders below; what links lead to stays as it is."""
    with suppress(OSError):
        folder.chmod(0o700)
    for within, names, _ in os.walk(folder):  # each is opened before it is looked into
        for below in (Path(within, name) for name in names):
            with suppress(OSError):  # of another user
                if not below.is_symlink():
                    below.chmod(0o700)
