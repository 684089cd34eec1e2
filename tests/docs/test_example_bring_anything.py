"""Other people's programs of the example, run as a task's worker runs them: cut off, they go on with two workers.
Lightning's is `tests/runtime/test_runtime_lightning.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import bring_anything as bring

EXAMPLE = Path(__file__).parents[2] / "examples" / "11_bring_anything"


@pytest.mark.parametrize("name", ["accelerated", "classify"])
def test_two_lines_make_a_trainer_leave_and_go_on_with_the_loss_it_would_have_had(name: str, tmp_path: Path) -> None:
    program = [str(EXAMPLE / f"{name}.py"), *bring.tiny(name, tmp_path)]
    bring.attempt(program, tmp_path / "whole", 1, 1)
    assert bring.attempt(program, tmp_path / "cut", 1, 1, leave_at=9) in (9, 10)
    bring.attempt(program, tmp_path / "cut", 2, 2)
    whole, cut = bring.losses(tmp_path / "whole", 1), bring.losses(tmp_path / "cut", 2)
    assert list(cut) == list(whole), "every step is done once"
    assert cut[max(cut)] == pytest.approx(whole[max(whole)], rel=bring.TOLERANCE)


def test_a_loop_with_its_own_checkpoints_goes_on_where_its_folder_is_kept_with_no_line_changed(tmp_path: Path) -> None:
    run = [sys.executable, str(EXAMPLE / "nano.py")]
    envs = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(run, cwd=tmp_path, env=envs, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert next(first.stdout).startswith("step 10: loss")
        first.send_signal(signal.SIGTERM)
    assert first.returncode == -signal.SIGTERM
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *run[1:]]
    said = subprocess.run(two, cwd=tmp_path, env=envs, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] in [f"goes on from step {step}" for step in range(10, 120, 10)]
    assert 0 < float(said[-1].removeprefix("answer ")) < 3.5
