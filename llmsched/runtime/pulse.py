"""A rank's sign of life: where its loop is and how much it computes, every few seconds, from a thread of its own.

A process that is stopped, or whose interpreter is held, gives none: that is what tells. Never holds up the loop, never
fails it. `health.py` judges.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import FrameType
from typing import Any

import psutil

from llmsched.runtime.health import ASLEEP, Look, Pulse

EVERY_S = 3.0
_WAITING_IN = "/torch/distributed/"
_FRAMES_AT_MOST = 200
_WRAPPERS = ("wrapper", "inner", "decorate_context", "_wrapped_call_impl", "_call_impl", "__call__")  # tell nothing


@contextmanager
def beating(send: Callable[[Pulse], Any]) -> Iterator[None]:
    """Within, `send` is called with a pulse of the calling thread every EVERY_S seconds."""
    over, thread = threading.Event(), threading.get_ident()

    def beat() -> None:
        meter = _Meter()
        while not over.wait(EVERY_S):
            with suppress(Exception):
                at, waits = where(sys._current_frames().get(thread))
                send(Pulse(at, waits, meter.read()))

    threading.Thread(target=beat, daemon=True, name="pulse").start()
    try:
        yield
    finally:
        over.set()


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The line that a thread is in, as people look for it, and whether it waits there for other ranks.

    Of a call into a library it is the library's function and the line that called it: `all_reduce, called in
    loop.py:15`."""
    inner, waits, called = frame, False, ""
    for _ in range(_FRAMES_AT_MOST):
        if frame is None:
            break
        file = frame.f_code.co_filename
        if _WAITING_IN in file.replace("\\", "/"):
            waits = True
        if "site-packages" in file or "/lib/python" in file:
            called = called if frame.f_code.co_name in _WRAPPERS else frame.f_code.co_name
            frame = frame.f_back
            continue
        line = f"{PurePath(file).name}:{frame.f_lineno}"
        return (f"{called}, called in {line}" if called else line), waits
    if inner is None:
        return "", False
    return f"{PurePath(inner.f_code.co_filename).name}:{inner.f_lineno}", waits


class _Meter:
    """CPU seconds of this process, and of its children when it seems to do nothing itself: they may work for it."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._own = self._seconds(self._me)
        self._children: dict[int, float] = {}

    def read(self) -> float:
        own = self._seconds(self._me)
        if own - self._own <= ASLEEP * EVERY_S:
            with suppress(psutil.Error):
                for child in self._me.children(recursive=True):
                    with suppress(psutil.Error):
                        self._children[child.pid] = self._seconds(child)
        self._own = own
        return own + sum(self._children.values())

    @staticmethod
    def _seconds(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)


class CommandMeter:
    """Of a command's processes, from beside them. `port` is where the ranks of the gang meet; 0: nowhere."""

    def __init__(self, port: int) -> None:
        self._port, self._has_met = port, False

    def read(self, pids: Sequence[int]) -> Pulse:
        """These are its first ones. Who met the others once, has."""
        tree: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.Error):
                first = psutil.Process(pid)
                tree += [first, *first.children(recursive=True)]
        seconds = 0.0
        for one in tree:
            with suppress(psutil.Error):
                seconds += _Meter._seconds(one)
                if self._port and not self._has_met:
                    self._has_met = any(map(self._is_there, one.net_connections("tcp")))
        stopped = any(look(pid).is_stopped for pid in pids if psutil.pid_exists(pid))
        return Pulse(cpu_s=seconds, is_stopped=stopped, has_met=self._has_met if self._port else None)

    def _is_there(self, connection: Any) -> bool:
        ends = (connection.laddr, connection.raddr)
        return any(end and end.port == self._port for end in ends)


def look(pid: int) -> Look:
    """Of a process on this node, from outside: whether a signal has stopped it, and its CPU seconds. Raises
    psutil.NoSuchProcess."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    return Look(process.status() == psutil.STATUS_STOPPED, float(times.user + times.system))


def end(pid: int, name: str) -> None:
    """A process on this node that no longer does what it is asked: only if its command names it, as Ray's do."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if name in " ".join(process.cmdline()):
            process.kill()
