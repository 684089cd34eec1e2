"""How long the event loop is held by one turn of it: by what a task or callback does until others have theirs."""

from __future__ import annotations

import asyncio
import cProfile
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Turn:
    """`calls` of functions: what it did, whatever else the machine does meanwhile. 0 where they are not counted."""

    what: str = ""
    seconds: float = 0.0
    cpu_s: float = 0.0
    calls: int = 0
    profile: cProfile.Profile | None = None


@dataclass
class Turns:
    """The longest turns since `clear`: by the calls made, where they are counted, else by the CPU time used."""

    number: int = 0
    longest: Turn = None  # type: ignore[assignment]
    longest_s: float = 0.0  # on the clock, of any

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.number, self.longest, self.longest_s = 0, Turn(), 0.0

    def add(self, turn: Turn) -> None:
        self.number += 1
        self.longest_s = max(self.longest_s, turn.seconds)
        if (turn.calls, turn.cpu_s) > (self.longest.calls, self.longest.cpu_s):
            self.longest = turn


@contextmanager
def watched(*, count: bool = False, profile: bool = False, of: str = "") -> Iterator[Turns]:
    """While it lasts, every turn of every loop of this process is looked at, or every one of tasks of that function.
    `count`: count calls, of Python and C."""
    turns, run = Turns(), asyncio.events.Handle._run

    def watch(handle: asyncio.events.Handle) -> None:
        turn = Turn(profile=cProfile.Profile() if profile else None)
        what = handle._callback  # type: ignore[attr-defined]

        def called(frame: FrameType, event: str, arg: Any) -> None:
            turn.calls += event in ("call", "c_call")

        if count:
            sys.setprofile(called)
        elif turn.profile is not None:
            turn.profile.enable()
        began, used = time.perf_counter(), time.thread_time()
        try:
            run(handle)
        finally:
            turn.seconds, turn.cpu_s = time.perf_counter() - began, time.thread_time() - used
            if count:
                sys.setprofile(None)
            elif turn.profile is not None:
                turn.profile.disable()
        owner = getattr(what, "__self__", None)
        whose = owner.get_coro() if isinstance(owner, asyncio.Task) else what
        turn.what = getattr(whose, "__qualname__", None) or repr(whose)
        if of in ("", turn.what):
            turns.add(turn)

    asyncio.events.Handle._run = watch  # type: ignore[method-assign]
    try:
        yield turns
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
