"""Acceptance scenarios: the shared file where it exists, and our own beside this test."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llmsched.cli.main import cli
from llmsched.errors import SpecError
from llmsched.sim.scenarios import run_file

HERE = Path(__file__).parent
SHARED = HERE.parents[2].joinpath("shared", "scenarios.yaml")
OWN = sorted(HERE.glob("*.yaml"))


def _rows(path: Path) -> list[Any]:
    """The names of its rows. Its first test plays them: every worker collects, and one of them runs the tests."""
    if not path.exists():
        return [pytest.param(path, "", marks=pytest.mark.skip(reason=f"{path.name} of the shared folder is not here"))]
    names = re.findall(r"^- id: (\S+)$", path.read_text(), re.MULTILINE)
    return [pytest.param(path, name, id=name) for name in names]


@cache
def _played(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By the name of a row: what came of it and of its variants."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in run_file(path)["results"]:
        found.setdefault(row["id"].partition("/variant")[0], []).append(row)
    return found


@pytest.mark.parametrize(("path", "name"), _rows(SHARED))
def test_the_core_decides_as_the_shared_scenario_expects(path: Path, name: str) -> None:
    assert not [row["why"] for row in _played(path)[name] if not row["passed"]]


@pytest.mark.parametrize(("path", "name"), [row for path in OWN for row in _rows(path)])
def test_the_core_decides_as_our_own_scenario_expects(path: Path, name: str) -> None:
    assert not [row["why"] for row in _played(path)[name] if not row["passed"]]


@pytest.mark.parametrize("path", [path for path in (SHARED, *OWN) if path.exists()], ids=lambda path: path.stem)
def test_no_row_of_a_file_is_left_out(path: Path) -> None:
    assert [*_played(path)] == [row.values[1] for row in _rows(path)]


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


BASE: dict[str, Any] = {
    "id": "base",
    "nodes": [{"name": "n", "gpus": 1, "copies": 2}],
    "queues": [{"name": "q", "guaranteed": 1, "parent": "c"}, {"name": "c"}],
    "running": [],
    "pending": [{"name": "a", "queue": "q", "gpus": 1}],
    "expect": {"start": ["a"]},
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"polcy": {}}, 'unknown key "polcy". Did you mean "policy"?'),
        ({"policy": {"reclam": "any"}}, 'policy: unknown key "reclam". Did you mean "reclaim"?'),
        ({"policy": {"reclaim": "all"}}, "policy: reclaim: 'all' is none of never, lower_priority"),
        ({"policy": {"elastic": "yes please"}}, "policy: elastic: yes or no, not the text 'yes please'"),
        ({"policy": {"preemption_delay_s": -1}}, "policy: preemption_delay_s: -1 is negative"),
        ({"nodes": [{"gpus": 1}]}, "nodes: name: every entry has a name"),
        ({"nodes": {"name": "n"}}, "nodes: a list, not a mapping"),
        ({"pending": [{"name": "a", "queue": "p"}]}, 'pending "a": queue: no queue "p"'),
        ({"pending": [{"name": "a", "queue": "c"}]}, "has queues below it and holds no work itself"),
        ({"pending": [{"name": "a", "queue": "q", "gpu": 1}]}, 'pending "a": unknown key "gpu". Did you mean "gpus"?'),
        ({"pending": [{"name": "a", "queue": "q", "min_members": 3, "max_members": 2}]}, "min_members: 3 is more than"),
        ({"running": [{"name": "r", "queue": "q", "gpus": 1, "node": "n"}]}, 'running "r": node: no node "n"'),
        ({"queues": [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}]}, "the cohorts form a ring"),
        ({"reservations": [{"name": "m", "nodes": ["n-7"]}]}, 'reservations "m": nodes: no node "n-7"'),
        ({"history": {"x": {"gpu_share_of_window": 1}}}, 'history: no queue "x"'),
        ({"expect": {"start": ["b"]}}, 'expect: start: no job "b"'),
        ({"expect": {"starts": ["a"]}}, 'expect: unknown key "starts". Did you mean "start"?'),
        ({"steps": [{"at": 1}]}, 'step 1: unknown key "at". Did you mean "at_s"?'),
        ({"variant": {"expects": {}}}, 'variant: unknown key "expects". Did you mean "expect"?'),
    ],
)
def test_a_row_with_a_mistake_is_named_and_the_others_are_run(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(yaml.safe_dump({"scenarios": [{**BASE, "id": "bad", **change}, BASE]}))
    report = run_file(path)
    assert any(text.startswith(f'{path}: scenario "bad": ') and told in text for text in report["problems"])
    assert [row["passed"] for row in report["results"]] == [False, True]


def test_two_rows_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(yaml.safe_dump({"scenarios": [BASE, BASE]}))
    assert "called the same" in run_file(path)["problems"][0]


def test_the_command_exits_with_two_for_a_mistake_and_with_one_for_a_difference(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(yaml.safe_dump({"scenarios": [BASE, {**BASE, "id": "bad", "policy": {"reclam": "any"}}]}))
    broken = CliRunner().invoke(cli, ["sim", "scenarios", str(path), "--json"])
    assert broken.exit_code == 2 and json.loads(broken.stdout)["passed"] == 1
    assert 'Did you mean "reclaim"?' in broken.stderr
    path.write_text(yaml.safe_dump({"scenarios": [{**BASE, "expect": {"wait": ["a"]}}]}))
    assert CliRunner().invoke(cli, ["sim", "scenarios", str(path)]).exit_code == 1
