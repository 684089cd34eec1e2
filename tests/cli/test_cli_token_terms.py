"""Terms of a key: from `token create` to the table that the gateway reads, and what makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmsched.api.auth import Tokens
from llmsched.cli.main import cli
from llmsched.control.routes import keys_of
from llmsched.core.state import State
from llmsched.gateway.keys import CRITICAL, STANDARD, KeyRing

Run = Callable[..., Result]
CALLER = ("--role", "caller", "--model", "qwen")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LLMSCHED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(cli, ("token", *words))


def test_what_a_key_may_is_said_once_and_reaches_the_gateway(run: Run, tmp_path: Path) -> None:
    terms = ("--priority", "critical", "--requests-per-minute", "60", "--tokens-per-minute", "20000")
    made = json.loads(run("create", "app", *CALLER, *terms, "--json").stdout)
    assert run("create", "plain", *CALLER).exit_code == 0
    listed = run("list").output
    assert "critical, 60 requests/min, 20,000 tokens/min" in listed
    told = {one["id"]: one for one in json.loads(run("list", "--json").stdout)}
    assert (told[made["id"]]["priority"], told[made["id"]]["tokens_per_minute"]) == ("critical", 20_000)
    rows = keys_of(State(), {}, Tokens(tmp_path / "home").keys())
    found = {key.user: key for key in KeyRing(rows)}
    app, plain = found["app"], found["plain"]
    assert (app.priority, app.requests_per_minute, app.tokens_per_minute) == (CRITICAL, 60, 20_000)
    assert (plain.priority, plain.requests_per_minute, plain.tokens_per_minute) == (STANDARD, None, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vic", "--role", "viewer", "--priority", "critical"), "the role viewer asks no endpoint"),
        (("aud", "--role", "auditor", "--tokens-per-minute", "5"), "the role auditor asks no endpoint"),
        (("app", *CALLER, "--requests-per-minute", "0"), "0 is not in the range x>=1"),
        (("app", *CALLER, "--priority", "urgent"), "'sheddable', 'standard', 'critical'"),
    ],
)
def test_terms_that_mean_nothing_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    done = run("create", *words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split()), done.output
