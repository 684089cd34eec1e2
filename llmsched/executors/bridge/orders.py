"""The orders that the bridge works off: about one attempt one after the other, about different ones side by side.

None is left without an answer. What cannot be done is tried again after pauses, since orders are idempotent; in the
end `unanswered` tells why, which whoever makes an order has to say. Knows nothing of Ray.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

AT_ONCE = 8
PAUSES_S = (0.5, 2.0, 5.0)  # before an order that raised is tried again
ONCE: tuple[float, ...] = ()
WORDS_AT_MOST = 500


@dataclass(frozen=True, slots=True)
class Order:
    """`act` may be called again after it raised. Orders of one `key`, such as an attempt's name, keep their order."""

    key: str
    act: Callable[[], None]
    unanswered: Callable[[str], None]
    pauses_s: Sequence[float] = PAUSES_S


class Orders:
    """`expected` is called with the key of each order, `done` with one about which nothing waits any more."""

    def __init__(
        self,
        expected: Callable[[str], None],
        done: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._expected, self._done, self._pause = expected, done, pause
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="order")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Order]] = {}

    def put(self, order: Order) -> None:
        with self._lock:
            self._expected(order.key)
            waiting = self._waiting.setdefault(order.key, deque())
            waiting.append(order)
            if len(waiting) == 1:
                self._pool.submit(self._work_off, order.key)

    def _work_off(self, key: str) -> None:
        while True:
            with self._lock:
                order = self._waiting[key][0]
            self._carry_out(order)
            with self._lock:
                self._waiting[key].popleft()
                if not self._waiting[key]:
                    del self._waiting[key]
                    self._done(key)
                    return

    def _carry_out(self, order: Order) -> None:
        """Never raises: one order that went wrong must not take the others along."""
        pauses = iter(order.pauses_s)
        while True:
            try:
                order.act()
                return
            except Exception as error:
                traceback.print_exc()
                why = words(error)
            pause = next(pauses, None)
            if pause is None:
                break
            print(f"{order.key}: again in {pause:g} s", file=sys.stderr)
            self._pause(pause)
        try:
            order.unanswered(why)
        except Exception:
            traceback.print_exc()


def words(error: Exception) -> str:
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {said[:WORDS_AT_MOST]}"
