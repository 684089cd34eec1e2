"""The load of the last minute, for autoscaling: a mean, so that chance does not start and stop replicas.

Requests come by chance, so how many are in flight at one moment says little: with 800 on average it is 28 more or less
most of the time. Over STABLE_S that evens out. A load that really jumps must not wait for that: where the mean of the
last PANIC_S is PANIC_TIMES as high, it counts; so it does where nothing was asked in it. Both windows are those of
Knative's autoscaler.
"""

from __future__ import annotations

from collections import deque

STABLE_S, PANIC_S, PANIC_TIMES = 60.0, 6.0, 1.5
EVERY_S = 1.0  # between two kept points at least
STEADY, NEARLY = 0.25, 1.0  # how far two means of a steady load may differ: as a part of them, and in requests


def is_steady(mean: float, found: float) -> bool:
    """Whether a load was about the same all the time: its mean over time is what those found that came (Wolff 1982)."""
    return abs(mean - found) <= max(NEARLY, STEADY * max(mean, found))


class Lookback:
    """Of one number that changes at moments: `set` tells each change, `load` asks. Times ascend, in seconds."""

    __slots__ = ("_value", "_at", "_area", "_points")

    def __init__(self, at: float) -> None:
        self._value, self._at, self._area = 0.0, at, 0.0
        self._points: deque[tuple[float, float]] = deque([(at, 0.0)])  # (time, area up to then)

    def set(self, value: float, at: float) -> None:
        self._pass(at)
        self._value = value

    def load(self, at: float) -> float:
        self._pass(at)
        if at - self._points[-1][0] >= EVERY_S:
            self._points.append((at, self._area))
        while len(self._points) > 1 and self._points[1][0] <= at - STABLE_S:
            self._points.popleft()
        stable, recent = self._mean(at, STABLE_S), self._mean(at, PANIC_S)
        return round(recent if not recent or recent >= PANIC_TIMES * stable else stable, 1)

    def _pass(self, at: float) -> None:
        if at > self._at:
            self._area += self._value * (at - self._at)
            self._at = at

    def _mean(self, at: float, window_s: float) -> float:
        """Over about that time: from the last point before it. Of no time at all it is what it is now."""
        begin, area = self._points[0]
        for point in reversed(self._points):
            if point[0] <= at - window_s:
                begin, area = point
                break
        return (self._area - area) / (at - begin) if at > begin else self._value
