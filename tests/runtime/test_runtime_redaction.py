"""Secret values do not get into logs, however they are printed by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from llmsched.runtime import environment, progress, redaction
from llmsched.runtime.attempt import Outcome
from llmsched.runtime.replica import ReplicaHost
from llmsched.runtime.task import TaskWorker

CANARY = "canary-5f2c9e"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqh\n}\n-----END KEY-----"


def order(**secrets: str) -> dict[str, Any]:
    return {"envs": {"MODE": "quiet", **secrets}, "spec": {"secrets": list(secrets)}, "members": [{"rank": 0}]}


@pytest.fixture(autouse=True)
def nothing_hidden_afterwards() -> Iterator[None]:
    yield
    redaction.hide({"envs": {}, "spec": {}})


def test_values_that_are_no_secrets_stay_readable() -> None:
    redaction.hide(order(TOKEN=CANARY))
    assert redaction.clean(f"quiet {CANARY}!") == "quiet ***!"
    assert progress.plain_value("note", f"with {CANARY}") == "with ***"


def test_the_longer_of_two_values_that_overlap_goes_whole() -> None:
    redaction.hide(order(A="sesame", B="sesame-opened"))
    assert redaction.clean("sesame-opened sesame") == "*** ***"


def test_a_value_of_many_lines_is_hidden_line_by_line() -> None:
    redaction.hide(order(KEY=PEM))
    text = redaction.clean(f"{PEM!r} and {{x}}")
    assert "MIIEvQIB" not in text and text.endswith("and {x}")


def test_what_a_loop_prints_is_cleaned_in_the_log_and_on_its_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    redaction.hide(order(TOKEN=CANARY))
    with environment.output_to(environment.LogFile(str(tmp_path), "0.log")):
        print("token", CANARY)
        print(CANARY, file=sys.stderr)
    assert (tmp_path / "0.log").read_text() == "token ***\n***\n"
    assert CANARY not in "".join(capsys.readouterr())


@pytest.mark.parametrize("size", [3, 4096])
def test_what_a_command_writes_piece_by_piece_is_cleaned(tmp_path: Path, size: int) -> None:
    redaction.hide(order(TOKEN=CANARY))
    text = f"first\nlogin {CANARY}\r{CANARY}" + "x" * 200_000 + f"{CANARY} end"
    code = (
        "import os, sys\ntext = (sys.argv[1] + 'x' * 200_000 + sys.argv[2]).encode()\n"
        f"for n in range(0, len(text), {size}): os.write(1, text[n:n+{size}])"
    )
    before, after = text.split("x" * 200_000)
    child = subprocess.Popen([sys.executable, "-c", code, before, after], stdout=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None
    redaction.pump(child.stdout, (tmp_path / "log").open("wb", buffering=0)).join(PATIENCE_S)
    assert child.wait() == 0
    assert (tmp_path / "log").read_bytes().decode() == text.replace(CANARY, "***")


def test_the_log_of_a_command_and_what_is_said_of_its_end_are_cleaned(tmp_path: Path) -> None:
    about = {**order(TOKEN=CANARY), "storage": str(tmp_path / "storage"), "gang": "login/0", "attempt": 1}
    about["members"] = [{"rank": 0, "memory_bytes": 0}]
    worker = TaskWorker(json.dumps(about), 0)
    worker._folder = tmp_path
    code = worker._run(["sh", "-c", 'echo "with $TOKEN"; echo "no $TOKEN" >&2; exit 3'], [worker._envs({})]).code
    assert code == 3
    assert (tmp_path / "storage/login/0/1/logs/0.log").read_text() == "with ***\nno ***\n"
    assert worker._last_words() == "; last line: no ***"


class Forgetful:
    """A replica that cannot be made, and says more than it should."""

    def __init__(self, given: dict[str, Any]) -> None:
        assert "envs" not in given
        raise ValueError(f"no access with {os.environ['REPLICA_TOKEN']}")


def test_a_replica_that_fails_does_not_tell_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICA_TOKEN", "")  # put back afterwards
    with pytest.raises(RuntimeError) as caught:
        ReplicaHost(json.dumps(order(REPLICA_TOKEN=CANARY)), f"{__name__}:Forgetful")
    assert "no access with ***" in str(caught.value) and caught.value.__suppress_context__


def test_how_an_attempt_ended_is_told_without_its_secret() -> None:
    redaction.hide(order(TOKEN=CANARY))
    assert Outcome("failed", f"rank 0: ValueError: no access with {CANARY}").message.endswith("no access with ***")


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_at_a_terminal_a_value_is_hidden_however_it_is_cut_and_all_else_is_shown(piece: int) -> None:
    redaction.hide(order(TOKEN=CANARY, LONGER=f"{CANARY}-and-more", ACROSS=f"x{CANARY[:4]}"))
    said = f"$ {CANARY} {CANARY}-and-more x{CANARY[:4]}y {CANARY[:6]} {CANARY}-and {CANARY}".encode()
    flow = redaction.Flow()
    shown = b"".join(flow.cleaned(said[at : at + piece]) for at in range(0, len(said), piece)) + flow.rest()
    assert shown == f"$ *** *** ***y {CANARY[:6]} ***-and ***".encode()


def test_at_a_terminal_what_begins_no_value_is_shown_at_once() -> None:
    redaction.hide(order(TOKEN=CANARY))
    flow = redaction.Flow()
    assert flow.cleaned(b"bash$ ") == b"bash$ "
    assert (flow.cleaned(CANARY[:3].encode()), flow.cleaned(b"!")) == (b"", f"{CANARY[:3]}!".encode())
