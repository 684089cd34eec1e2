"""A conversation in a terminal, against an endpoint that answers as a test wants."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from llmsched.cli import chat, show


class Endpoint:
    """Is interrupted in the middle of the first answer."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None: ...

    def chat(self, name: str) -> Endpoint:
        return self

    def stream(self, messages: list[dict[str, Any]], **_: Any) -> Any:
        self.asked.append([each["content"] for each in messages])
        yield "It is"
        if len(self.asked) == 1:
            raise KeyboardInterrupt
        yield " so."


def test_ctrl_c_ends_an_answer_and_takes_its_question_back(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, lines = Endpoint(), iter(["why?", "how?", "and then?"])
    monkeypatch.setattr(show, "connect", lambda: endpoint)

    def typed(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(
        chat, "sys", type("Terminal", (), {"stdin": type("In", (), {"isatty": staticmethod(lambda: True)})})
    )
    found = CliRunner().invoke(chat.chat, ["assistant"])
    assert found.exit_code == 0, found.output
    assert endpoint.asked == [["why?"], ["how?"], ["how?", "It is so.", "and then?"]]
