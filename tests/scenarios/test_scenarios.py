"""Acceptance scenarios: the shared file where it exists, and our own beside this test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.errors import SpecError
from llmsched.sim.scenarios import run_file

HERE = Path(__file__).parent
SHARED = HERE.parents[2].joinpath("shared", "scenarios.yaml")


def _rows(path: Path) -> list[Any]:
    if not path.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{path.name} of the shared folder is not here"))]
    return [pytest.param(row, id=row["id"]) for row in run_file(path)["results"]]


@pytest.mark.parametrize("row", _rows(SHARED))
def test_the_core_decides_as_the_shared_scenario_expects(row: dict[str, Any]) -> None:
    assert row["passed"], row["why"]


@pytest.mark.parametrize("row", _rows(HERE / "own.yaml"))
def test_the_core_decides_as_our_own_scenario_expects(row: dict[str, Any]) -> None:
    assert row["passed"], row["why"]


def test_a_scenario_that_is_not_met_fails_and_says_why(tmp_path: Path) -> None:
    scenario = {
        "id": "wrong", "nodes": [{"name": "n", "gpus": 1}], "queues": [{"name": "q", "guaranteed": 1}],
        "running": [], "pending": [{"name": "a", "queue": "q", "gpus": 1}], "expect": {"wait": ["a"]},
    }  # fmt: skip
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"scenarios": [scenario]}))
    report = run_file(path)
    assert report["failed"] == 1 and "start: expected {}, got {'a': 1}" in report["results"][0]["why"]


def test_a_file_without_scenarios_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("version: 1\n")
    with pytest.raises(SpecError, match="a list called"):
        run_file(path)
