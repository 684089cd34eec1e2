"""Who am I: the place of this process in a gang. Set once by whoever starts the worker, read by everything else here.

Must not import ray or torch: a worker may need neither.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llmsched.runtime import command_link
from llmsched.runtime.link import Link


@dataclass(frozen=True)
class Context:
    """One worker of one attempt. `rank` counts 0..world_size-1; `storage` is the root of the cluster's storage."""

    name: str  # what the user called the workload
    workload: str  # its id: "name", or "name@2" for the second run
    gang: str  # "<workload>/<index>"
    attempt: int
    epoch: int
    rank: int
    world_size: int
    local_dir: Path  # scratch of this worker, gone afterwards
    spec: dict[str, Any]  # the whole workload spec as JSON data
    storage: str
    inputs: dict[str, str] = field(default_factory=dict)  # run:// sources -> where their result lies
    supervisor: Link | None = None  # to the attempt's supervisor; None when nobody watches
    is_command: bool = False  # a program that a task started, not a loop in a process of ours

    @property
    def folder(self) -> str:
        """Key of this attempt in the storage."""
        return f"{self.gang}/{self.attempt}"

    @classmethod
    def alone(cls, folder: str | Path, spec: dict[str, Any] | None = None, **changes: Any) -> Context:
        """A context to run a loop by hand: one worker, storage in `folder`, nobody watching."""
        values: dict[str, Any] = {
            "name": "by-hand",
            "workload": "by-hand",
            "gang": "by-hand/0",
            "attempt": 1,
            "epoch": 1,
            "rank": 0,
            "world_size": 1,
            "local_dir": Path(tempfile.gettempdir()),
            "spec": spec or {},
            "storage": str(Path(folder).absolute()),
        }
        return cls(**{**values, **changes})


class NoContext(RuntimeError):
    """The code asked where it runs, but llmsched did not start it."""


_current: Context | None = None
_on_leave: list[Callable[[], None]] = []


def enter(context: Context) -> ExitStack:
    """Make `context` the current one, at once. `with enter(context): ...` puts the old one back afterwards.

    A plain global, not a context variable: Ray Train runs the loop in a thread of its own, and a worker process
    serves one rank.
    """
    global _current
    stack, before = ExitStack(), _current

    def leave() -> None:
        global _current
        for act in _on_leave:
            act()
        _current = before

    stack.callback(leave)
    _current = context
    return stack


def on_leave(act: Callable[[], None]) -> None:
    """Call `act` whenever a context is left (progress flushes here)."""
    _on_leave.append(act)


def inside() -> Context | None:
    """The current context, or None outside llmsched. A program that a task started has one, too: its worker's word."""
    return _current if _current is not None else _of_command()


@cache
def _of_command() -> Context | None:
    if command_link.NAME not in os.environ:
        return None
    fields = command_link.fields_of_command()
    if fields is None:
        return None
    atexit.register(lambda: [act() for act in _on_leave])  # what a loop does when it leaves its context
    return Context(**fields, is_command=True)


def current() -> Context:
    """The current context. Raises NoContext when llmsched did not start this code."""
    where = inside()
    if where is None:
        raise NoContext(
            "not inside a llmsched workload: this needs a context. To run a loop by hand, wrap it in "
            "`with llmsched.runtime.enter(llmsched.runtime.Context.alone('some-folder')):`"
        )
    return where
