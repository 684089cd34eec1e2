"""What users and workloads say reaches an operator's terminal as text: nothing of it is obeyed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from live import Live
from waiting import wait_until

from llmsched import sanitize
from llmsched.cli import terminal
from llmsched.cli.main import cli
from llmsched.executors.fake import Script
from llmsched.executors.port import Progress
from llmsched.runtime.storage import Storage

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e"
COMMANDS = [
    ["status"], ["status", "loud"], ["why", "loud"], ["story", "loud"], ["events"], ["logs", "loud"], ["top", "--once"],
    ["diagnose", "loud"], ["nodes"], ["queues"], ["models"], ["exec", "loud", "echo", "hello"],
]  # fmt: skip


@pytest.mark.parametrize("form", ["words", "json"])
def test_no_command_prints_what_a_terminal_would_obey(fresh: Live, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    script = Script(runs_for_s=None)
    fresh.executor.cluster.script = lambda order: (
        Script(runs_for_s=0.01, outcome="failed", message=f"no {EVIL}", metrics={f"m{EVIL}": 1.0})
        if order.workload == "ended"
        else script
    )
    task = {"kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:1"]}}
    with fresh.client() as client:
        client.apply([{**task, "name": "loud"}, {**task, "name": "ended", "retry": {"max_restarts": 0}}])
    wait_until(lambda: fresh.controller.state.workloads["ended"].outcome)
    wait_until(lambda: fresh.executor.cluster.running())
    said = {f"n{EVIL}": 1.5, "phase": EVIL, "step": 1}
    fresh.loop.call_soon_threadsafe(fresh.executor.cluster.say, Progress("loud/0", 1, said))
    wait_until(lambda: fresh.controller.progress.get("loud/0"))
    Storage.at(fresh.controller.storage).write("loud/0/1/logs/0.log", f"a {EVIL} line\n".encode())
    monkeypatch.setenv("LLMSCHED_ADDRESS", fresh.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", fresh.token)
    shown = ""
    for command in [*COMMANDS, ["story", "ended"], ["why", "ended"], ["status", "ended"]]:
        name, *rest = command
        arguments = [name, *(["--json"] if form == "json" else []), *rest]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        if name != "exec":
            assert sanitize.shown(done.output) == done.output, arguments
        if form == "json" and name not in ("logs", "events", "exec"):
            json.loads(done.stdout)
        shown += done.output
    assert "owned" in shown, "it is told, and harmless"


def test_an_error_that_quotes_others_is_harmless_too(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.error(f"there is no {EVIL}")
    assert (
        sanitize.shown(capsys.readouterr().err) == "error: there is no \\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x7f\\u202e\n"
    )


def test_what_a_command_wrote_goes_into_a_file_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    terminal.raw("\x1b[31mred\n")
    assert capfd.readouterr().out == "\x1b[31mred\n"


def test_only_one_module_prints() -> None:
    """The linter holds this too; what imports click may not find another way round it."""
    folder = Path(terminal.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        if file.name != "terminal.py":
            assert "click.echo" not in text and " print(" not in text and "sys.stdout.write" not in text, file.name
