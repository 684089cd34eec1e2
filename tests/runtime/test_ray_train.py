"""Ray Train's API inside `train.loop`: what a loop reports there is published, shown, given back and kept."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from waiting import PATIENCE_S

from llmsched.runtime import Context, artifact, checkpoint, elastic, enter, environment
from llmsched.runtime.ray_train import LoopApi, is_trainer


class Supervisor:
    """Hears, and tells whoever asks whether it is to leave."""

    def __init__(self, asks_to_leave: bool = False) -> None:
        self.asks_to_leave = asks_to_leave
        self.progress: dict[str, Any] = {}
        self.steps: list[int] = []

    def report(self, values: dict[str, Any]) -> None:
        self.progress.update(values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        self.steps.append(step)

    def should_stop(self) -> bool:
        return self.asks_to_leave


def alone() -> LoopApi:
    return LoopApi(together=lambda value: value)


def of(**files: str) -> Checkpoint:
    folder = Path(tempfile.mkdtemp())
    for name, text in files.items():
        (folder / name).write_text(text)
    return Checkpoint.from_directory(folder)


def read(found: Checkpoint | None) -> dict[str, str]:
    assert found is not None
    with found.as_directory() as folder:
        return {path.name: path.read_text() for path in Path(folder).iterdir() if path.name != checkpoint.MANIFEST}


def test_what_a_loop_reports_shows_is_published_and_is_given_back_to_the_next_attempt(tmp_path: Path) -> None:
    seen = Supervisor()
    with enter(Context.alone(tmp_path, supervisor=seen)):
        api = alone()
        assert api.get_checkpoint() is None
        for epoch in range(3):
            api.report({"epoch": epoch, "loss": torch.tensor(1.0 / (epoch + 1))}, of(epoch=str(epoch)))
        api.report({"epoch": 3, "loss": 0.125, "eval": {"f1": 0.5}})
        assert read(api.get_checkpoint()) == {"epoch": "2"}
        api.keep_metrics()
    assert seen.steps == [1, 2, 3]
    assert seen.progress | {"loss": 0.125, "eval.f1": 0.5, "epoch": 3} == seen.progress
    assert artifact.read_result(str(tmp_path), "by-hand/0", 1, 1)["metrics"]["loss"] == 0.125

    with enter(Context.alone(tmp_path, attempt=2)):
        again = alone()
        assert read(again.get_checkpoint()) == {"epoch": "2"}
        assert [read(one.checkpoint) for one in again.get_all_reported_checkpoints()] == [{"epoch": "2"}]
        again.report({"loss": 0.1}, of(epoch="4"))
        assert checkpoint.latest().step == 4  # type: ignore[union-attr]  # it counts on from where the first one was


def test_the_last_checkpoint_is_the_artifact_also_of_an_attempt_that_had_only_to_return(tmp_path: Path) -> None:
    with enter(Context.alone(tmp_path)):
        api = alone()
        api.report({"loss": 1.0}, of(model="first"))
        api.report({"loss": 0.5}, of(model="last"))
    with enter(Context.alone(tmp_path, attempt=2)):
        again = alone()
        again.get_checkpoint()
        again.keep_result()
        left = artifact.read_result(str(tmp_path), "by-hand/0", 2, 1)["artifact"]
    assert (Path(left) / "model").read_text() == "last"


def test_a_loop_that_saves_an_artifact_itself_or_reports_no_checkpoint_keeps_what_it_has(tmp_path: Path) -> None:
    with enter(Context.alone(tmp_path / "own")):
        api = alone()
        api.report({}, of(model="state"))
        artifact.save(lambda folder: (folder / "mine").write_text("mine") and None)
        api.keep_result()
        left = artifact.read_result(str(tmp_path / "own"), "by-hand/0", 1, 1)["artifact"]
        assert [one.name for one in Path(left).iterdir() if one.name != "manifest.json"] == ["mine"]
    with enter(Context.alone(tmp_path / "none")):
        api = alone()
        api.report({"loss": 1.0})
        api.keep_result()
        assert artifact.read_result(str(tmp_path / "none"), "by-hand/0", 1, 1)["artifact"] is None


def test_who_is_asked_to_leave_goes_at_the_next_reported_checkpoint_and_not_before_it(tmp_path: Path) -> None:
    with enter(Context.alone(tmp_path, supervisor=Supervisor(asks_to_leave=True))):
        api = alone()
        assert api.get_preemption_info is not None
        api.report({"step": 7, "loss": 1.0})
        with pytest.raises(elastic.Stopped) as stopped:
            api.report({"step": 8, "loss": 1.0}, of(step="8"))
        assert stopped.value.step == 8 and checkpoint.latest().step == 8  # type: ignore[union-attr]
        assert elastic.has_left()  # whatever the loop makes of the exception


def test_a_step_that_goes_back_does_not_overwrite_what_is_published(tmp_path: Path) -> None:
    seen = Supervisor()
    with enter(Context.alone(tmp_path, supervisor=seen)):
        api = alone()
        for step in (10, 10, 5, 20):
            api.report({"step": step}, of(at=str(step)))
        assert read(api.get_checkpoint()) == {"at": "20"}
    assert seen.steps == [10, 11, 12, 20]


def test_what_cannot_be_shown_is_named_once_and_what_has_no_effect_is_refused(tmp_path: Path, capsys: Any) -> None:
    with enter(Context.alone(tmp_path)):
        api = alone()
        for _ in range(3):
            api.report({"loss": 1.0, "confusion": [[1, 2]], "nothing": None})
        assert capsys.readouterr().err.count("confusion is not shown: it is a list") == 1
        with pytest.raises(environment.UserError, match="validation"):
            api.report({}, of(a="a"), validation=True)
        with pytest.raises(environment.UserError, match="none is handed over"):
            api.get_dataset_shard(type("Asked", (), {"dataset_name": "train"}))


def test_parts_of_several_ranks_become_one_checkpoint(tmp_path: Path) -> None:
    """Each rank is a process of its own; rank 0's word goes through pipes."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    other = fork.Process(target=_report, args=(tmp_path, 1, lambda _: (theirs.send("here"), theirs.recv())[1]))
    other.start()

    def tell(value: Any) -> Any:
        assert ours.recv() == "here"
        ours.send(value)
        return value

    _report(tmp_path, 0, tell)
    other.join(PATIENCE_S)
    assert other.exitcode == 0
    with enter(Context.alone(tmp_path, attempt=2, world_size=3)):
        assert read(alone().get_checkpoint()) == {"shard-0": "0", "shard-1": "1", "same": "of all"}
    assert not [one for one in (tmp_path / "by-hand/0/checkpoints").rglob("parts-*") if any(one.iterdir())]


