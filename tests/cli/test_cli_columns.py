"""Rows on a terminal and in a file: the same words, whoever wrote them."""

from __future__ import annotations

import pytest

from llmsched.cli.columns import Cell, Columns

HOSTILE = "mine:loop: [red]not a colour[/] [/closing] \\[x"


def rows() -> Columns:
    made = Columns("NAME", ">GPUS", "WHAT")
    made.add_row("a", "128", HOSTILE)
    made.add_row("模型", "4", Cell("running", "bold green"))
    made.add_row("two\nlines", "", "")
    return made


WANTED = f"""\
NAME   GPUS  WHAT
a       128  {HOSTILE}
模型      4  running
two
lines
"""


@pytest.mark.parametrize("columns", [None, "80", "300"])
def test_the_same_words_at_the_same_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    rows().show()
    assert capsys.readouterr().out == WANTED


def test_a_terminal_cuts_and_a_file_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Columns("NAME", "WHAT")
    made.add_row("n" * 60, "w" * 200)
    monkeypatch.setenv("COLUMNS", "80")
    made.show()
    assert capsys.readouterr().out == f"NAME{' ' * 26}WHAT\n{'n' * 27}…  {'w' * 49}…\n"
    monkeypatch.delenv("COLUMNS")
    made.show()
    assert f"{'n' * 60}  {'w' * 200}\n" in capsys.readouterr().out
