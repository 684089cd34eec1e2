"""The loop of examples/02 gives the same result in one go and from a checkpoint in the middle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmsched.runtime import Context, artifact, enter

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02_bring_your_own_loop"
CONFIG = {"steps": 60, "lr": 0.003, "global_batch_size": 64}


@pytest.fixture
def spirals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield __import__("spirals")
    sys.modules.pop("spirals", None)


def metrics(folder: Path, attempt: int) -> dict[str, Any]:
    found: dict[str, Any] = artifact.read_result(str(folder), "by-hand/0", attempt, attempt)["metrics"]
    return found


def test_the_example_loop_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    spirals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spirals, "SAVE_EVERY", 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with enter(Context.alone(tmp_path / "whole")):
        spirals.loop(CONFIG)

    stopped = tmp_path / "stopped"
    with enter(Context.alone(stopped)):
        spirals.loop({**CONFIG, "steps": 20})
    with enter(Context.alone(stopped, attempt=2, epoch=2)):
        spirals.loop(CONFIG)
    torch.set_num_threads(threads)

    assert "going on after step 20" in capsys.readouterr().out
    assert metrics(stopped, 2) == pytest.approx(metrics(tmp_path / "whole", 1))
    assert metrics(stopped, 2)["loss"] < 0.7
