"""The best model is the result, a training that brings nothing better ends, and a stop in between shows in neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
from test_finetune import STEADY, assert_close, classify, made, result_of  # noqa: F401  a fixture

WORSE = {"learning_rate": 0.3, "max_steps": 12, "lr_scheduler_type": "constant", "logging_steps": 1}  # it never settles


def best(made: Path, **changes: Any) -> dict[str, Any]:  # noqa: F811
    evaluation = {"on": "test", "metrics": ["loss", "f1"], "every": 2, "best": "loss"}
    return classify(made, training_args=WORSE, evaluation={**evaluation, **changes})


def seen(folder: Path, attempt: int = 1) -> dict[int, float]:
    lines = map(json.loads, (folder / f"by-hand/0/{attempt}/progress.jsonl").read_text().splitlines())
    return {line.get("step", 0): line["eval.loss"] for line in lines if "eval.loss" in line}


def notes(folder: Path, attempt: int = 1) -> str:
    return (folder / f"by-hand/0/{attempt}/progress.jsonl").read_text()


def test_the_result_is_the_model_of_the_best_evaluation(made: Path, tmp_path: Path) -> None:  # noqa: F811
    assert tiny.in_worker(tiny.finetune, str(tmp_path), best(made, before=False)) == "done"
    steps = seen(tmp_path)
    left = result_of(tmp_path)
    assert "eval.loss_before" not in left["metrics"], "before: false"
    assert left["metrics"]["eval.loss"] == min(steps.values()) and "eval.f1" in left["metrics"]
    assert "the result is the model of step" in notes(tmp_path)


def test_it_ends_when_evaluations_bring_nothing_better_also_over_a_stop(made: Path, tmp_path: Path) -> None:  # noqa: F811
    args = {**STEADY, "learning_rate": 0.01, "max_steps": 60, "logging_steps": 1, "lr_scheduler_type": "constant"}
    evaluation = {"on": "test", "every": 2, "best": "accuracy", "patience": 2}
    spec = classify(made, training_args=args, evaluation=evaluation)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.in_worker(tiny.finetune, str(whole), spec) == "done"
    last = max(seen(whole))
    assert "2 evaluations brought no better accuracy than 0." in notes(whole) and last < 60
    # It is asked after each step and in each evaluation: here in the evaluation of step 4, which comes after the stop.
    assert tiny.gang(2, tiny.finetune, str(parts), spec, 1, 7) == ["stopped at 4"] * 2 and max(seen(parts)) == 2
    assert tiny.in_worker(tiny.finetune, str(parts), spec, 2) == "done"
    assert max(seen(parts, 2)) == last
    assert_close(result_of(whole), result_of(parts, attempt=2))


def test_a_part_of_the_rows_is_held_out_by_the_seed(made: Path, tmp_path: Path) -> None:  # noqa: F811
    data = [{"path": str(made / "train.jsonl"), "weight": 2}]
    spec = classify(made, datasets=data, evaluation={"fraction": 0.25, "every": 1, "best": "f1"})
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    assert tiny.gang(2, tiny.finetune, str(tmp_path / "two"), spec) == ["done"] * 2
    assert "6 of the samples are held out, 32 are learnt from" in notes(tmp_path / "one")
    assert_close(result_of(tmp_path / "one"), result_of(tmp_path / "two"))
    assert "eval.f1" in result_of(tmp_path / "one")["metrics"], "what chooses the best is measured"


def test_a_data_set_comes_as_often_as_it_weighs_and_weights_may_be_of_chance(made: Path, tmp_path: Path) -> None:  # noqa: F811
    data = [{"path": str(made / "train.jsonl"), "weight": 1.5}, {"path": str(made / "test.jsonl"), "weight": 2}]
    spec = classify(made, datasets=data, evaluation=None, init="random", global_batch_size=51)
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    assert tiny.gang(2, tiny.finetune, str(tmp_path / "two"), spec) == ["done"] * 2
    assert '"total_steps": 2,' in notes(tmp_path / "one")  # 22 * 1.5 + 9 * 2 = 51 rows in each of two epochs
    assert_close(result_of(tmp_path / "one"), result_of(tmp_path / "two"))
