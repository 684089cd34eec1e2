"""Secrets from the command line: set from a pipe or a file, delivered to the attempt, and seen nowhere else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from live import Live

from llmsched.cli.main import cli
from llmsched.executors.fake import Script

Run = Callable[..., Result]
CANARY = "canary-8c1d-e77a"
FILE = """\
name: {name}
kind: task
secrets: [{secret}]
envs: {{MODE: quiet}}
task: {{run: ["true"]}}
"""
PAGES = (
    "/api/v1/health", "/api/v1/metrics", "/api/v1/workloads", "/api/v1/workloads/hush", "/api/v1/workloads/hush/why",
    "/api/v1/workloads/hush/story", "/api/v1/workloads/hush/logs", "/api/v1/nodes", "/api/v1/queues", "/api/v1/config",
    "/api/v1/secrets", "/api/v1/events?follow=false", "/openapi.json",
)  # fmt: skip


@pytest.fixture
def run(controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token, "COLUMNS": "120"}

    def run(*words: str, given: str | None = None, token: str = "") -> Result:
        own = {**env, "LLMSCHED_TOKEN": token} if token else env
        result = CliRunner().invoke(cli, list(words), env=own, input=given)
        assert "Traceback" not in result.output, result.output
        return result

    return run


def test_a_secret_reaches_the_attempt_and_no_output_ever(
    run: Run, controller: Live, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cluster = controller.executor.cluster
    cluster.script = lambda order: Script(runs_for_s=None)
    said = [run("secret", "set", "HF_TOKEN", given=CANARY + "\n")]
    assert said[0].exit_code == 0
    Path("spec.yaml").write_text(FILE.format(name="hush", secret="HF_TOKEN"))
    said.append(run("plan", "-f", "spec.yaml"))
    said.append(run("apply", "-f", "spec.yaml"))
    assert said[-1].exit_code == 0, said[-1].output
    controller.hear("Bound", "hush/0")
    assert cluster.attempts["llms/hush/0/1"].order.envs == {"MODE": "quiet", "HF_TOKEN": CANARY}
    said.append(run("secret", "list"))
    assert "HF_TOKEN" in said[-1].output
    looks = [["status"], ["status", "hush"], ["why", "hush"], ["story", "hush"], ["logs", "hush"], ["secret", "list"]]
    looks += [["events"], ["nodes"], ["queues"], ["config"], ["plan", "-f", "spec.yaml"], ["apply", "-f", "spec.yaml"]]
    said += [run(*words, *more) for words in looks for more in ([], ["--json"])]
    headers = {"authorization": f"Bearer {controller.token}"}
    with httpx.Client(base_url=controller.url, headers=headers) as http:
        said_by_api = [http.get(page).text for page in PAGES]
    written = [file.read_bytes() for file in controller.home.rglob("*") if file.is_file()]
    assert any(b"HF_TOKEN" in text.encode() for text in said_by_api)  # it does look where secrets are named
    for text in [
        *(result.output for result in said),
        *said_by_api,
        caplog.text,
        repr(controller.controller._store.__dict__),
    ]:
        assert CANARY not in text
    assert not any(CANARY.encode() in content for content in written)


def test_a_spec_whose_secret_is_not_set_is_refused_with_the_command_that_sets_it(run: Run) -> None:
    Path("spec.yaml").write_text(FILE.format(name="wanting", secret="NEVER_SET"))
    for words in (["plan"], ["apply"]):
        result = run(*words, "-f", "spec.yaml")
        assert result.exit_code == 3
        assert "llmsched secret set NEVER_SET" in " ".join(result.output.split())


def test_a_value_comes_from_a_file_without_its_last_newline(run: Run, controller: Live) -> None:
    Path("token.txt").write_text("two\nlines\n")
    assert run("secret", "set", "PEM", "--from-file", "token.txt").exit_code == 0
    vault = controller.controller.vault
    assert vault is not None
    (view,) = [one for one in json.loads(run("secret", "list", "--json").output)["secrets"] if one["name"] == "PEM"]
    assert vault.value(view["set_by"], "PEM") == "two\nlines"


def test_what_is_wrong_with_a_secret_is_said_without_it(run: Run) -> None:
    assert run("secret", "set", "no-name", given="long enough").exit_code == 2
    short = run("secret", "set", "PIN", given="17")
    assert short.exit_code == 2 and "17" not in short.output
    gone = run("secret", "rm", "NEVER")
    assert gone.exit_code == 3 and "llmsched secret list" in gone.output
    assert run("secret", "set", "X", "--from-file", "none.txt").exit_code == 2


def test_only_an_admin_sets_what_everyone_may_use(run: Run, controller: Live) -> None:
    ann = controller.token_of("ann", "submitter")
    assert run("secret", "set", "--shared", "EVERYONES", given="for everyone", token=ann).exit_code == 3
    assert run("secret", "set", "--shared", "EVERYONES", given="for everyone").exit_code == 0
    assert "everyone" in run("secret", "list", token=ann).output
    Path("spec.yaml").write_text(FILE.format(name="of-ann", secret="EVERYONES"))
    assert run("apply", "-f", "spec.yaml", token=ann).exit_code == 0
    assert run("secret", "rm", "--shared", "EVERYONES").exit_code == 0
    assert run("secret", "list", "--json", token=ann).output.strip() == '{\n  "secrets": []\n}'
