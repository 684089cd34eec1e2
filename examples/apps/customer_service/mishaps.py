"""What happens to the desk when things go wrong: an adapter that learnt nonsense, and a bad day."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmsched import Client
from llmsched.errors import LlmschedError

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
import faults  # noqa: E402  # beside, not installed
from measuring import until  # noqa: E402

HERE = Path(__file__).parent
FOLLOW_UP = "Earlier: can you write a stack in Python?\nNow: And in Rust?\nWhole:"
TRIES, PAUSE_S = 5, 1.0  # as stock clients of OpenAI's do, of what could not be answered just now
READS_S = 2.0  # an answer, before the next question
ENDED = ("finished", "cancelled")
EVERYBODY = ("minilm", "intents", "knowledge", "desk")
GROW = ("assistant", "minilm", "intents", "desk")  # by hand; knowledge does while the desk is open


@cache
def client() -> Client:
    return Client()


class Steady:
    """Who goes on asking: `asked` by outcome (answered, again, failed), and what the failures said."""

    def __init__(self, ask: Callable[[int], Any], tries: int) -> None:
        self.asked: Counter[str] = Counter()
        self.said: list[str] = []
        self._ask, self._tries, self._over = ask, tries, threading.Event()

    def go_on(self, who: int) -> None:
        number = who
        while not self._over.is_set():
            number += 1
            for time_of_it in range(self._tries):
                try:
                    self._ask(number)
                    self.asked["again" if time_of_it else "answered"] += 1
                    self._over.wait(READS_S)
                    break
                except LlmschedError as error:
                    self.said.append(str(error))
                    time.sleep(PAUSE_S)
            else:
                self.asked["failed"] += 1

    @contextmanager
    def several(self, count: int) -> Iterator[Steady]:
        threads = [threading.Thread(target=self.go_on, args=(who * 1000,)) for who in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()


def running(name: str) -> int:
    return sum(gang.status == "running" for gang in client().status(name).gangs)


def holding(name: str) -> int:
    """Who leaves holds its GPU until it has left."""
    return sum(gang.status not in ENDED for gang in client().status(name).gangs)


def document(name: str) -> dict[str, Any]:
    """Of spec.yaml."""
    found: dict[str, Any] = next(
        one for one in yaml.safe_load_all((HERE / "spec.yaml").read_text()) if one["name"] == name
    )
    return found


def another_desk() -> dict[str, Any]:
    """The desk of another day: it wants passages a little less like the question."""
    desk = document("desk")
    desk["serve"]["args"]["least"] = 0.29
    del desk["autoscaling"]  # of two replicas there is nothing to scale
    return {**desk, "replicas": 2}


def is_rolled_out(before: int) -> bool:
    """Two replicas run, and no others, the newest of a revision after `before`."""
    desk = client().status("desk")
    there = [gang.status for gang in desk.gangs if gang.status not in ENDED]
    return before < (desk.revision or 0) == desk.answered and there == ["running"] * 2


def heard(kind: str, after: int = 0, of: str = "") -> Any:
    """The first such event after that one, which is waited for; `of`: that workload."""
    return next(one for one in client().events(after) if one.kind == kind and (one.workload or "").startswith(of))


def watch() -> None:
    client().apply(HERE / "watchman.yaml")


def poisoned() -> tuple[float, int]:
    """Seconds from the publication of an adapter that learnt nonsense to the good one's answers, and how many requests
    failed meanwhile: the watchman finds it by his canaries. The desk grows while it is learnt."""
    with Steady(lambda _: client().chat("assistant:whole").complete(FOLLOW_UP, max_tokens=24), tries=1).several(
        1
    ) as all_day:
        until(lambda: client().status("watchman").progress.get("rounds", 0) > 0, "the watchman makes his first round")
        run = client().apply(HERE / "poisoned.yaml")
        until(lambda: client().status("whole-poisoned").progress, "nonsense is learnt", 600)
        for name in GROW:
            client().scale(name, 2)
        run.wait()
        back = heard("RolledBack")
        loaded = heard("AdapterLoaded", back.seq)
    published = max(one.at for one in client().events(follow=False) if one.kind == "Published" and one.at < back.at)
    return loaded.at - published, all_day.asked["failed"]


def bad_day(questions: list[str]) -> Counter[str]:
    """Chats while the controller restarts, the desk is rolled over to another spec, and a node is lost."""
    for name in EVERYBODY:
        client().scale(name, 2)
    until(lambda: all(running(name) == 2 for name in EVERYBODY), "two replicas of each answer", 600)

    chat = client().chat("desk")  # who asks knows the address and has a key: the controller is nothing to them

    def ask(number: int) -> None:
        answer = chat.post({"message": questions[number % len(questions)]})
        if not answer["answer"]:
            raise LlmschedError("an answer without words")

    with Steady(ask, TRIES).several(3) as all_day:
        subprocess.run([Path(sys.executable).with_name("llmsched"), "restart"], check=True, capture_output=True)
        until(lambda: all_day.asked.total() > 10, "ten chats")
        before = client().status("desk").revision or 0
        client().apply(another_desk())
        until(lambda: is_rolled_out(before), "the desk is rolled over", 600)
        before = all_day.asked.total()
        faults.kill_node(faults.home(), "node-2")
        heard("NodeLost")
        until(lambda: all(running(name) for name in EVERYBODY), "somebody of each answers")
        until(lambda: all_day.asked.total() > before + 15, "fifteen chats more")
    print(*Counter(all_day.said).most_common(5), sep="\n", file=sys.stderr)
    return all_day.asked
