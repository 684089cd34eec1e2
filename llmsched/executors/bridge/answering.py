"""Whether Ray still answers: asked something small again and again, and given up also while a question hangs.

A head that has died without a word leaves questions without an answer for a minute, which is Ray's own bound. Knows
nothing of Ray but the question that it is given.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

ASK_EVERY_S = 1.0
GIVE_UP_AFTER_S = 15.0


class Answering:
    """`lost` is called once, when `ask` has not returned for GIVE_UP_AFTER_S in which this process was running: who was
    stopped itself for a while has heard nothing either, and waits again."""

    def __init__(
        self, ask: Callable[[], object], lost: Callable[[], None], pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._ask, self._lost, self._pause = ask, lost, pause
        self._answers = 0

    def start(self) -> None:
        for loop in (self._go_on_asking, self._watch):
            threading.Thread(target=loop, daemon=True, name=loop.__qualname__).start()

    def _go_on_asking(self) -> None:
        while True:
            try:
                self._ask()
                self._answers += 1
            except Exception:
                traceback.print_exc()
            self._pause(ASK_EVERY_S)

    def _watch(self) -> None:
        known, silent_s = self._answers, 0.0
        while silent_s < GIVE_UP_AFTER_S:
            self._pause(ASK_EVERY_S)
            silent_s = silent_s + ASK_EVERY_S if self._answers == known else 0.0
            known = self._answers
        self._lost()
