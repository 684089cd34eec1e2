"""A program that a task started uses `llmsched.runtime` as a loop does: its worker answers on a socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsched.runtime import command_link
from llmsched.runtime.command_link import NAME, Answers, CommandLink, Desk

PROGRAM = """
import os, signal, sys, time
from llmsched.runtime import artifact, checkpoint, current, elastic, progress

elastic._EVERY_S = 0.0
me = current()
print(me.gang, me.attempt, me.rank, me.world_size, me.spec["checkpoint"], me.is_command)
found = checkpoint.latest()
for step in range(found.step + 1 if found else 1, 5):
    progress.report(step=step, token=os.environ["TOKEN"])
    if elastic.should_stop():
        checkpoint.save(step, lambda folder: (folder / "a").write_text(str(step)))
        elastic.leave(step)
    if "terminated" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
artifact.save(lambda folder: (folder / "a").write_text("done"))
elastic.finished()
"""


class Worker:
    """What stands behind a desk."""

    def __init__(self, storage: Path) -> None:
        self.reported: list[dict[str, Any]] = []
        self.checkpoints: list[Any] = []
        self.is_leaving = False
        self.has_answer = False
        self.attempt = 1
        self.storage = storage

    def who(self) -> dict[str, Any]:
        spec = {"checkpoint": {"keep": 2}, "secrets": ["TOKEN"]}
        place = {"rank": 0, "world_size": 2, "attempt": self.attempt, "epoch": 1}
        names = {"name": "n", "workload": "n", "gang": "n/0", "storage": str(self.storage), "inputs": {}}
        return {**names, **place, "spec": spec}

    def answers(self) -> Answers:
        return Answers(
            self.who,
            self.reported.append,
            lambda *one: self.checkpoints.append(list(one)),
            lambda: self.is_leaving,
            lambda id, body: body if self.has_answer else None,
        )


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path / "storage")


@pytest.fixture
def desk(worker: Worker) -> Iterator[Desk]:
    desk = Desk(worker.answers())
    yield desk
    desk.close()
    assert not Path(desk.path).parent.exists()


def ran(desk: Desk, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    envs = {**os.environ, NAME: desk.path, "TOKEN": "secret-of-theirs", "LLMSCHED_DONE": str(tmp_path / "done")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=envs, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_program_knows_its_place_reports_and_leaves_a_result(desk: Desk, worker: Worker, tmp_path: Path) -> None:
    done = ran(desk, tmp_path)
    assert (done.returncode, done.stdout) == (0, "n/0 1 0 2 {'keep': 2} True\n"), done.stderr
    assert worker.reported[-1]["step"] == 4
    assert (worker.storage / "n/0/artifact/1-1/a").read_text() == "done"
    assert (tmp_path / "done").exists()
    written = (worker.storage / "n/0/1/progress.jsonl").read_text()
    assert "***" in written and "secret-of-theirs" not in written + json.dumps(worker.reported)


@pytest.mark.parametrize("told", ["asked", "terminated"])
def test_a_program_that_asks_has_its_grace_to_save_and_goes_on_from_there(
    desk: Desk, worker: Worker, tmp_path: Path, told: str
) -> None:
    worker.is_leaving = told == "asked"
    left = ran(desk, tmp_path, told)
    assert left.returncode == 0 and left.stderr == "" and not (tmp_path / "done").exists()
    assert len(worker.checkpoints) == 1
    worker.is_leaving, worker.attempt = False, 2
    assert ran(desk, tmp_path).returncode == 0
    assert worker.reported[-1]["step"] == 4 and (tmp_path / "done").exists()


def test_what_nobody_understands_is_refused_and_the_desk_goes_on(desk: Desk, worker: Worker) -> None:
    link = CommandLink(desk.path)
    for words in ({"ask": "everything"}, {"ask": "report", "values": 3}, {"ask": "checkpointed", "step": "x"}):
        with pytest.raises(ValueError):
            link._ask(words.pop("ask"), **words)  # type: ignore[arg-type]
    assert link.who() == worker.who() and worker.reported == []


def test_a_program_whose_worker_is_gone_is_to_leave_and_one_that_no_task_started_has_no_place(tmp_path: Path) -> None:
    assert CommandLink(str(tmp_path / "gone")).should_stop() is True
    code = "from llmsched.runtime import context; print(context.inside())"
    for envs in ({}, {NAME: str(tmp_path / "gone")}):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **envs}, capture_output=True, text=True)
        assert done.stdout == "None\n"


def test_a_program_asks_through_its_worker(desk: Desk, worker: Worker, tmp_path: Path) -> None:
    link = CommandLink(desk.path)
    assert link.ask("1", '{"ask": "watch"}') is None
    worker.has_answer = True
    assert link.ask("1", "x" * 1_000_000) == "x" * 1_000_000
    assert CommandLink(str(tmp_path / "gone")).ask("1", "") is None


def test_a_desk_closes_when_it_is_told_and_not_when_its_server_looks_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task of an array waited a third of a second for that, once it had ended, before the next one began."""
    monkeypatch.setattr(command_link, "_LOOK_EVERY_S", 3600.0)
    desk = Desk(worker.answers())
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(desk.path)
        line.sendall(b'{"ask": "stop"}\n')
        assert line.recv(100) == b"false\n", "it looks, and would look again in an hour"
    desk.close()
