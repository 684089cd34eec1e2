"""A task's command: how it ended, and whether whoever was told to leave has left or is done."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import PATIENCE_S

from llmsched.runtime.attempt import Outcome
from llmsched.runtime.health import Pulse
from llmsched.runtime.task import Ending, TaskWorker
from llmsched.runtime.task_attempt import TaskAttempt

SAVES_AND_LEAVES = """
import os, signal, sys, time
def leave(*_):
    if sys.argv[1] == "done":
        open(os.environ["LLMSCHED_DONE"], "w").close()
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


class Worker(TaskWorker):
    """In a folder of the test: which node it is on, only Ray knows."""

    def __init__(self, folder: Path, run: list[str]) -> None:
        spec = {"task": {"run": run}}
        order = {
            "storage": str(folder / "storage"), "gang": "t/0", "attempt": 1, "epoch": 1, "envs": {}, "spec": spec,
            "members": [{"rank": 0, "memory_bytes": 0}],
        }  # fmt: skip
        folder.mkdir(exist_ok=True)
        self._here = folder
        self.said = Pulse()
        super().__init__(json.dumps(order), 0)

    def _shared_folder(self) -> Path:
        return self._here

    def _tell(self, said: Pulse) -> None:
        self.said = said


def ran(folder: Path, *run: str) -> Ending:
    return Worker(folder, list(run)).run({})


def told_to_leave(folder: Path, *words: str) -> Ending:
    """How a command ends that is told to leave once it says that it is ready."""
    worker = Worker(folder, ["python", "-c", SAVES_AND_LEAVES, *words])
    ended: list[Ending] = []
    running = threading.Thread(target=lambda: ended.append(worker.run({})))
    running.start()
    log = folder / "storage/t/0/1/logs/0.log"
    while not (log.exists() and "ready" in log.read_text()):
        running.join(0.05)
        assert running.is_alive()
    worker.stop(30.0)
    running.join(PATIENCE_S)
    return ended[0]


def judged(said: list[Ending], *, is_leaving: bool) -> Outcome:
    """What an attempt makes of what its ranks said."""
    life: Any = SimpleNamespace(is_leaving=is_leaving, left=threading.Event(), is_unused=False)
    try:
        TaskAttempt(life)._check(said, has_begun=True)
    except Outcome as found:
        return found
    return Outcome("succeeded")


def test_a_program_that_is_not_there_or_may_not_be_run_is_the_users_input(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("not executable")
    gone, closed = ran(tmp_path / "a", "no-such-program"), ran(tmp_path / "b", str(tmp_path / "mine"))
    assert (gone.code, gone.event, closed.code, closed.event) == (127, "input", 126, "input")
    assert "a program that is not there (127)" in gone.message and "may not be run (126)" in closed.message
    assert (ran(tmp_path / "c", "sh", "-c", "no-such-program").event) == "input"  # the shell's word for the same
    assert (ran(tmp_path / "d", "sh", "-c", "exit 3").event) == "error"


@pytest.mark.parametrize("code", ["0", "3"])
def test_who_is_told_to_leave_and_does_has_left_whatever_its_exit_code(tmp_path: Path, code: str) -> None:
    ending = told_to_leave(tmp_path / "a", "-", code)
    assert (ending.code, ending.says_done) == (int(code), False)
    outcome = judged([ending], is_leaving=True)
    assert (outcome.outcome, outcome.message) == ("released", f"left as asked, with exit code {code}")


def test_who_is_told_to_leave_but_is_done_says_so_by_a_file(tmp_path: Path) -> None:
    assert judged([told_to_leave(tmp_path / "a", "done", "0")], is_leaving=True).outcome == "succeeded"
    assert judged([told_to_leave(tmp_path / "b", "done", "4")], is_leaving=True).outcome == "released"


def test_a_gang_is_done_only_when_every_rank_says_so() -> None:
    done, left = Ending(code=0, says_done=True), Ending(code=0)
    assert judged([done, left], is_leaving=True).outcome == "released"
    assert judged([done, done], is_leaving=True).outcome == "succeeded"
    assert judged([left, left], is_leaving=False).outcome == "succeeded"  # nobody asked: 0 is the end of the work
