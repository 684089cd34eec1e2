"""Roles as people meet them: a cluster file that names users, tokens for them, and what each is then told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live import Live

from llmsched.cli import token
from llmsched.cli.main import cli
from llmsched.control import authorization
from llmsched.executors.fake import Script

CLUSTER = "queues: [{name: lab, roles: {submitter: [ann], admin: [cleo], viewer: [vic]}}, {name: default}]\n"
SPEC = "name: deep\nkind: task\nqueue: lab\nresources: {accelerators: A100:4}\ntask: {run: ['true']}\n"
Run = Callable[..., Result]


@pytest.fixture
def run(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LLMSCHED_HOME", str(fresh.home))
    monkeypatch.setenv("LLMSCHED_ADDRESS", fresh.url)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    tokens = {"operator": fresh.token}

    def run(who: str, *words: str) -> Result:
        return CliRunner().invoke(cli, words, env={"LLMSCHED_TOKEN": tokens[who]})

    Path("cluster.yaml").write_text(CLUSTER)
    Path("deep.yaml").write_text(SPEC)
    assert run("operator", "config", "-f", "cluster.yaml").exit_code == 0
    for user, role in (
        ("ann", "submitter"),
        ("cleo", "submitter"),
        ("vic", "viewer"),
        ("eve", "submitter"),
        ("aud", "auditor"),
    ):
        tokens[user] = json.loads(run("operator", "token", "create", user, "--role", role, "--json").stdout)["token"]
    assert run("ann", "apply", "-f", "deep.yaml").exit_code == 0
    fresh.hear("Bound", "deep/0")
    return run


def test_each_is_shown_and_may_do_what_the_queue_says(run: Run) -> None:
    for who, sees in (("ann", True), ("cleo", True), ("vic", True), ("aud", True), ("eve", False)):
        assert ("deep" in run(who, "status").output) is sees
        assert ("deep" in run(who, "nodes").output) is sees
    assert "another's workload" in run("eve", "nodes").output
    for who, said in (("eve", 'there is no workload "deep"'), ("vic", 'needs the role "submitter"'), ("aud", "role")):
        refused = run(who, "cancel", "deep")
        assert refused.exit_code == 3 and said in " ".join(refused.output.split())
    assert "name_taken" in run("eve", "apply", "-f", "deep.yaml", "--json").output
    assert run("cleo", "config", "-f", "cluster.yaml").exit_code == 3
    assert run("cleo", "cancel", "deep").exit_code == 0


def test_the_command_line_offers_the_roles_there_are() -> None:
    assert token.ROLES == authorization.ROLES


@pytest.mark.parametrize("user", ["*", " "])
def test_a_token_is_for_somebody(run: Run, user: str) -> None:
    assert run("operator", "token", "create", user).exit_code == 2
