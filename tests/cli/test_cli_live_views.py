"""web, top and diagnose against a real controller: what they show, and what they keep to themselves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from live import Live
from waiting import PATIENCE_S

from llmsched.cli.main import cli
from llmsched.executors.fake import Script
from llmsched.spec import http_models, node_models

Run = Callable[..., Result]
Watch = Callable[[bytes, "subprocess.Popen[bytes]"], None]


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


def on_a_terminal(controller: Live, *words: str, watch: Watch | None = None) -> str:
    """What a command shows where its stdout is a terminal of 80 columns; `watch` sees all of it as it grows."""
    ours, theirs = pty.openpty()
    # Whoever starts the tests in the background has them, and their children, ignore Ctrl-C.
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listens}; from llmsched.cli.main import main; main()", *words]
    env = {**os.environ, **environment(controller), "TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
                if watch is not None:
                    watch(shown, process)
        except OSError:  # Linux says so when the other side has closed
            pass
        except BaseException:
            process.kill()
            raise
        assert process.wait(PATIENCE_S) == 0, shown
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


def task(name: str, gpus: float, workers: int = 1) -> dict[str, Any]:
    accelerators = {"accelerators": [f"A100:{gpus:g}"]}
    return {"name": name, "kind": "task", "workers": workers, "resources": accelerators, "task": {"run": ["true"]}}


@pytest.fixture
def busy(fresh: Live) -> Live:
    """Two nodes of four GPUs: five and a half are held by two workloads, a third one waits."""
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    client = fresh.client()
    client.apply([task("first", 2, workers=2), task("shared", 0.5, workers=3)])
    fresh.hear("Bound", "first")
    fresh.hear("Bound", "shared")
    client.apply([task("third", 4)])
    return fresh


def test_top_once_draws_queue_gpus_and_events_in_eighty_columns(busy: Live) -> None:
    lines = CliRunner().invoke(cli, ["top", "--once"], env=environment(busy)).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "8 GPUs" in lines[0] and "2 active, 1 waiting" in lines[0]
    table = {line.split()[1 if line[0] != " " else 0]: line for line in lines[3:6]}
    assert set(table) == {"first", "shared", "third"}
    letters = {name: line[0] for name, line in table.items()}
    (gpus,) = [line for line in lines if line.startswith("node-1")]
    drawn = "".join(part for part in gpus.split() if len(part) == 4 and part != "A100")
    assert len(drawn) == 8
    counts = {name: drawn.count(letters[name]) for name in ("first", "shared")}
    assert counts == {"first": 4, "shared": 2}  # three halves are shown on two GPUs
    assert drawn.count(".") == 2
    assert any("third" in line and "submitted" in line for line in lines[lines.index("EVENTS") :])


def test_top_says_who_gave_a_gpu_to_whom_and_what_that_cost(fresh: Live) -> None:
    fresh.trade()
    shown = CliRunner().invoke(cli, ["top", "--once"], env={**environment(fresh), "COLUMNS": "200"}).stdout
    assert re.search(
        r"tune is resized to 7 .*: makes room for chat: gives 1 GPUs, and its restart costs \S+ GPU-s", shown
    )
    assert re.search(r"chat runs, \S+ s after it was asked for, on 1 GPUs of tune, which lost \S+ GPU-seconds", shown)


def test_top_with_json_prints_the_apis_models(busy: Live) -> None:
    said = json.loads(CliRunner().invoke(cli, ["top", "--json"], env=environment(busy)).stdout)
    assert [node_models.NodeView.model_validate(node).total.gpus for node in said["nodes"]] == [4, 4]
    assert {http_models.WorkloadView.model_validate(view).name for view in said["workloads"]} == {
        "first",
        "shared",
        "third",
    }
    assert set(said) == {"health", "workloads", "nodes", "queues", "events"}


def test_top_of_an_empty_cluster_and_wrong_words(run: Run) -> None:
    assert "Nothing has been submitted yet." in run("top").stdout
    assert run("top", "--every", "0").exit_code == 2


def test_top_on_a_terminal_goes_on_until_it_is_interrupted(busy: Live) -> None:
    interrupted = []

    def watch(shown: bytes, process: subprocess.Popen[bytes]) -> None:
        if shown.count(b"GPUS") > 2 and not interrupted:  # several frames
            interrupted.append(process.send_signal(signal.SIGINT))

    shown = on_a_terminal(busy, "top", "--every", "0.2", watch=watch)
    assert "third" in shown
    assert "Traceback" not in shown


def test_diagnose_says_what_slows_it_what_to_do_and_what_is_not_known(busy: Live) -> None:
    def ask(*words: str) -> Result:
        return CliRunner().invoke(cli, ["diagnose", *words], env=environment(busy))

    lines = ask("third").stdout.splitlines()
    assert lines[0] == "third (waiting): 1 thing to look at."
    assert any(line.startswith("- it waits: needs 1 x 4 A100") for line in lines)
    assert any(line.startswith("  -> sooner: ") for line in lines)
    assert max(map(len, lines)) <= 80
    fine = ask("first").stdout
    assert "first (running): nothing was found that slows it." in fine
    assert "Not known: how busy its GPUs are" in fine
    assert [one.code for one in http_models.DiagnosisView.model_validate_json(ask("third", "--json").stdout).findings]
    wrong = ask("thirt")
    assert (wrong.exit_code, "third" in wrong.stderr) == (3, True)
