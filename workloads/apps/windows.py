"""Counts of events by key and window of time, and which of them are surges. Bounded, whatever comes.

A window is a surge when it has too many events by itself, or together with the one before it, if that was none; each of
the two tests has half of the level (Bonferroni's rule). With several keys, all of them together are counted as `*`.

A window that is a surge is no measure for those after it: they are compared with the last `against` windows that were
none. Where twice as many windows hold too few of these, it is the usual now, and all of the last ones count.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from workloads.apps import surge

KEYS_AT_MOST = 1000
ALL = "*"
EARLIEST = -62_135_596_800.0  # Unix time of the year 1: what lies before has no date
LEAST = 5  # events in a window that can be a surge


class Surge(NamedTuple):
    window: int  # begins at window * window_s, Unix time
    seen: int  # events in it
    usual: float  # the mean of the windows that it is compared with
    chance: float  # of as many, if nothing has changed


class Windows:
    """`window_s`: seconds of a window. `level`: how seldom chance alone makes one a surge. `keep`: windows."""

    def __init__(self, window_s: float, against: int, level: float, keep: int) -> None:
        if window_s <= 0 or against < 2 or not 0 < level < 1 or keep < 3 * against:
            raise ValueError(
                "windows: window_s above 0, against 2 or more, level between 0 and 1, keep at least 3 x against"
            )
        self._window_s, self._against, self._level, self._keep = window_s, against, level, keep
        self._counts: dict[str, defaultdict[int, int]] = {}
        self._surges: dict[str, dict[int, Surge]] = {}
        self._judge_from: dict[str, int] = {}
        self._forgotten: dict[str, int] = {}  # what lies before is
        self.first: int | None = None
        self.latest = 0

    @property
    def keys(self) -> list[str]:
        """Those that were counted; `*` where that is another than the only one."""
        return sorted(self._counts) if len(self._counts) > 2 else sorted(self._counts.keys() - {ALL})

    @property
    def oldest(self) -> int:
        """The first window that is kept."""
        return max(self.latest - self._keep + 1, self.first or 0)

    def add(self, key: str, at: float) -> str:
        """One event at Unix time `at`. "" when it counts, else why not."""
        window = int(at // self._window_s)
        if self.begins(window) < EARLIEST:
            return "is of a window that begins before the year 1 and has no date"
        if self.first is not None and window < self.latest - self._keep + 1:
            return f"is of a time before the {self._keep:,} windows that are kept"
        if key not in self._counts and len(self._counts) > KEYS_AT_MOST:
            return f"has another key than the {KEYS_AT_MOST:,} that are kept"
        for each in {key, ALL} - self._counts.keys():
            self._counts[each], self._surges[each], self._judge_from[each] = defaultdict(int), {}, window
        self.latest = window if self.first is None else max(self.latest, window)  # of times before 1970, too
        self.first = window if self.first is None else min(self.first, window)
        for each in (key, ALL):
            self._counts[each][window] += 1
            self._judge_from[each] = min(self._judge_from[each], window)
        return ""

    def begins(self, window: int) -> float:
        return window * self._window_s

    def count(self, key: str, window: int) -> int:
        return self._counts[key].get(window, 0) if key in self._counts else 0

    def surges(self, key: str) -> dict[int, Surge]:
        """By window; also of the latest one, which is not over: it can only grow. What came late counts as if it had
        come in time."""
        if key not in self._counts:
            return {}
        counts, found, oldest = self._counts[key], self._surges[key], self.oldest
        if self._forgotten.get(key) != oldest:
            self._forgotten[key] = oldest
            for old in [window for window in counts if window < oldest]:
                del counts[old]
                found.pop(old, None)
        for window in range(max(self._judge_from[key], oldest), self.latest + 1):
            found.pop(window, None)
            if (one := self._judged(key, window)) is not None and one.chance < self._level:
                found[window] = one
        self._judge_from[key] = self.latest  # more may come into it
        return found

    def _judged(self, key: str, window: int) -> Surge | None:
        """None where it has too few events, or there is too little to compare it with."""
        counts, chances = self._counts[key], []
        seen = counts.get(window, 0)
        usual = self._usual(key, window)
        if seen < LEAST or len(usual) < self._against:
            return None
        chances.append(surge.chance(seen, usual))
        is_alone = window - 1 in self._surges[key]
        if not is_alone and len(earlier := self._usual(key, window - 1)) == self._against:
            chances.append(surge.chance(seen + counts.get(window - 1, 0), earlier, 2))
        return Surge(window, seen, sum(usual) / len(usual), min(1.0, min(chances) * 2))

    def _usual(self, key: str, window: int) -> list[int]:
        """Counts of the windows that `window` is compared with; fewer than `against` where there are no more."""
        counts, found, many = self._counts[key], self._surges[key], self._against
        assert self.first is not None
        begin = max(self.first, self.latest - self._keep + 1, window - 2 * many)
        calm = [counts.get(one, 0) for one in range(begin, window) if one not in found]
        if len(calm) >= many:
            return calm[-many:]
        return [counts.get(one, 0) for one in range(max(begin, window - many), window)]
