"""A file or an input without an end, or of another encoding, is refused in words, and not read on."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner
from live import Live

from llmsched.cli import given
from llmsched.cli.main import cli
from llmsched.sim.traces import table

COMMANDS = [["secret", "set", "S"], ["chat", "qwen"], ["classify", "qwen"], ["embed", "qwen"]]


@pytest.fixture
def runs(controller: Live, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("LLMSCHED_ADDRESS", controller.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", controller.token)
    return CliRunner()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_standard_input_is_read_up_to_a_bound(runs: CliRunner, command: list[str]) -> None:
    done = runs.invoke(cli, command, input="x" * (given.AT_MOST + 1))
    assert (done.exit_code, "standard input is larger than 1 MiB" in done.stderr) == (2, True), done.output


@pytest.mark.parametrize(
    "command",
    [
        ["secret", "set", "S", "--from-file", "/dev/zero"],
        ["apply", "-f", "/dev/zero"],
        ["plan", "-f", "/dev/zero"],
        ["config", "-f", "/dev/zero"],
        ["sim", "scenarios", "/dev/zero"],
        ["cluster", "up", "/dev/zero"],
    ],
    ids=" ".join,
)
def test_a_file_without_an_end_is_refused(runs: CliRunner, command: list[str]) -> None:
    done = runs.invoke(cli, command)
    assert (done.exit_code, "larger than" in done.stderr) == (2, True), done.output


def test_what_is_not_text_is_said_to_be_none(runs: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    done = runs.invoke(cli, ["secret", "set", "S", "--from-file", str(tmp_path / "key")])
    assert (done.exit_code, "is not UTF-8 text" in done.stderr) == (2, True)
    done = runs.invoke(cli, ["chat", "qwen"], input=b"\xff\xfe")
    assert (done.exit_code, "standard input is not UTF-8 text" in done.stderr) == (2, True)


def test_a_small_trace_may_not_unpack_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LARGEST", 1 << 20)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"0" * (2 << 20)))
    done = CliRunner().invoke(cli, ["sim", "run", str(tmp_path / "bomb.csv.gz"), "--nodes", "1x1"])
    assert (done.exit_code, "is larger than 1 MiB" in done.stderr) == (2, True), done.output
