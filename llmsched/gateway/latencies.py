"""How slow replicas answer at which load: what autoscaling by latency learns from.

For each endpoint, model and flavor a window of time: how many requests were in flight at each replica in the mean (of
the time), and how long those took that ended well, from the replica's turn on (who is held waits before that). What
those found that came is the same in the mean where the load is steady; where it is not, the window says nothing. A
window is told once it has lasted WINDOW_S and enough have ended; one in which replicas came or went says nothing of
either number, and begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from llmsched.policies.autoscaling.lookback import is_steady

WINDOW_S, LONGEST_S = 30.0, 600.0
ENOUGH = 20  # requests: the 95th percentile of fewer is the slowest of them
KEPT = 4000  # times of one window; the others are counted alone


class Kind(NamedTuple):
    """What makes replicas alike."""

    model: str
    flavor: str


class Took:
    """Seconds of one request. `piece` with each that comes, `end` with the last. `beside`: how many others its replica
    had in hand when it came."""

    __slots__ = ("_clock", "_began", "_first", "_last", "_ended", "_pieces", "beside", "is_well")

    def __init__(self, clock: Callable[[], float], beside: int) -> None:
        self._clock, self._began, self.beside = clock, clock(), beside
        self._first: float | None = None
        self._last = self._ended = self._began
        self._pieces = 0
        self.is_well = False

    def piece(self) -> None:
        self._last = self._clock()
        self._first = self._last if self._first is None else self._first
        self._pieces += 1

    def end(self, is_well: bool) -> None:
        self._ended, self.is_well = self._clock(), is_well

    def seconds(self) -> tuple[float, float | None, float | None]:
        """(whole, until the first piece, between two pieces); the latter of streams alone."""
        if self._first is None:
            return self._ended - self._began, None, None
        between = (self._last - self._first) / (self._pieces - 1) if self._pieces > 1 else None
        return self._ended - self._began, self._first - self._began, between


class Latencies:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, Mapping[str, Kind]] = {}  # workload -> replica -> kind
        self._ongoing: dict[tuple[str, str], int] = {}  # (workload, replica), where it is not 0
        self._windows: dict[tuple[str, Kind], _Window] = {}

    def routed(self, kinds: Mapping[str, Mapping[str, Kind]]) -> None:
        """Take the replicas of every workload, with what each is."""
        windows: dict[tuple[str, Kind], _Window] = {}
        for workload, replicas in kinds.items():
            for kind in dict.fromkeys(replicas.values()):
                names = frozenset(name for name, its in replicas.items() if its == kind)
                known = self._windows.get((workload, kind))
                if known is None or known.replicas != names:
                    ongoing = sum(self._ongoing.get((workload, name), 0) for name in names)
                    known = _Window(names, ongoing, self._clock())
                windows[workload, kind] = known
        self._kinds, self._windows = dict(kinds), windows

    def begin(self, workload: str, replica: str) -> Took:
        beside = self._ongoing.get((workload, replica), 0)
        self._is_now(workload, replica, 1)
        return Took(self._clock, beside)

    def end(self, workload: str, replica: str, took: Took) -> None:
        window = self._is_now(workload, replica, -1)
        if window is not None and took.is_well:
            window.add(took)

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """By workload the windows that are over, as `core.latency.Latency` has them; each once."""
        now = self._clock()
        found: dict[str, list[dict[str, Any]]] = {}
        for (workload, kind), window in self._windows.items():
            lasts = now - window.began
            if lasts < WINDOW_S or (window.requests < ENOUGH and lasts < LONGEST_S):
                continue
            if window.requests >= ENOUGH and is_steady(*window.loads(now)):
                found.setdefault(workload, []).append({**kind._asdict(), **window.measured(now)})
            self._windows[workload, kind] = _Window(window.replicas, window.ongoing, now)
        return found

    def _is_now(self, workload: str, replica: str, change: int) -> _Window | None:
        count = self._ongoing.pop((workload, replica), 0) + change
        if count:
            self._ongoing[workload, replica] = count
        kind = self._kinds.get(workload, {}).get(replica)
        window = self._windows.get((workload, kind)) if kind is not None else None
        if window is not None:
            window.change(change, self._clock())
        return window


class _Window:
    __slots__ = ("replicas", "ongoing", "began", "requests", "_area", "_at", "_beside", "_whole", "_first", "_between")

    def __init__(self, replicas: frozenset[str], ongoing: int, now: float) -> None:
        self.replicas, self.ongoing, self.began, self.requests = replicas, ongoing, now, 0
        self._area, self._at, self._beside = 0.0, now, 0
        self._whole: list[float] = []
        self._first: list[float] = []
        self._between: list[float] = []

    def change(self, by: int, now: float) -> None:
        self._area += self.ongoing * (now - self._at)
        self._at = now
        self.ongoing += by

    def add(self, took: Took) -> None:
        self.requests += 1
        self._beside += took.beside
        if len(self._whole) < KEPT:
            for times, seconds in zip((self._whole, self._first, self._between), took.seconds(), strict=True):
                if seconds is not None:
                    times.append(seconds)

    def loads(self, now: float) -> tuple[float, float]:
        """Requests in flight at a replica: in the mean of the time, and as those found it that came."""
        self.change(0, now)
        return self._area / (now - self.began) / len(self.replicas), self._beside / max(self.requests, 1)

    def measured(self, now: float) -> dict[str, float | int | None]:
        return {
            "load": round(self.loads(now)[0], 4),
            "requests": self.requests,
            "mean_s": round(sum(self._whole) / len(self._whole), 6),
            "ttft_p95_s": _p95(self._first),
            "tpot_p95_s": _p95(self._between),
            "latency_p95_s": _p95(self._whole),
        }


def _p95(times: Sequence[float]) -> float | None:
    """Nearest rank; None of too few."""
    return round(sorted(times)[ceil(0.95 * len(times)) - 1], 6) if len(times) >= ENOUGH else None
