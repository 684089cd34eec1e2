"""Asking from inside a workload: answered in the end, asked again where nobody could, left when told to leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsched import errors
from llmsched.runtime import ask, elastic
from llmsched.runtime.ask_desk import ANSWERS_KEPT, ASKS_AT_ONCE, BYTES_AT_MOST, AskDesk
from llmsched.runtime.context import Context, enter

ASKS = {"asks": True}


class Answering:
    """A supervisor with a desk, and whoever answers there: each of `answers` in its turn."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.desk, self.left = AskDesk(), list(answers)
        self.asked: list[dict[str, Any]] = []
        self.is_leaving = False

    def ask(self, id: str, body: str) -> str | None:
        found = self.desk.ask(id, body)
        for waiting, asked in self.desk.waiting():
            answer = self.left.pop(0)
            if answer is not None:
                self.asked.append(json.loads(asked))
                self.desk.answered(waiting, json.dumps(answer))
        return found

    def should_stop(self) -> bool:
        return self.is_leaving

    def report(self, values: dict[str, Any]) -> None: ...

    def checkpointed(self, step: int, fraction: float | None) -> None: ...


CHILD = {"name": "a", "id": "plan.a", "phase": "running", "message": "", "progress": {"loss": 1.5}, "metrics": {}}
CHILD |= {"artifact": None}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_LOOK_S", "_LOOK_EVERY_S", "_STOP_EVERY_S", "_PAUSE_S"):
        monkeypatch.setattr(ask, name, 0.0)


def test_it_waits_for_its_answer_and_asks_again_what_nobody_could_answer(tmp_path: Path) -> None:
    busy = {"error": {"message": "the disk is full", "code": "degraded", "again": True}}
    link = Answering(None, busy, {"ok": [CHILD]}, {"ok": [CHILD]}, {"ok": None})
    with enter(Context.alone(tmp_path, ASKS, supervisor=link)):
        (child,) = ask.submit({"name": "a"})
        assert (child.name, child.id, child.has_ended) == ("a", "plan.a", False)
        assert ask.watch("a", "b")["a"].progress == {"loss": 1.5}
        ask.end("a")
    assert [one["ask"] for one in link.asked] == ["submit", "submit", "watch", "end"]
    assert link.asked[0] == {"ask": "submit", "specs": [{"name": "a"}]}


def test_a_refusal_is_the_error_it_would_be_anywhere(tmp_path: Path) -> None:
    told = {
        "type": "SpecError",
        "message": "no",
        "code": "missing_key",
        "where": "$[0]",
        "hint": "Add it.",
        "again": False,
    }
    link = Answering({"error": told}, {"error": {"type": "RequestError", "message": "too many", "code": "too_many"}})
    with enter(Context.alone(tmp_path, ASKS, supervisor=link)):
        with pytest.raises(errors.SpecError, match=r"\$\[0\]: no. Add it."):
            ask.submit({})
        with pytest.raises(errors.RequestError, match="too many"):
            ask.submit({})


def test_who_is_told_to_leave_waits_no_longer_and_who_may_not_ask_is_told_what_to_write(tmp_path: Path) -> None:
    link = Answering(*[None] * 9)
    link.is_leaving = True
    with enter(Context.alone(tmp_path, ASKS, supervisor=link)), pytest.raises(elastic.Stopped):
        ask.watch("a")
    with enter(Context.alone(tmp_path, {}, supervisor=link)), pytest.raises(errors.RequestError, match="asks: true"):
        ask.watch("a")
    with enter(Context.alone(tmp_path, ASKS)), pytest.raises(errors.ClusterError, match="nobody answers"):
        ask.watch("a")


def test_a_desk_asks_once_keeps_answers_for_who_did_not_hear_them_and_takes_so_much() -> None:
    desk = AskDesk()
    assert desk.ask("1", "x") is None and desk.ask("1", "x") is None
    assert desk.waiting() == [("1", "x")]
    desk.answered("1", "yes")
    desk.answered("unknown", "no")
    assert desk.ask("1", "x") == "yes" == desk.ask("1", "x") and desk.waiting() == []
    for number in range(ASKS_AT_ONCE):
        desk.ask(f"n{number}", "y")
    with pytest.raises(ValueError, match="wait for an answer already"):
        desk.ask("more", "y")
    desk.answered("n0", "")
    with pytest.raises(ValueError, match="characters"):
        desk.ask("large", "y" * (BYTES_AT_MOST + 1))
    for number in range(ANSWERS_KEPT + 1):
        desk.ask(f"m{number}", "")
        desk.answered(f"m{number}", "")
    assert desk.ask("n0", "y") is None, "the oldest are forgotten, and asked again"
