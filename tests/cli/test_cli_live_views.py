"""web, top and diagnose against a real controller: what they show, and what they keep to themselves."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live import Live

from llmsched.cli.main import cli

Run = Callable[..., Result]


def environment(controller: Live) -> dict[str, str]:
    here = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token, "COLUMNS": "80"}
    return here | {"LLMSCHED_HOME": str(controller.home)}


@pytest.fixture
def run(controller: Live) -> Run:
    def run(*words: str) -> Result:
        result = CliRunner().invoke(cli, list(words), env=environment(controller))
        assert "Traceback" not in result.output, result.output
        return result

    return run


def on_a_terminal(controller: Live, *words: str) -> str:
    """What a command shows where its stdout is a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llmsched.cli.main", *words]
    env = {**os.environ, **environment(controller), "TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # Linux says so when the other side has closed
            pass
        assert process.wait(30) == 0, shown
    os.close(ours)
    return shown.decode()


def test_web_keeps_the_token_out_of_whatever_is_not_a_terminal(run: Run, controller: Live) -> None:
    plain, as_json = run("web"), run("web", "--json")
    assert plain.stdout == f"{controller.url}/\n"
    assert json.loads(as_json.stdout) == {"url": f"{controller.url}/"}
    assert controller.token not in plain.output + as_json.output


def test_web_on_a_terminal_prints_the_way_in_with_the_token_in_the_fragment(controller: Live) -> None:
    assert on_a_terminal(controller, "web").strip() == f"{controller.url}/#token={controller.token}"


def test_web_hands_the_token_to_a_browser_in_a_file_of_its_owner(
    run: Run, controller: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert run("web", "--open").exit_code == 0
    (address,) = opened
    assert controller.token not in address
    file = Path(address.removeprefix("file://"))
    assert file.stat().st_mode & 0o077 == 0
    assert f"url={controller.url}/#token={controller.token}" in file.read_text()


def test_web_says_when_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    env = {"LLMSCHED_HOME": str(tmp_path), "LLMSCHED_ADDRESS": "", "LLMSCHED_TOKEN": ""}
    result = CliRunner().invoke(cli, ["web"], env=env)
    assert (result.exit_code, "llmsched up" in result.stderr) == (4, True)
