"""What a worker says when its work calls `os._exit`, which leaves nobody to say it afterwards."""

from __future__ import annotations

import contextlib
import os
from typing import Any, NoReturn

import ray

_TOLD_WITHIN_S = 10.0  # a supervisor that is gone says so at once; one on a busy machine may take seconds


def tell(supervisor: Any, rank: int) -> None:
    """From now on in this process: it says so first. Children that are forked leave as ever."""
    leave, mine = os._exit, os.getpid()

    def told(status: int) -> NoReturn:
        if os.getpid() == mine:
            with contextlib.suppress(Exception):
                ray.get(supervisor.exits.remote(rank, status), timeout=_TOLD_WITHIN_S)
        leave(status)

    os._exit = told
