"""What the start of a replica costs, step by step: measured where each step is done, told by its `story`.

    queue         from when it began to wait until it was told to start         the scheduler
    process       until the first line of the replica runs: Ray, Serve          the bridge: the rest of the whole
    fork          the same of one that is a fork (fork_server.py)               the bridge
    packages      its `environment`, installed or found                         the replica
    imports       torch, transformers and what is built on them                 the replica
    load          the model, from its files into memory; an app: all it does    the replica
    first_token   of a prompt of one token: whether it can, and how fast        the replica

The names are those of the table, with "_s" where a record has them. Standard library alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

STEPS = ("queue", "process", "fork", "packages", "imports", "load", "first_token")
MOST_S = 1e6

is_forked = False  # this very process, of one that had imported what it needs


class Laps:
    """Of a replica's own steps: each lasts from the last one to its name."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self.took: dict[str, float] = {}

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.took[step] = self.took.get(step, 0.0) + now - self._since
        self._since = now


def read(said: Any) -> dict[str, float]:
    """What a replica says, made valid: known steps, finite seconds."""
    if not isinstance(said, Mapping):
        return {}
    return {
        step: round(min(float(seconds), MOST_S), 3)
        for step in STEPS
        if isinstance(seconds := said.get(step), int | float) and math.isfinite(seconds) and seconds >= 0
    }


def with_process(took: Mapping[str, float], whole_s: float | None, *, is_fork: bool = False) -> dict[str, float]:
    """The same with what is left of the whole start, which the replica cannot see; None: nobody saw all of it."""
    if whole_s is None:
        return dict(took)
    return {**took, "fork" if is_fork else "process": round(max(whole_s - sum(took.values()), 0.0), 3)}
