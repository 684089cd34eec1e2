"""Whether the thread that decodes still moves: asked with a replica's health, so that one that is stuck is replaced.

It counts its rounds. One that lasts long while the thread uses no CPU will not end; one that computes has longer, as
a first round may compile. Pure: clocks are the caller's.
"""

from __future__ import annotations

import time

ASLEEP = 0.05  # of one CPU
ASLEEP_S, COMPUTING_S = 30.0, 600.0  # that one round may last


class Rounds:
    """Of one thread. `begin` and `rest` are called by it, `check` by whoever asks."""

    def __init__(self) -> None:
        self._count = 0
        self._rests = True
        self._seen: tuple[int, float, float] = -1, 0.0, 0.0  # the round, when it was first seen, CPU time then

    def begin(self) -> None:
        self._count += 1
        self._rests = False

    def rest(self) -> None:
        self._rests = True

    def check(self, now: float, cpu_s: float) -> None:
        """Raises RuntimeError. `cpu_s`: of the thread so far."""
        count, since, cpu_then = self._seen
        if self._rests or count != self._count:
            self._seen = self._count, now, cpu_s
            return
        lasts = now - since
        is_asleep = cpu_s - cpu_then <= ASLEEP * lasts
        if lasts > (ASLEEP_S if is_asleep else COMPUTING_S):
            does = "does nothing" if is_asleep else "computes"
            raise RuntimeError(f"the decode thread has been in one step for {lasts:.0f} s and {does}")


def cpu_seconds(thread: int) -> float:
    """That a thread of this process, by its ident, has used. 0 where the system does not say."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):
        return 0.0
