"""Many workloads at once: named, chosen by user, queue, phase and label, read from a pipe and written into one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from live import Live, Parrot
from test_cli_output import Run, runner, task, write
from waiting import PATIENCE_S, wait_until

from llmsched.cli.main import cli
from llmsched.executors.fake import Script
from llmsched.spec import http_models
from llmsched.spec.load import load

LABELLED = "labels: {{team: {team}, stage: try}}\n"


@pytest.fixture
def run(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Three of the operator's, one of ann's; `done` has ended."""
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=0.02 if order.workload == "done" else None)
    run = runner(fresh, tmp_path, monkeypatch)
    run("apply", "--wait", "-f", write("done.yaml", task("done", more=LABELLED.format(team="nlp"))))
    run("apply", "-f", write("a.yaml", task("a", more=LABELLED.format(team="nlp")) + "---\n" + task("b")))
    monkeypatch.setenv("LLMSCHED_TOKEN", fresh.token_of("ann", "submitter"))
    with fresh.client(fresh.token_of("ann", "submitter")) as ann:
        ann.apply({"name": "hers", "kind": "task", "labels": {"team": "nlp"}, "task": {"run": ["true"]}})
    for name in ("a", "b", "hers"):
        fresh.hear("Bound", name)
    yield run


def names(result: object) -> list[str]:
    """In the first column of a table, in the order of the alphabet."""
    lines = str(getattr(result, "stdout", "")).splitlines()
    return sorted(line.split()[0] for line in lines[1:] if line.strip())


def test_workloads_are_chosen_by_user_queue_phase_and_label(run: Run) -> None:
    assert names(run("status", "--user", "ann")) == ["hers"]
    assert names(run("status", "--phase", "succeeded")) == ["done"]
    assert names(run("status", "--phase", "succeeded", "--phase", "running", "-l", "team=nlp")) == [
        "a",
        "done",
        "hers",
    ]
    assert names(run("status", "--label", "team=nlp", "--label", "stage=try")) == ["a", "done"]
    assert run("status", "--queue", "elsewhere").stdout == "There is no such workload.\n"
    assert run("status", "--label", "team").exit_code == 2
    listed = http_models.WorkloadList.model_validate_json(run("status", "--label", "team=nlp", "--json").stdout)
    assert [view.labels["team"] for view in listed.workloads] == ["nlp"] * 3


def test_several_names_are_one_table_and_whose_they_are_stands_in_it(run: Run) -> None:
    shown = run("status", "a", "hers").stdout.splitlines()
    assert shown[0].split()[:3] == ["NAME", "KIND", "USER"]
    assert {line.split()[0]: line.split()[2] == "ann" for line in shown[1:]} == {"a": False, "hers": True}
    assert "labels     stage=try, team=nlp" in run("status", "a").stdout
    assert run("status", "a", "--user", "ann").exit_code == 2


def test_what_goes_into_a_pipe_is_not_cut(run: Run, fresh: Live) -> None:
    long = "a-name-that-is-much-longer-than-a-column-of-a-table-may-be"
    run("apply", "-f", write("long.yaml", task(long, gpus=4, workers="2")))
    env = {**os.environ, "LLMSCHED_ADDRESS": fresh.url, "LLMSCHED_TOKEN": fresh.token}
    env.pop("COLUMNS", None)
    told = subprocess.run(
        [sys.executable, "-m", "llmsched.cli.main", "status"], env=env, capture_output=True, text=True
    )
    (line,) = [line for line in told.stdout.splitlines() if line.startswith(long)]
    assert told.stdout.splitlines()[0].split()[:5] == ["NAME", "KIND", "USER", "QUEUE", "PHASE"]
    assert line.endswith(fresh.client().status(long).reason.message)  # type: ignore[union-attr]


def test_a_spec_is_read_from_a_pipe(run: Run) -> None:
    assert "piped: submitted" in run("apply", "-f", "-", given=task("piped")).stdout
    wrong = run("plan", "-f", "-", given=task("x", more="num_worker: 2\n"))
    assert wrong.stderr.startswith('error: standard input:6:1: unknown key "num_worker"')


