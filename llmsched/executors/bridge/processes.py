"""Processes of Ray's workers on their nodes: looked at from outside, and ended where they hear nothing any more.

By remote functions, which take no resources: nothing here needs the process to answer.
"""

from __future__ import annotations

from typing import Any

import ray

from llmsched.runtime import pulse


class Look:
    """On its way: `result` is a `health.Look`."""

    def __init__(self, pid: int, **where: Any) -> None:
        self._answer = _there(pulse.look, where).remote(pid)

    def result(self, *, timeout_s: float) -> Any:
        """Raises TimeoutError while there is none, and what Ray raises."""
        return ray.get(self._answer, timeout=timeout_s)


def on(node: str) -> dict[str, Any]:
    """Ray's options for that node."""
    return {"label_selector": {"ray.io/node-id": node}}


def end(pid: int, name: str, **where: Any) -> None:
    """By kill -9, without waiting: only if its command names it so."""
    _there(pulse.end, where).remote(pid, name)


def _there(function: Any, where: dict[str, Any]) -> Any:
    return ray.remote(function).options(num_cpus=0, max_retries=0, **where)
