"""How much a key may ask for in a minute: requests, and tokens of prompts and answers.

What an answer will take is known when it has ended. So a request takes what it is thought to need, and what it needed
more or less is settled then; who took too much waits for longer. Each gateway knows what passes through it alone: where
there are several, each has its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmsched.gateway.keys import Key
from llmsched.gateway.refusals import Refused

MINUTE_S = 60.0


class Bucket:
    """Fills with `per_minute` in a minute, and holds no more than that."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = self._level = per_minute
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """0: `amount` is there now. One that is more than a minute's has to wait until it is full."""
        self._fill(now)
        return max(0.0, min(amount, self.per_minute) - self._level) * MINUTE_S / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Below nothing too. Of a negative amount: give back."""
        self._fill(now)
        self._level = min(self._level - amount, self.per_minute)

    def limit(self, per_minute: float, now: float) -> None:
        self._fill(now)
        self.per_minute, self._level = per_minute, min(self._level, per_minute)

    def _fill(self, now: float) -> None:
        self._level = min(self.per_minute, self._level + max(0.0, now - self._at) * self.per_minute / MINUTE_S)
        self._at = now


class Rates:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}  # by key and what is counted

    def keep_only(self, keys: Iterable[Key], gateways: int) -> None:
        """These keys, with limits that may have changed. `gateways`: how many share the requests."""
        now, before, self._buckets = self._clock(), self._buckets, {}
        for key in keys:
            for what, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)):
                if limit is not None:
                    bucket = before.get((key.id, what)) or Bucket(limit / gateways, now)
                    bucket.limit(limit / gateways, now)
                    self._buckets[key.id, what] = bucket

    def admit(self, key: Key, tokens: int) -> None:
        """Take a request of about so many tokens. Raises Refused (429)."""
        now = self._clock()
        asked = [("requests", 1, key.requests_per_minute), ("tokens", tokens, key.tokens_per_minute)]
        found = [(self._buckets.get((key.id, what)), what, amount, limit) for what, amount, limit in asked]
        for bucket, what, amount, limit in found:
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)):
                raise Refused(
                    429,
                    f"This key may ask for {limit:,} {what} a minute, and has. Try again in {max(1, round(wait_s))} s.",
                    code="rate_limit_exceeded",
                    retry_after_s=wait_s,
                )
        for bucket, _, amount, _ in found:
            if bucket is not None:
                bucket.take(amount, now)

    def settle(self, key: Key, thought: int, needed: int) -> None:
        """Tokens of a request that was admitted, and has ended."""
        if (bucket := self._buckets.get((key.id, "tokens"))) is not None:
            bucket.take(needed - thought, self._clock())
