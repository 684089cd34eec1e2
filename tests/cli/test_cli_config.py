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
    assert any(line == "  queues.lab.quota.A100.nominal: 2.0 -> 4.0" for line in lines), lines
    assert any(line.startswith("  queues.new: nothing -> ") for line in lines)
    assert any(line == "  history.ended: nothing -> 90d" for line in lines)
    assert not any("queues.default" in line for line in lines)
    assert last == "Configuration version 2 is in force."
    assert put(AFTER)[0] == "  nothing has changed but the version."


def test_what_is_in_force_is_printed_as_a_cluster_file_that_changes_nothing(
    fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMSCHED_ADDRESS", fresh.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", fresh.token)
    file = tmp_path / "llmsched.yaml"
    file.write_text(AFTER)
    for _ in range(2):
        done = CliRunner().invoke(cli, ["config", "-f", str(file)])
        assert done.exit_code == 0, done.output
        file.write_text(CliRunner().invoke(cli, ["config"]).output)
    assert "nothing has changed" in done.output
    assert "ended: 90d" in file.read_text() and "nominal: 4.0" in file.read_text()
    client = fresh.client()
    assert client.configure(client.config().configuration).version == 1  # the same, so there is no new version
