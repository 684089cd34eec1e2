"""Conditions that another process makes true: waited for with a bound, never slept for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

# What comes within seconds on a quiet machine is waited for so long: no test fails because a machine is slow.
PATIENCE_S = 100.0
SLACK = 3  # what takes longer there is waited for three times as long: others use the machine, too


def wait_until(there: Callable[[], Any], within_s: float = 0.0, what: str = "it never came true") -> Any:
    """The first true answer of `there`; an AssertionError that says `what` if there is none in time."""
    within_s = max(PATIENCE_S, SLACK * within_s)
    deadline = time.monotonic() + within_s
    while not (found := there()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return found


def has_ended(pid: int) -> bool:
    """Whether no such process runs. One that nobody has waited for yet counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
