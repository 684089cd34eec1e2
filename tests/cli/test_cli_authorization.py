"""Roles as people meet them: a cluster file that names users, tokens for them, and what each is then told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from live import Live

from llmsched.api.auth import MAY, Tokens
from llmsched.api.home import digest
from llmsched.cli.main import cli
from llmsched.control.roles import CALLER
from llmsched.control.routes import keys_of
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


def test_a_callers_key_reaches_the_endpoints_it_names_and_nothing_of_the_controller(run: Run, fresh: Live) -> None:
    for name in ("qwen", "llama"):
        Path(f"{name}.yaml").write_text(f"name: {name}\nkind: serve\nserve: {{app: 'my.app:App'}}\n")
        assert run("ann", "apply", "-f", f"{name}.yaml").exit_code == 0
    assert run("operator", "token", "create", "app", "--role", "caller").exit_code == 2
    assert run("operator", "token", "create", "app", "--role", "viewer", "--model", "qwen").exit_code == 2
    made = run("operator", "token", "create", "app", "--role", "caller", "--model", "qwen", "--json")
    key = json.loads(made.stdout)["key"]
    endpoints = {name: fresh.controller.state.workloads[name].workload for name in ("qwen", "llama")}
    reached = {
        row["sha256"]: row["models"] for row in keys_of(fresh.controller.state, endpoints, Tokens(fresh.home).keys())
    }
    assert reached[digest(key)] == ["qwen"]
    for path in ("health", "workloads", "apply"):
        answer = httpx.get(f"{fresh.url}/api/v1/{path}", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 401
    shown = run("operator", "token", "list").stdout
    assert "app" in shown and "qwen" in shown


def test_a_callers_token_itself_is_let_in_by_no_route() -> None:
    assert all(CALLER not in roles for roles in MAY.values())


def test_all_tokens_of_somebody_who_leaves_are_revoked_at_once(run: Run, fresh: Live) -> None:
    run("operator", "token", "create", "eve")
    assert run("operator", "token", "revoke").exit_code == 2
    assert run("operator", "token", "revoke", "--user", "nobody").exit_code == 3
    assert run("operator", "token", "revoke", "--user", "eve").stdout.count("is revoked") == 2
    assert run("eve", "status").exit_code == 3
    assert run("ann", "status").exit_code == 0


@pytest.mark.parametrize("user", ["*", " "])
def test_a_token_is_for_somebody(run: Run, user: str) -> None:
    assert run("operator", "token", "create", user).exit_code == 2
