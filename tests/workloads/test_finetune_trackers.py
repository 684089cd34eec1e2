"""`report_to`: what an interrupted run leaves in a tracker is one run, with every step once."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetune_tiny as tiny
import pytest

from llmsched.runtime import Context, enter
from llmsched.spec.load import load
from workloads.finetune import trackers
from workloads.finetune.trackers import Tracker, Trackers
from workloads.sources import BadInput


def steps_of(folder: Path, name: str) -> list[int]:
    """Of a scalar in TensorBoard's files: files by name, as TensorBoard has it, without what a later one purged."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: list[int] = []
    for file in sorted(folder.glob("events.*")):
        for record in _records(file.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                found = [step for step in found if step < event.step]
            found += [event.step for value in event.summary.value if value.tag == name]
    return found


def _records(data: bytes) -> Iterator[bytes]:
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_an_interrupted_run_is_one_run_in_tensorboard_with_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.in_worker(tiny.make, str(tmp_path))
    train = {
        "base_model": str(tmp_path / "bert"),
        "task": "sequence-classification",
        "method": "full",
        "datasets": [{"path": str(tmp_path / "train.jsonl"), "split": "train"}],
        "global_batch_size": 8,
        "training_args": {"max_steps": 6, "logging_steps": 1, "report_to": ["tensorboard"]},
    }
    spec = {"train": train, "checkpoint": {"every": 600.0, "keep": 3}}
    assert tiny.in_worker(_logged, str(tmp_path / "runs"), str(tmp_path / "store"), spec, 1, 3) == "stopped at 3"
    assert tiny.in_worker(_logged, str(tmp_path / "runs"), str(tmp_path / "store"), spec, 2, 0) == "done"
    assert steps_of(tmp_path / "runs", "train/loss") == [1, 2, 3, 4, 5, 6]


def _logged(rank: int, size: int, runs: str, folder: str, spec: dict[str, Any], attempt: int, stop_after: int) -> str:
    import os

    os.environ["TENSORBOARD_LOGGING_DIR"] = runs
    return tiny.finetune(rank, size, folder, spec, attempt, stop_after)


def test_attempts_of_one_second_write_files_of_their_own_in_the_order_of_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    for done in (0, 3):
        some = Trackers(["tensorboard"], done)
        for step in range(done + 1, done + 4):
            some.log(step, {"loss": 1.0})
        some.close()
    assert len(list(tmp_path.glob("events.*"))) == 2
    assert steps_of(tmp_path, "train/loss") == [1, 2, 3, 4, 5, 6]


def test_a_step_that_is_there_already_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, dict[str, float]]] = []
    known = Tracker(lambda numbers, step: written.append((step, numbers)), lambda: None, last=4)
    monkeypatch.setitem(trackers._OPEN, "mlflow", lambda done: known)
    some = Trackers(["mlflow"], 2)
    for step in range(3, 7):
        some.log(step, {"loss": 1, "eval.f1": 0.5, "phase": "training"})
    assert written == [(step, {"train/loss": 1.0, "eval/f1": 0.5}) for step in (5, 6)]


def test_w_and_b_offline_gets_no_step_again_though_it_remembers_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    run = SimpleNamespace(
        offline=True, step=0, log=lambda numbers, step: written.append(step), finish=lambda: written.append(0)
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda: run))
    for done, until in ((0, 5), (3, 8)):  # the first is lost at 5, with its last checkpoint at 3
        with enter(Context.alone(tmp_path)):
            some = Trackers(["wandb"], done)
            for step in range(done + 1, until + 1):
                some.log(step, {"loss": 1.0})
            some.close()
    assert written == [1, 2, 3, 4, 5, 0, 6, 7, 8, 0]


def test_mlflow_s_own_database_cannot_lie_in_a_bucket_and_that_is_said_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    away = replace(Context.alone(tmp_path), storage="s3://bucket/results")
    with enter(away), pytest.raises(BadInput, match=r"with the results in s3://bucket/results; name .*MLFLOW_TRACKING"):
        Trackers(["mlflow"], 0)


@pytest.mark.parametrize(("given", "known"), [("tensorboard", ["tensorboard"]), ("none", []), ("[mlflow]", ["mlflow"])])
def test_the_spec_takes_transformers_words(given: str, known: list[str]) -> None:
    assert _train(given).training_args.report_to == known


def test_a_tool_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(Exception, match="tensorboard.*mlflow.*wandb"):
        _train("comet_ml")


def _train(report_to: str) -> Any:
    text = f"""
name: a
kind: train
train:
  base_model: hf://a/b
  datasets: [{{path: /data/a.jsonl}}]
  training_args: {{report_to: {report_to}}}
"""
    spec = load(text)[0]
    return spec.train  # type: ignore[union-attr]
