"""How answers are written, where a library or a machine's unit would show through."""

from __future__ import annotations

import pytest

from llmsched.cli import show


def test_counts_are_in_the_units_that_people_ask_in() -> None:
    assert show.counts({"nodes": 2, "quota_free_milli": 500, "needed_milli": 1000}) == (
        "2 nodes, 0.5 GPUs quota free, 1 GPUs needed"
    )


def test_an_entry_point_is_not_taken_for_the_name_of_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    table = show.table("WHAT")
    table.add_row(show.plain("train.loop mine:loop: no such module"))
    show.print_table(table)
    show.out().print(show.plain("mine:loop:"))
    assert "mine:loop: no such module" in (said := capsys.readouterr().out)
    assert "mine:loop:\n" in said
