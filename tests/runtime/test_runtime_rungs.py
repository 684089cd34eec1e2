"""A trial of a search waits in its report at a rung, until it is let pass, asked to leave, or nobody answers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S, wait_until

from llmsched.runtime import Context, elastic, enter, progress, rungs
from llmsched.runtime.rungs import Rungs
from llmsched.runtime.storage import Storage

GANG = "sweep.t1/0"


class Supervisor:
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.stops = False

    def report(self, values: dict[str, Any]) -> None:
        self.heard.append(values)

    def should_stop(self) -> bool:
        return self.stops


class Trial:
    """Reports step after step, in a thread of its own."""

    def __init__(self, folder: Path, *steps: dict[str, Any], **changes: Any) -> None:
        self.supervisor, self.said = Supervisor(), 0
        self.store = Storage.at(folder)
        known = {"workload": "sweep.t1", "gang": GANG, "supervisor": self.supervisor, **changes}
        self._where, self._steps = Context.alone(folder, **known), steps
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with enter(self._where):
            for values in self._steps:
                progress.report(**values)
                self.said += 1

    def reaches(self, count: int) -> None:
        wait_until(lambda: self.said == count, 30, f"{count} reports")


STEPS = [{"step": step, "loss": 1.0 / step} for step in range(1, 10)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rungs, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(elastic, "_EVERY_S", 0.0)
    rungs.write(Storage.at(tmp_path), GANG, Rungs([3, 9], "step", "loss"))
    return tmp_path


def test_a_trial_waits_at_each_rung_until_it_is_let_pass_and_all_that_it_said_has_arrived(folder: Path) -> None:
    trial = Trial(folder, *STEPS)
    wait_until(lambda: trial.supervisor.heard and trial.supervisor.heard[-1]["step"] == 3, 30, "its third report")
    assert trial.said == 2, "it is inside the third"
    rungs.write(trial.store, GANG, Rungs([3, 9], "step", "loss", 3))
    wait_until(lambda: trial.supervisor.heard[-1]["step"] == 9, 30, "its ninth report")
    assert trial.said == 8
    rungs.write(trial.store, GANG, Rungs([3, 9], "step", "loss", 9))
    trial.reaches(9)
    trial.thread.join(PATIENCE_S)


def test_who_is_asked_to_leave_does_not_wait_and_who_passed_before_does_not_wait_again(folder: Path) -> None:
    trial = Trial(folder, *STEPS[:3])
    wait_until(lambda: trial.supervisor.heard and trial.supervisor.heard[-1]["step"] == 3, 30, "its third report")
    trial.supervisor.stops = True
    trial.reaches(3)
    rungs.write(trial.store, GANG, Rungs([3, 9], "step", "loss", 3))
    Trial(folder, *STEPS[:8]).reaches(8)  # the next attempt, from its checkpoint


def test_a_number_that_comes_apart_from_the_step_is_waited_with_when_it_comes(folder: Path) -> None:
    trial = Trial(folder, {"step": 4, "rate": 0.1}, {"step": 5, "rate": 0.1}, {"loss": 0.5})
    trial.reaches(2)
    wait_until(lambda: "loss" in trial.supervisor.heard[-1], 30, "the number that counts")
    rungs.write(trial.store, GANG, Rungs([3, 9], "step", "loss", 3))
    trial.reaches(3)


def test_other_work_waits_for_nobody_and_a_search_that_says_nothing_is_not_waited_for_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs.write(Storage.at(folder), "sweep/0", Rungs([3], "step", "loss"))
    Trial(folder, *STEPS, workload="sweep", gang="sweep/0").reaches(9)
    Trial(folder, *STEPS, workload="plan.part", gang="plan.part/0").reaches(9)
    Storage.at(folder).write("sweep.t2/0/rungs.json", b'{"steps": "all"}')
    Trial(folder, *STEPS, workload="sweep.t2", gang="sweep.t2/0").reaches(9)
    monkeypatch.setattr(rungs, "WAITS_AT_MOST_S", 0.0)
    Trial(folder, *STEPS).reaches(9)
