"""A replica that does not answer when it is asked for its health: whether it is hung, or only has much to do.

Asked are its own event loop, which costs it next to nothing, and then, from outside, its process on its node. One that
is stopped will not answer, nor will one that waits for something without computing; one that computes may hold its loop
for a while, as code of users does that is no coroutine. Pure: the clock is the caller's. Start at `Silence.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmsched.runtime.health import ASLEEP, Look

LOOK_AFTER_S = 4.0  # of silence, its process is looked at
LOOK_EVERY_S = 2.0
STOPPED_S = 10.0  # a process that a signal has stopped
IDLE_S = 15.0  # one that does nothing; it may hold up its loop for something outside, for a while
SILENT_S = 30.0  # one that computes, or whose node does not say


class Pending(Protocol):
    """An answer that may come."""

    def result(self, *, timeout_s: float) -> Any:
        """Raises TimeoutError while there is none."""


# Asks for a `Look` at the process, from its node; None where that cannot be asked just now.
AskNode = Callable[[], Pending | None]


@dataclass
class Silence:
    """From the question without an answer, asked at `since`."""

    since: float
    _asked: Pending | None = field(default=None, repr=False)
    _look_at: float = 0.0
    _looks: list[tuple[float, Look]] = field(default_factory=list)  # the first, and the last

    def verdict(self, ask: AskNode, now: float) -> str:
        """Why it is hung; "" as long as it may yet answer."""
        lasts = now - self.since
        if lasts >= LOOK_AFTER_S:
            self._look(ask, now)
        if self._looks and self._looks[-1][1].is_stopped and lasts >= STOPPED_S:
            return f"it is hung: it has not answered for {lasts:.0f} s, and its process is stopped by a signal"
        if self._is_idle() and lasts >= IDLE_S:
            return f"it is hung: it has not answered for {lasts:.0f} s, and its process does nothing"
        return f"it did not answer for {lasts:.0f} s when asked for its health" if lasts > SILENT_S else ""

    def _look(self, ask: AskNode, now: float) -> None:
        if self._asked is None:
            if now >= self._look_at:
                self._asked = ask()
                self._look_at = now + LOOK_EVERY_S
            return
        try:
            found = self._asked.result(timeout_s=0.01)
        except TimeoutError:
            return
        except Exception:  # it has gone, or its node: who looks at those sees it
            found = None
        self._asked = None
        if isinstance(found, Look):
            self._looks = [*self._looks[:1], (now, found)]

    def _is_idle(self) -> bool:
        if len(self._looks) < 2:
            return False
        (then, first), (now, last) = self._looks
        return last.cpu_s - first.cpu_s <= ASLEEP * max(now - then, 1.0)
