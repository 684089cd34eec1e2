"""Conditions that another process makes true: waited for with a bound, never slept for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

SLACK = 3  # times as long is waited as a machine of one's own needs: others use it, too


def wait_until(there: Callable[[], Any], within_s: float = 30, what: str = "it never came true") -> Any:
    """The first true answer of `there`; an AssertionError that says `what` if there is none in time."""
    deadline = time.monotonic() + SLACK * within_s
    while not (found := there()):
        assert time.monotonic() < deadline, f"not within {SLACK * within_s:g} s: {what}"
        time.sleep(0.05)
    return found


def has_ended(pid: int) -> bool:
    """Whether no such process runs. One that nobody has waited for yet counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