def test_what_is_chosen_is_cancelled_only_when_somebody_says_so(run: Run, fresh: Live) -> None:
    asked = run("cancel", "--label", "team=nlp")
    assert (asked.exit_code, "add --yes" in asked.stderr) == (2, True)
    assert {"a", "hers"} <= {*asked.stderr.split()}
    assert run("cancel").exit_code == 2
    assert run("cancel", "a", "--all").exit_code == 2
    done = run("cancel", "--user", "ann", "--yes")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["hers"]
    two = run("cancel", "a", "b", "--json")
    assert {view.id for view in http_models.WorkloadList.model_validate_json(two.stdout).workloads} == {"a", "b"}
    assert run("cancel", "--queue", "elsewhere", "--yes").stdout == "There is no such workload.\n"


def test_a_label_changes_nothing_that_runs(run: Run, fresh: Live) -> None:
    attempt = fresh.client().status("a").gangs[0].attempt
    planned = run("plan", "-f", write("a.yaml", task("a", more=LABELLED.format(team="vision"))))
    assert planned.stdout.splitlines()[1].endswith("goes on as it is")
    run("apply", "-f", "a.yaml")
    after = fresh.client().status("a")
    assert (after.labels["team"], after.phase, after.gangs[0].attempt) == ("vision", "running", attempt)


def _hears_ctrl_c() -> None:
    """A shell has the programs that it runs in the background ignore it, and they those that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("words", [["events", "-f"], ["logs", "-f", "b"], ["chat", "qwen"]])
def test_ctrl_c_ends_what_follows_with_130_and_without_a_traceback(run: Run, fresh: Live, words: list[str]) -> None:
    env = {**os.environ, "LLMSCHED_ADDRESS": fresh.url, "LLMSCHED_TOKEN": fresh.token}
    keyboard, screen = os.openpty()
    with fresh.endpoint(Parrot()):
        process = subprocess.Popen(
            [sys.executable, "-m", "llmsched.cli.main", *words],
            env=env,
            stdin=screen,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hears_ctrl_c,
        )
        try:
            wait_until(lambda: psutil.Process(process.pid).net_connections("tcp"), what="it never connected")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            os.close(keyboard)
            os.close(screen)
    assert "Traceback" not in out + err
    assert (process.returncode, err.endswith("stopped; what was submitted goes on.\n")) == (130, True)


def test_the_shell_is_given_a_completion_and_an_agent_its_page() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_LLMSCHED_COMPLETE" in CliRunner().invoke(cli, ["completion", shell]).stdout
    offered = CliRunner().invoke(
        cli,
        [],
        prog_name="llmsched",
        env={"_LLMSCHED_COMPLETE": "bash_complete", "COMP_WORDS": "llmsched can", "COMP_CWORD": "1"},
    )
    assert offered.stdout.split(",")[1].strip() == "cancel"
    page = CliRunner().invoke(cli, ["skill"]).stdout
    assert page.startswith("---\nname: llmsched\n")
    spec = page.split("```yaml\n")[1].split("```")[0]
    assert load(spec)[0].name == "my-fine-tune"


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_of_a_file_without_end_no_more_is_read_than_a_spec_may_have(run: Run, command: str) -> None:
    endless = run(command, "-f", "/dev/zero")
    assert endless.exit_code == 2
    assert "/dev/zero" in endless.stderr
    assert "larger than 256 KiB" in endless.stderr


def test_of_a_pipe_without_end_no_more_is_read_than_a_spec_may_have(fresh: Live, tmp_path: Path) -> None:
    env = {**os.environ, "LLMSCHED_ADDRESS": fresh.url, "LLMSCHED_TOKEN": fresh.token, "LLMSCHED_HOME": str(tmp_path)}
    with Path("/dev/zero").open("rb") as endless:
        told = subprocess.run(
            [sys.executable, "-m", "llmsched.cli.main", "apply", "-f", "-"],
            env=env, stdin=endless, capture_output=True, text=True,
        )  # fmt: skip
    assert told.returncode == 2
    assert "standard input" in told.stderr
    assert "larger than 256 KiB" in told.stderr
