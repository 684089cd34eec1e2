"""This terminal, or these pipes, at the other end of a program that runs elsewhere."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from llmsched.channels import PIECE, Broken, Channel
from llmsched.client.by_hand import Beside

_LOOK_EVERY_S = 0.2


def at_a_terminal(beside: Beside) -> None:
    """Until the program's end: keys go there as they are typed, what it writes is shown as it is."""
    channel = beside.channels.open(0)
    with _raw(sys.stdin.fileno()), _noted_size() as changed:
        _in_thread(_give, channel, beside, changed)
        _show(channel, sys.stdout.fileno())


def with_pipes(beside: Beside) -> None:
    """Until the program's end: what comes in is its input; both of its streams stay apart."""
    channel = beside.channels.open(0)
    channel.resize(0, 0)  # its first frame: the program starts, whether or not there is input
    _in_thread(_give, channel, beside, threading.Event())
    errors = _in_thread(_show_errors, beside)
    _show(channel, sys.stdout.fileno())
    errors.join()


def _in_thread(what: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=what, args=arguments, daemon=True)
    thread.start()
    return thread


def _give(channel: Channel, beside: Beside, changed: threading.Event) -> None:
    """What comes in here, to its end, and the size of the terminal when that has `changed`."""
    source = sys.stdin.fileno()
    with suppress(Broken, OSError):
        while not beside.has_ended:
            if changed.is_set():
                changed.clear()
                size = os.get_terminal_size(sys.stdout.fileno())
                channel.resize(size.lines, size.columns)
            if select.select([source], [], [], _LOOK_EVERY_S)[0]:
                if not (data := os.read(source, PIECE)):
                    break
                channel.write(data)
        channel.end()


def _show(channel: Channel, sink: int) -> None:
    with suppress(Broken):
        while data := channel.read():
            while data:
                data = data[os.write(sink, data) :]


def _show_errors(beside: Beside) -> None:
    if (errors := beside.begun_there()) is not None:
        _show(errors, sys.stderr.fileno())


@contextmanager
def _raw(source: int) -> Iterator[None]:
    """Ctrl-C is a key like any other."""
    before = termios.tcgetattr(source)
    tty.setraw(source)
    try:
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


@contextmanager
def _noted_size() -> Iterator[threading.Event]:
    """An event that is set now, and whenever the terminal gets another size."""
    changed = threading.Event()
    changed.set()
    before = signal.signal(signal.SIGWINCH, lambda *_: changed.set())
    try:
        yield changed
    finally:
        signal.signal(signal.SIGWINCH, before)
