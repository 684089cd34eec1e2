"""How answers are written, where a library or a machine's unit would show through."""

from __future__ import annotations

import pytest

from llmsched.cli import node as node_commands
from llmsched.cli import show
from llmsched.spec import http_models, node_models


def test_counts_are_in_the_units_that_people_ask_in() -> None:
    assert show.counts({"nodes": 2, "quota_free_milli": 500, "needed_milli": 1000}) == (
        "2 nodes, 0.5 GPUs quota free, 1 GPUs needed"
    )


def test_an_entry_point_is_not_taken_for_the_name_of_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    show.out().print(show.plain("mine:loop:"))
    assert "mine:loop:\n" in capsys.readouterr().out


def test_a_node_names_who_takes_more_there_than_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    amounts, node = http_models.Amounts, node_models.NodeView
    beyond = [
        node_models.ExcessView(gang="hog/0", amounts=amounts(gpus=2.0, cpus=1.0)),
        node_models.ExcessView(gang="another's workload", amounts=amounts(gpus=1.0)),
    ]
    some = {"total": amounts(gpus=4.0), "used": amounts(gpus=1.0), "free": amounts(), "foreign": amounts()}
    node_commands._print_nodes(
        node_models.NodeList(nodes=[node(id="n", name="n1", gangs=["hog/0"], excess=beyond, **some)])
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "hog (+2 GPUs, 1 CPU beyond its gang), another's workload (+1 GPU beyond its gang)" in said
    assert "others" not in said
