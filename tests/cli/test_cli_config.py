"""config: what a new cluster file changes is said by name, wherever it stands in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from live import Live

from llmsched.cli.main import cli

BEFORE = "queues: [{name: default}, {name: lab, quota: {A100: {nominal: 2}}}]\n"
AFTER = "queues: [{name: lab, quota: {A100: {nominal: 4}}}, {name: default}, {name: new}]\nhistory: {ended: 90d}\n"


def test_a_cluster_file_shows_what_it_changes(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_ADDRESS", fresh.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", fresh.token)
    file = tmp_path / "llmsched.yaml"

    def put(text: str) -> list[str]:
        file.write_text(text)
        done = CliRunner().invoke(cli, ["config", "-f", str(file)])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    put(BEFORE)
    *lines, last = put(AFTER)
    assert any(line.startswith("  queues.lab.quotas") and "2000" in line and "4000" in line for line in lines), lines
    assert any(line.startswith("  queues.new: nothing -> ") for line in lines)
    assert any(line.startswith("  kept.ended_s: nothing -> 7776000") for line in lines)
    assert not any("queues.default" in line for line in lines)
    assert last == "Configuration version 2 is in force."
    assert put(AFTER)[0] == "  nothing has changed but the version."
