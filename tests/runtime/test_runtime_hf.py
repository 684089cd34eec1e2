"""Other people's trainers: they save and leave when asked, go on at another size, and end with the same loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmsched.runtime import Context, artifact, checkpoint, elastic, enter, hf
from llmsched.runtime.environment import UserError

STEPS = 12


class Supervisor:
    """Asks to leave from its `patience`-th question on."""

    def __init__(self, patience: int = 10**9) -> None:
        self.patience = patience
        self.progress: dict[str, Any] = {}
        self.steps: list[int] = []

    def report(self, values: dict[str, Any]) -> None:
        self.progress.update(values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        self.steps.append(step)

    def should_stop(self) -> bool:
        self.patience -= 1
        return self.patience < 0


@pytest.fixture(autouse=True)
def asks_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "_EVERY_S", 0.0)


def trainer(folder: Path, one: hf.Elastic, at_once: int = 8, **more: Any) -> Any:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainingArguments,
    )  # seconds, and each worker collects

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=8, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
        )
    )
    rows = [{"input_ids": (row := torch.randint(0, 16, (8,))), "labels": row} for _ in range(64)]
    args = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=at_once,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **more,
    )
    return Trainer(model=model, args=args, train_dataset=rows, callbacks=[one])


def run(folder: Path, attempt: int, patience: int = 10**9, **more: Any) -> tuple[Supervisor, list[float]]:
    """One attempt; its losses."""
    seen = Supervisor(patience)
    with enter(Context.alone(folder, attempt=attempt, supervisor=seen, local_dir=folder / "local")):
        one = hf.Elastic()
        train = trainer(folder / f"scratch-{attempt}", one, **more)
        try:
            train.train(resume_from_checkpoint=one.checkpoint)
        except elastic.Stopped as stopped:
            assert elastic.has_left() and checkpoint.latest().step == stopped.step == train.state.global_step  # type: ignore[union-attr]
        return seen, [log["loss"] for log in train.state.log_history if "loss" in log]


def test_a_run_preempted_twice_and_resized_once_ends_with_the_loss_of_the_undisturbed_one(tmp_path: Path) -> None:
    _, undisturbed = run(tmp_path / "one", 1)
    first, _ = run(tmp_path / "two", 1, patience=4)
    second, _ = run(tmp_path / "two", 2, patience=4, at_once=4)  # as two workers of four: the same rows a step
    last, losses = run(tmp_path / "two", 3, at_once=2)
    assert first.steps and second.steps and first.steps[-1] < second.steps[-1] < STEPS
    assert len(undisturbed) == len(losses) == STEPS
    assert losses == pytest.approx(undisturbed, abs=2e-3)
    assert last.progress | {"step": STEPS, "total_steps": STEPS} == last.progress
    left = artifact.read_result(str(tmp_path / "two"), "by-hand/0", 3, 1)
    assert (Path(left["artifact"]) / "model.safetensors").exists() and left["metrics"]["train_loss"] > 0


def test_what_cannot_keep_its_global_batch_is_refused_and_so_is_a_run_that_would_begin_anew(tmp_path: Path) -> None:
    run(tmp_path, 1, patience=3)
    with pytest.raises(UserError, match="global batch of 8 rows cannot be cut for 1 workers that take 3 at once"):
        run(tmp_path, 2, at_once=3)
    with (
        enter(Context.alone(tmp_path, attempt=3, local_dir=tmp_path / "local")),
        pytest.raises(UserError, match="resume_from_checkpoint=elastic.checkpoint"),
    ):
        trainer(tmp_path / "scratch", hf.Elastic()).train()
    with (
        enter(Context.alone(tmp_path, attempt=4, local_dir=tmp_path / "local")),
        pytest.raises(UserError, match="save_only_model"),
    ):
        trainer(tmp_path / "scratch", hf.Elastic(), save_only_model=True)


def test_by_hand_the_callback_changes_nothing(tmp_path: Path) -> None:
    one = hf.Elastic()
    assert one.checkpoint is None
    train = trainer(tmp_path, one)
    train.train(resume_from_checkpoint=one.checkpoint)
    assert train.state.global_step == STEPS and not (tmp_path / "out" / "checkpoint-12").exists()


def test_a_loop_with_accelerate_saves_leaves_and_goes_on(tmp_path: Path) -> None:
    from accelerate import Accelerator

    def train(attempt: int, patience: int) -> list[int]:
        done: list[int] = []
        with enter(Context.alone(tmp_path, attempt=attempt, supervisor=Supervisor(patience), local_dir=tmp_path / "l")):
            accelerator = Accelerator(cpu=True)
            model = accelerator.prepare(torch.nn.Linear(1, 1))
            for step in range(hf.resume(accelerator) + 1, 7):
                with torch.no_grad():
                    model.weight.fill_(float(step))
                done.append(step)
                hf.step(accelerator, step, 6, loss=1.0 / step)
            assert model.weight.item() == 6.0
        return done

    with pytest.raises(elastic.Stopped) as stopped:
        train(1, patience=2)
    assert train(2, patience=10**9) == list(range(stopped.value.step + 1, 7))  # type: ignore[operator]


def test_the_place_of_a_checkpoint_says_what_must_stay(tmp_path: Path) -> None:
    run(tmp_path, 1, patience=2)
    with enter(Context.alone(tmp_path, attempt=2, local_dir=tmp_path / "local")):
        found = checkpoint.latest()
        assert found is not None
        assert json.loads((checkpoint.fetch(found) / "llmsched.json").read_text()) == {"global_batch_size": 8}
