"""Lightning under one callback: it saves and leaves when asked, and goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from llmsched.runtime import Context, artifact, elastic, enter

STEPS = 8


@pytest.fixture(autouse=True)
def here() -> None:
    """Lightning is imported where it is used: this file is collected by each worker, and takes seconds otherwise."""
    pytest.importorskip("lightning")


class Supervisor:
    def __init__(self, leave_at: int = 0) -> None:
        self.progress: dict[str, Any] = {}
        self._leave_at = leave_at

    def report(self, values: dict[str, Any]) -> None:
        self.progress.update(values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        self.progress["fraction"] = fraction

    def should_stop(self) -> bool:
        self._leave_at -= 1
        return self._leave_at == 0


def regression() -> Any:
    import lightning

    class Regression(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            inputs, wanted = batch
            loss = torch.nn.functional.mse_loss(self.layer(inputs), wanted)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Regression()


def trained(folder: Path, attempt: int, leave_at: int = 0) -> Supervisor:
    import lightning

    from llmsched.runtime.lightning import Elastic

    seen, model = Supervisor(leave_at), regression()
    points = torch.arange(32.0).reshape(16, 2) / 32
    loader = DataLoader(TensorDataset(points, points.sum(1, keepdim=True)), batch_size=4)
    local = folder / f"local-{attempt}"
    local.mkdir(parents=True)
    with enter(Context.alone(folder, attempt=attempt, supervisor=seen, local_dir=local)):
        one = Elastic()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            max_epochs=2, callbacks=[one], accelerator="cpu", enable_model_summary=False, **quiet
        )
        trainer.fit(model, loader, ckpt_path=one.checkpoint)
    return seen


def test_a_run_that_is_asked_to_leave_saves_goes_on_from_there_and_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "_EVERY_S", 0.0)
    with pytest.raises(elastic.Stopped) as stopped:
        trained(tmp_path, 1, leave_at=3)
    assert stopped.value.step == 3
    seen = trained(tmp_path, 2)
    assert seen.progress["step"] == seen.progress["total_steps"] == STEPS
    left = artifact.read_result(str(tmp_path), "by-hand/0", 2, 1)
    assert (Path(left["artifact"]) / "checkpoint.ckpt").exists() and left["metrics"]["loss"] > 0


def test_by_hand_there_is_nothing_to_go_on_from() -> None:
    from llmsched.runtime.lightning import Elastic

    assert Elastic().checkpoint is None