def _report(folder: Path, rank: int, together: Callable[[Any], Any]) -> None:
    with enter(Context.alone(folder, rank=rank, world_size=2)):
        api = LoopApi(together)
        api.report({"loss": 1.0}, of(**{f"shard-{rank}": str(rank), "same": "of all"}))
        with_mine = set(read(api.get_checkpoint()))  # published, whoever asks
        api.report({"loss": 0.5})
    assert with_mine == {"shard-0", "shard-1", "same"}


def handed(config: dict[str, Any]) -> None:
    Path(config["to"]).write_text(json.dumps(config))


def test_a_trainer_that_is_handed_over_runs_its_function_with_its_configuration_and_says_what_has_no_effect(
    tmp_path: Path, capsys: Any
) -> None:
    trainer = TorchTrainer(
        handed,
        train_loop_config={"to": str(tmp_path / "said"), "lr": 0.1},
        scaling_config=ScalingConfig(num_workers=4),
        run_config=RunConfig(storage_path="/elsewhere"),
    )
    assert is_trainer(trainer) and not is_trainer(handed)
    with enter(Context.alone(tmp_path)):
        alone().hand_over(trainer, {"lr": 0.2})()
    assert json.loads((tmp_path / "said").read_text())["lr"] == 0.2
    said = capsys.readouterr().err
    assert "scaling_config.num_workers, run_config.storage_path has no effect" in said


def test_outside_of_a_loop_of_ours_ray_train_says_so_itself() -> None:
    with pytest.raises(RuntimeError, match="outside of a Ray Train training function"):
        ray.train.report({})
