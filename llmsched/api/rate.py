"""How much one token may ask: so many requests a second, so many at the same time. Refused before any route runs.

A bucket for each token: it holds `requests_burst` and gains `requests_per_s` (`limits` of the cluster file). Who has no
token that is known shares one with everybody at the same address. Time is an input. Start reading at `Rate.take`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmsched.errors import RequestError

KNOWN_AT_MOST = 4096  # buckets; the one unused for longest goes, and is full when it comes back
OPEN_AT_MOST = 256  # of one token at the same time: streams of events and logs, too
OPEN_IN_ALL = 900  # of all tokens
TRY_AGAIN_S = 1.0
BODY_OF_ONE = 16 << 10  # bytes: what is written down of a longer body counts as so many requests

Limits = tuple[float, int]  # (requests a second, burst)


class Rate:
    """Of all tokens. `limits` is asked at each request, so that a new cluster file counts at once."""

    def __init__(self, limits: Callable[[], Limits], clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # who -> (how full, when)
        self._open: dict[str, int] = {}
        self._open_in_all = 0

    def take(self, who: str, body_bytes: int = 0) -> None:
        """Count a request of `who`. Raises RequestError (429, with the time until the next one) for one too many."""
        per_s, burst = self._limits()
        weight = min(max(1.0, body_bytes / BODY_OF_ONE), float(burst))
        now = self._clock()
        level, at = self._buckets.pop(who, (float(burst), now))
        level = min(float(burst), level + (now - at) * per_s)
        left = level - weight
        self._buckets[who] = (left if left >= 0.0 else level, now)
        while len(self._buckets) > KNOWN_AT_MOST:
            self._buckets.popitem(last=False)
        if left < 0.0:
            raise RequestError(
                f"too many requests: {burst} at once and {per_s:g} a second are allowed.",
                code="rate",
                hint="Ask less often, or follow the events instead of asking again and again.",
                http_status=429,
                retry_after_s=-left / per_s,
            )

    @contextmanager
    def open(self, who: str) -> Iterator[None]:
        """While a request of `who` is answered. Raises RequestError (429) when too many are open."""
        count = self._open.get(who, 0)
        of_all = self._open_in_all >= OPEN_IN_ALL
        if count >= OPEN_AT_MOST or of_all:
            allowed = f"{OPEN_IN_ALL} are answered" if of_all else f"{OPEN_AT_MOST} are allowed to one token"
            raise RequestError(
                f"too many requests at the same time: {allowed}, streams counted.",
                code="rate",
                hint="Close streams of events and logs that nobody reads.",
                http_status=429,
                retry_after_s=TRY_AGAIN_S,
            )
        self._open[who] = count + 1
        self._open_in_all += 1
        try:
            yield
        finally:
            self._open_in_all -= 1
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
