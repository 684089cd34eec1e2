"""A watchman asks endpoints what it knows the answer to, and repairs what he may when answers turn wrong or slow.

    kind: task
    asks: true
    calls: [desk, assistant]
    notify: [{url: "https://...", when: "repairs > 0"}, {url: "https://...", when: "alarms > 0"}]
    task: {run: [python, -m, workloads.apps.watchman, watch.yaml]}

watch.yaml has `canaries`, each {of: ENDPOINT, says: a regular expression of the whole answer} with what is asked:
`chat: a text` (and `adapter: NAME`), or `post: JSON` to an app with `field: NAME` of its answer. Besides, of all:
`every_s` (5), `rounds` in a row that make a verdict (2), `wrong` answers of an endpoint's (0.5), `slow_s` (none),
`calm` rounds after a repair (2).

Wrong answers: the last publish goes back, of the adapter or of the endpoint; but only where the same canaries were
right before. Slow ones: one replica more, up to the most. Failures are the scheduler's to mend, so they are counted and
told. What cannot be repaired is an alarm. He reports rounds, wrong, failed, slowest_s, repairs, alarms.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from llmsched.errors import LlmschedError
from llmsched.runtime import ask, calls, elastic, progress
from workloads.apps.watchman_settings import checked, read

AT_ONCE = 8


class Seen(NamedTuple):
    is_right: bool | None  # None: it got no answer, and `said` is why
    took_s: float
    said: str


class Round(NamedTuple):
    wrong: float  # of the answers
    failed: int
    slowest_s: float


class Watchman:
    """`settings`: watch.yaml; raises RequestError for what is none."""

    def __init__(
        self, settings: Any, report: Callable[..., None] = progress.report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._rules = checked(settings)
        self.every_s = self._rules.every_s
        self._report, self._clock, self._threads = report, clock, ThreadPoolExecutor(AT_ONCE, "canary")
        self._canaries: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in self._rules.canaries:
            self._canaries.setdefault((one["of"], one.get("adapter", "")), []).append(one)
        self._rounds = {of: deque[Round](maxlen=self._rules.rounds) for of in self._canaries}
        self._were_right: set[tuple[str, str]] = set()
        self._calm = dict.fromkeys(self._canaries, 0)
        self._repairs = self._alarms = self._count = 0

    def look(self) -> None:
        """One round: every canary, then a verdict on each endpoint."""
        asked = [(of, one) for of, some in self._canaries.items() for one in some]
        seen = [*self._threads.map(lambda pair: self._ask(pair[1]), asked)]
        self._count += 1
        last = []
        for of, rounds in self._rounds.items():
            mine = [each for (other, _), each in zip(asked, seen, strict=True) if other == of]
            answers = [each for each in mine if each.is_right is not None]
            wrong = sum(not each.is_right for each in answers) / max(len(answers), 1)
            last.append(Round(wrong, len(mine) - len(answers), max(each.took_s for each in mine)))
            rounds.append(last[-1])
            if answers and wrong == 0:
                self._were_right.add(of)
            if self._calm[of] > 0:
                self._calm[of] -= 1
            elif len(rounds) == rounds.maxlen:
                self._judge(of, rounds, next((each.said for each in mine if not each.is_right), ""))
        self._report(
            rounds=self._count, wrong=max(one.wrong for one in last), failed=sum(one.failed for one in last),
            slowest_s=round(max(one.slowest_s for one in last), 3), repairs=self._repairs, alarms=self._alarms,
        )  # fmt: skip

    def _ask(self, canary: dict[str, Any]) -> Seen:
        began = self._clock()
        try:
            if "chat" in canary:
                model = ":".join(filter(None, (canary["of"], canary.get("adapter"))))
                messages = [{"role": "user", "content": canary["chat"]}]
                said = calls.chat(model, messages, timeout_s=self._rules.timeout_s, max_tokens=64, temperature=0)
            else:
                answer = calls.post(canary["of"], canary["post"], timeout_s=self._rules.timeout_s)
                said = str(answer.get(canary.get("field", "answer")) if isinstance(answer, dict) else answer)
        except LlmschedError as error:
            return Seen(None, self._clock() - began, str(error))
        return Seen(re.fullmatch(canary["says"], said.strip(), re.S) is not None, self._clock() - began, said)

    def _judge(self, of: tuple[str, str], rounds: deque[Round], said: str) -> None:
        name, adapter = of
        shown = f"{name}:{adapter}" if adapter else name
        if min(one.wrong for one in rounds) >= self._rules.wrong and of in self._were_right:
            self._repair(of, f"{shown} is rolled back: it says {said[:80]!r}", lambda: ask.rollback(name, adapter))
        elif min(one.failed for one in rounds) > 0:
            self._tell(f"{shown} does not answer: {said[:200]}")
            self._alarms += 1
        elif self._rules.slow_s and min(one.slowest_s for one in rounds) > self._rules.slow_s:
            try:
                there = ask.endpoint(name)
            except LlmschedError as error:  # it may go just now
                self._tell(f"{shown} is slow, and of its replicas nothing is known: {error}")
                self._alarms += 1
                return
            if (more := there.wanted + 1) <= there.most:
                self._repair(of, f"{shown} is slow: {more} replicas are wanted", lambda: ask.scale(name, more))

    def _repair(self, of: tuple[str, str], words: str, do: Callable[[], None]) -> None:
        try:
            do()
        except LlmschedError as error:
            words, self._alarms = f"{words}; refused: {error}", self._alarms + 1
        else:
            self._repairs += 1
        self._tell(words)
        self._calm[of] = self._rules.calm
        self._rounds[of].clear()

    def _tell(self, words: str) -> None:
        print(f"[watchman] round {self._count}: {words}", flush=True)


def main(file: str) -> None:
    watchman = Watchman(read(file))
    while not elastic.should_stop():
        began = time.monotonic()
        watchman.look()
        time.sleep(max(0.0, watchman.every_s - (time.monotonic() - began)))


if __name__ == "__main__":
    main(sys.argv[1])
