"""Context, progress, elastic and data: what a loop of one's own touches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmsched.runtime import Context, context, current, data, elastic, enter, progress


class Listener:
    """Stands where the link to a supervisor would."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def report(self, values: dict[str, Any]) -> None:
        self.heard.append(values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        raise AssertionError("no loop here saves")

    def should_stop(self) -> bool:
        return False


def test_importing_the_runtime_imports_neither_torch_nor_ray_nor_boto3() -> None:
    code = "import llmsched.runtime, sys; print([m for m in ('torch', 'ray', 'boto3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_outside_a_workload_current_says_what_to_do_and_the_rest_is_harmless(capsys: Any) -> None:
    with pytest.raises(context.NoContext, match="Context.alone"):
        current()
    progress.report(step=3, loss=0.5)
    assert capsys.readouterr().out == "progress: step=3 loss=0.5\n"
    assert elastic.should_stop() is False


def test_leaving_a_context_puts_the_old_one_back(tmp_path: Path) -> None:
    outer, inner = Context.alone(tmp_path), Context.alone(tmp_path, rank=1, world_size=2)
    with enter(outer):
        with enter(inner):
            assert current() is inner
        assert current() is outer
    assert context.inside() is None


def test_a_fast_loop_reports_seldom_and_the_last_report_arrives(tmp_path: Path) -> None:
    listener = Listener()
    with enter(Context.alone(tmp_path, supervisor=listener)):
        for step in range(1, 1001):
            progress.report(step=step, total_steps=1000, loss=1 / step)
    assert listener.heard[-1]["step"] == 1000
    assert len(listener.heard) <= 10
    lines = [json.loads(line) for line in (tmp_path / "by-hand/0/1/progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 1001))


def test_only_rank_0_reports(tmp_path: Path) -> None:
    listener = Listener()
    with enter(Context.alone(tmp_path, rank=1, world_size=2, supervisor=listener)):
        progress.report(step=1)
    assert listener.heard == [] and not any(tmp_path.iterdir())


def test_a_report_takes_plain_values_only() -> None:
    assert progress.plain_value("loss", float("nan")) == "nan"
    assert len(progress.plain_value("phase", "x" * 1000)) == 300
    with pytest.raises(TypeError, match="cannot report model="):
        progress.plain_value("model", object())


def test_shares_are_uneven_only_by_one_and_sum_up() -> None:
    assert data.shares(16, 3) == [6, 5, 5]
    assert data.shares(2, 3) == [1, 1, 0]
    assert all(sum(data.shares(batch, world)) == batch for batch in range(1, 40) for world in range(1, 9))


@pytest.mark.parametrize("resize_at", [0, 3, 7, 12])
def test_every_row_is_seen_once_an_epoch_across_a_resize(resize_at: int) -> None:
    rows, batch = 50, 8
    seen: Counter[tuple[int, int]] = Counter()
    for world, start, stop in ((3, 0, resize_at), (2, resize_at, 2 * data.steps_per_epoch(rows, batch))):
        for rank in range(world):
            cut = data.batches(rows, batch, start=start, steps=stop, seed=7, rank=rank, world_size=world)
            seen.update((epoch, row) for _, epoch, mine in cut for row in mine)
    assert seen == Counter({(epoch, row): 1 for epoch in (0, 1) for row in range(rows)})


def test_a_step_holds_the_same_rows_at_any_world_size_and_epochs_differ() -> None:
    def step_rows(world: int) -> list[list[int]]:
        ranks = [list(data.batches(20, 8, steps=6, seed=1, rank=rank, world_size=world)) for rank in range(world)]
        return [[row for rank in ranks for row in rank[step][2]] for step in range(6)]

    assert step_rows(1) == step_rows(3) == step_rows(11)
    assert step_rows(1)[:3] != step_rows(1)[3:]
    with pytest.raises(ValueError, match="nothing to train on"):
        next(data.batches(0, 8, rank=0, world_size=1))


class Asked(Listener):
    """Tells whoever asks that it is to leave."""

    def should_stop(self) -> bool:
        return True


def test_a_loop_that_heard_that_it_is_to_leave_and_returns_has_left_unless_it_says_that_it_is_done(
    tmp_path: Path,
) -> None:
    with enter(Context.alone(tmp_path, supervisor=Listener())):
        assert not elastic.should_stop() and not elastic.has_left()
    with enter(Context.alone(tmp_path, supervisor=Asked())):
        assert not elastic.has_left()  # it never asked: it came to its end
        assert elastic.should_stop() and elastic.has_left()
        elastic.finished()
        assert not elastic.has_left()
    with enter(Context.alone(tmp_path, supervisor=Asked())):
        assert not elastic.has_left()  # that was another one
