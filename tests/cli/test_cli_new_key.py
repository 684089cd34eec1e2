"""A key that was just made counts when its command ends, and one for an endpoint that is not there says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from live import Live, Parrot, live

from llmsched.cli.main import cli


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    with live(tmp_path / "home") as found:
        monkeypatch.setenv("LLMSCHED_HOME", str(found.home))
        (found.home / "controller.json").write_text(json.dumps({"pid": 1, "url": found.url, "started": 0}))
        yield found


def made(*words: str) -> Result:
    done = CliRunner().invoke(cli, ("token", "create", "app", "--json", *words))
    assert done.exit_code == 0, done.output
    return done


def test_a_key_counts_at_the_endpoints_when_its_command_ends(house: Live) -> None:
    with house.endpoint(Parrot()) as url:
        key = json.loads(made("--role", "caller", "--model", "qwen").stdout)["key"]
        answer = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200


def test_a_key_for_an_endpoint_that_is_not_there_is_made_and_says_so(house: Live) -> None:
    with house.endpoint(Parrot()):
        done = made("--role", "caller", "--model", "qwem")
        assert 'No endpoint is called "qwem" now' in done.stderr
        assert 'The nearest is "qwen".' in done.stderr
        assert "No endpoint" not in made("--role", "caller", "--model", "qwen").stderr
    assert 'No endpoint is called "qwen" now' in made("--role", "caller", "--model", "qwen").stderr


def test_a_viewers_token_waits_for_no_endpoint(house: Live) -> None:
    with house.endpoint(Parrot()):
        assert made("--role", "viewer", "--trusting").stderr.count("\n") <= 2


def test_a_key_is_shown_whatever_becomes_of_asking_for_it(house: Live) -> None:
    """It was looked for before it was shown: where that failed, a key that counts was seen by nobody."""
    (house.home / "controller.json").write_text(json.dumps({"pid": 1, "url": f"{house.url}/gone", "started": 0}))
    assert json.loads(made("--role", "caller", "--model", "qwen").stdout)["key"]
