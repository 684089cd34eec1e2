"""Python's garbage collector, kept from stopping the loop: a full pass looks at every object there is.

Beside some ten thousand workloads that takes longer than any request may wait, and they are not garbage. So when a full
pass took long, what it has looked at is left out of the next ones (`gc.freeze`): each looks at what came since. Who
replaces the state says so (`look_at_all`), because the old one holds itself in circles and would never be let go.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

LONG_S = 0.02
_began = 0.0
_pauses = 0
_pausing = threading.Lock()


def spare_the_loop() -> None:
    """From now on, in this process."""
    if _after_a_pass not in gc.callbacks:
        gc.callbacks.append(_after_a_pass)


@contextmanager
def paused() -> Iterator[None]:
    """No pass within, where very much is made that is kept: it would look at all of it again and again."""
    _pause(1)
    try:
        yield
    finally:
        _pause(-1)


def _pause(more: int) -> None:
    global _pauses
    with _pausing:
        _pauses += more
        gc.disable() if _pauses else gc.enable()


def look_at_all() -> None:
    """The next full pass looks at everything again."""
    gc.unfreeze()


def _after_a_pass(phase: str, info: dict[str, Any]) -> None:
    global _began
    if info["generation"] < 2:
        return
    if phase == "start":
        _began = thread_time()
    elif thread_time() - _began >= LONG_S:
        gc.freeze()
