"""The secret values of an attempt, kept out of what it writes down: *** stands in their place.

One attempt a process, so its values are kept for the process. This catches what is printed by accident; a program that
encodes a value before it prints it gets past, so whoever may read the logs is to be chosen with that in mind.
"""

from __future__ import annotations

import re
import threading
from typing import IO, Any

HIDDEN = "***"
KEYS = ("LLMSCHED_CALLS_KEY",)  # that every attempt may have
_SHORTEST_LINE = 8  # characters of a line of a longer value: what is shorter stands in every second text
_HELD_AT_MOST = 1 << 16  # bytes without a line end

_values: tuple[str, ...] = ()


def hide(order: dict[str, Any]) -> None:
    """From now on `clean` hides the secrets of this LaunchOrder (as JSON data): whole, and line by line."""
    global _values
    names = [*(order["spec"].get("secrets") or ()), *KEYS]
    whole = [order["envs"][name] for name in names if order["envs"].get(name)]
    lines = [line.strip() for value in whole for line in value.splitlines()]
    wanted = {*whole, *(line for line in lines if len(line) >= _SHORTEST_LINE)}
    _values = tuple(sorted(wanted, key=lambda value: (-len(value), value)))


def hides() -> bool:
    return bool(_values)


def clean(text: str) -> str:
    for value in _values:
        text = text.replace(value, HIDDEN)
    return text


class Flow:
    """The same of what must be shown as it comes, as at a terminal: kept back is only what may begin a value."""

    def __init__(self) -> None:
        self._values = sorted((value.encode() for value in _values), key=len, reverse=True)
        self._whole = re.compile(b"|".join(map(re.escape, self._values)) or rb"(?!)")
        self._held = b""

    def cleaned(self, data: bytes) -> bytes:
        data, shown, at = self._held + data, b"", 0
        begins_at_the_latest = len(data) - max(map(len, self._values), default=1) + 1
        while True:
            found = self._whole.search(data, at)
            until = found.start() if found else len(data)
            for held_from in range(max(at, begins_at_the_latest), until + bool(found)):
                if self._may_begin(data[held_from:]):  # a longer one than what is found there, maybe
                    self._held = data[held_from:]
                    return shown + data[at:held_from]
            shown += data[at:until]
            if found is None:
                self._held = b""
                return shown
            shown, at = shown + HIDDEN.encode(), found.end()

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return _cleaned(held, self._values)

    def _may_begin(self, end: bytes) -> bool:
        return any(len(value) > len(end) and value.startswith(end) for value in self._values)


def pump(source: IO[bytes], sink: IO[bytes]) -> threading.Thread:
    """Pass on what comes from `source`, cleaned, in a thread that ends with it. Both are unbuffered, and closed then.

    Whole lines at once; the part after the last line end waits for its own, so that no value is cut in two.
    """
    worker = threading.Thread(target=_pump, args=(source, sink), daemon=True, name="redaction")
    worker.start()
    return worker


def _pump(source: IO[bytes], sink: IO[bytes]) -> None:
    values = [value.encode() for value in _values]
    longest = max(map(len, values), default=1)
    held = b""
    with source, sink:
        while data := source.read(_HELD_AT_MOST):
            held = _cleaned(held + data, values)
            end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
            if len(held) - end > _HELD_AT_MOST:
                end = len(held) - longest
            if end:
                sink.write(held[:end])
                held = held[end:]
        sink.write(held)


def _cleaned(data: bytes, values: list[bytes]) -> bytes:
    for value in values:
        data = data.replace(value, HIDDEN.encode())
    return data
