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


def test_progress_of_a_batch_counts_rows_and_that_of_a_training_steps() -> None:
    rows = {"step": 4000, "total_steps": 20000, "unit": "rows", "rows_per_s": 310.24, "bad_rows": 2}
    assert show.progress(rows) == "rows 4,000/20,000, rows_per_s 310.2, bad_rows 2"
    assert show.progress({"step": 4000, "total_steps": 20000, "loss": 0.5}) == "step 4000/20000, loss 0.5"


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
