"""What the bridge makes of what supervisors say, with supervisors of the test's own."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llmsched.executors.bridge import train
from llmsched.executors.bridge.train import Attempts, _Attempt
from llmsched.executors.port import (
    AskSeen,
    Ended,
    LaunchOrder,
    Member,
    NotStarted,
    Observation,
    Progress,
    ResizeDone,
    Stalled,
    Started,
    Vanished,
)
from llmsched.runtime import receipt
from llmsched.runtime.storage import LocalStorage


class Says:
    """Takes orders, and does nothing about them."""

    def __getattr__(self, name: str) -> Says:
        return self

    def remote(self, *_: Any) -> None:
        return None


def order(nodes: str) -> LaunchOrder:
    members = tuple(Member(rank, node) for rank, node in enumerate(nodes))
    return LaunchOrder("tune", "tune/0", 1, 1, "train", members, {}, "")


def status(**said: Any) -> dict[str, Any]:
    usual = {"started": True, "size": 2, "is_clear": False, "stopping": "", "progress": {}, "checkpoint": None}
    return {**usual, "stalled": "", "asks": [], "receipt": None, **said}


@pytest.mark.parametrize(
    ("to", "clear", "told"),
    [("a", True, True), ("a", False, False), ("abc", True, False)],
    ids=["what it gives back is free", "something is left of it", "a larger one has to begin"],
)
def test_a_smaller_gang_holds_its_size_when_it_has_left_the_old_one_and_any_other_when_it_has_begun(
    to: str, clear: bool, told: bool
) -> None:
    heard: list[Observation] = []
    attempts = Attempts(heard.append, "/nowhere", str)
    one = attempts._live["llms/tune/0/1"] = _Attempt(order("ab"), Says())
    attempts._tell(one, status())
    attempts.resize(order(to))
    attempts._tell(one, status(stopping="resize"))
    assert heard == [Started("tune/0", 1)]
    attempts._tell(one, status(started=False, size=len(to), is_clear=clear))
    assert heard[1:] == [ResizeDone("tune/0", 1, len(to))] * told
    attempts._tell(one, status(size=len(to), is_clear=clear))
    assert heard[1:] == [ResizeDone("tune/0", 1, len(to))], "told once"


def test_a_supervisor_that_hangs_is_said_to_and_then_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(train.ray, "kill", killed.append)
    heard: list[Observation] = []
    attempts, actor = Attempts(heard.append, "/nowhere", str), Says()
    one = attempts._live["llms/tune/0/1"] = _Attempt(order("ab"), actor)
    for silent_s in (train.SILENT_SAID_S + 1, train.SILENT_ENDED_S - 1, train.SILENT_ENDED_S + 1):
        attempts._wait_for(one, silent_s)
    assert heard == [
        Stalled("tune/0", 1, "its supervisor does not answer"),
        Vanished("tune/0", 1, "its supervisor did not answer for 60 s"),
    ]
    assert killed == [actor] and not attempts.names()


def test_a_supervisor_that_goes_while_the_storage_is_away_is_told_when_that_is_back(tmp_path: Path) -> None:
    """It was forgotten before its receipt was read: the gang ran for ever, with its GPUs."""
    storage, away = tmp_path / "storage", tmp_path / "away"
    receipt.write(LocalStorage(storage), vars_of(str(storage)), receipt.Receipt("succeeded"))
    storage.rename(away)
    storage.touch()
    heard: list[Observation] = []
    attempts = Attempts(heard.append, str(storage), str)
    one = attempts._live["llms/tune/0/1"] = _Attempt(order("ab"), Says())
    for _ in range(2):
        attempts._gone(one, "its supervisor died")
    [stalled] = heard
    assert isinstance(stalled, Stalled) and "its supervisor died, and its receipt cannot be read: " in stalled.message
    storage.unlink()
    away.rename(storage)
    attempts._gone(one, "its supervisor died")
    assert heard[1:] == [Ended("tune/0", 1, "succeeded")] and not attempts.names()


def vars_of(storage: str) -> dict[str, Any]:
    return {"storage": storage, "gang": "tune/0", "attempt": 1, "epoch": 1}


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "released"])
def test_what_other_work_of_the_name_has_left_is_not_taken_for_what_a_new_one_came_to(
    tmp_path: Path, outcome: str
) -> None:
    """An older backup was put back: the journal gave a name again, whose results are still in the storage."""
    storage = LocalStorage(tmp_path)

    def asked(loop: str, priority: int = 50) -> LaunchOrder:
        spec = {"train": {"loop": loop}, "priority": priority}
        return replace(order("a"), spec=spec, storage=str(tmp_path))

    said = {"step": 8, "loss": 0.5, "notify.when": {"loss > 4": [1, 9.0, True, False]}}
    receipt.write(storage, asdict(asked("mine:loop")), receipt.Receipt(outcome, step=9, progress=said))
    heard: list[Observation] = []
    attempts = Attempts(heard.append, str(tmp_path), str)
    attempts.launch(asked("mine:loop", priority=70))  # an order that is sent again after it has ended
    attempts.launch(asked("yours:loop"))
    told, ended, refused = heard
    assert told == Progress("tune/0", 1, said | {"step": 9}), "how far it came, though nobody saw it on the way"
    assert isinstance(ended, Ended) and ended.outcome == outcome
    assert isinstance(refused, NotStarted) and refused.event == "input"
    assert refused.message.startswith("the storage holds under tune/0/1 what other work of this name has left")
    assert not attempts.names()


def test_what_work_asks_for_is_told_once_again_where_no_answer_comes_and_to_the_next_controller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[Observation] = []
    attempts = Attempts(heard.append, "/nowhere", str)
    one = attempts._live["llms/tune/0/1"] = _Attempt(order("a"), Says(), is_started=True)
    times = iter([0.0, 1.0, train.ASKED_AGAIN_S + 1, train.ASKED_AGAIN_S + 2])
    monkeypatch.setattr(train.time, "monotonic", lambda: next(times))
    asked = status(size=1, asks=[("1", "{}")])
    for _ in range(3):
        attempts._tell(one, asked)
    assert heard == [AskSeen("tune/0", 1, "1", "{}")] * 2
    attempts.adopt(one.order, True)
    attempts._tell(one, asked)
    assert [type(each) for each in heard] == [AskSeen, AskSeen, Started, AskSeen]
