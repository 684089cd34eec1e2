"""Locks of whole files, held for as long as a process lives: `flock`, which no crash leaves behind."""

from __future__ import annotations

import fcntl
from pathlib import Path


def is_held(file: Path) -> bool:
    """Whether a process holds it alone. A file that is not there is held by nobody; one that cannot be read counts as
    held."""
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
