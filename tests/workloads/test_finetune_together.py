"""Several tasks in one training: alike on any number of workers, a last layer for each, one model as the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest
import tiny_tasks
from test_finetune import STEADY, assert_close, losses, result_of

from llmsched.data import look
from llmsched.errors import SpecError
from llmsched.spec.load import load

OTHERS = ("masked-lm", "token-classification", "question-answering")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    tiny.in_worker(tiny_tasks.make, str(folder), ["sequence-classification", *OTHERS])
    return folder


def several(made: Path, others: tuple[str, ...] = OTHERS, **changes: Any) -> dict[str, Any]:
    data = [
        {"path": str(made / "sequence-classification" / f"{split}.jsonl"), "split": split}
        for split in ("train", "test")
    ]
    train = {
        "base_model": str(made / "sequence-classification" / "model"),
        "task": "sequence-classification",
        "objective": "classify",
        "method": "full",
        "datasets": [*data, *({"path": str(made / name / "train.jsonl"), "task": name} for name in others)],
        "global_batch_size": 7,
        "training_args": {**STEADY, "learning_rate": 0.01, "max_steps": 6, "logging_steps": 1},
        "evaluation": {"on": "test", "metrics": ["loss", "accuracy"], "every": 2, "best": "loss"},
    }
    return {"train": {**train, **changes}, "checkpoint": {"every": 600.0, "keep": 3}}


def test_several_tasks_and_a_resize_train_as_one_worker_does(made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert tiny.in_worker(tiny.finetune, str(one), several(made)) == "done"
    stopped = tiny.gang(2, tiny.finetune, str(two), several(made, micro_batch_size=1), 1, 4)
    assert [each.partition(" at ")[0] for each in stopped] == ["stopped"] * 2
    assert tiny.in_worker(tiny.finetune, str(two), several(made), 2) == "done"
    assert losses(two, 2)[6] == pytest.approx(losses(one)[6], abs=2e-5)
    left = result_of(one)
    assert_close(left, result_of(two, attempt=2))
    assert {name.split(":")[1].split(".")[0] for name in left["weights"]} == {
        "bert",
        "classifier",
    }  # of the main task alone


def test_every_task_teaches_the_body_they_share(made: Path, tmp_path: Path) -> None:
    def words_after(name: str, **changes: Any) -> list[float]:
        assert tiny.in_worker(tiny.finetune, str(tmp_path / name), several(made, **changes)) == "done"
        return list(result_of(tmp_path / name)["weights"]["model.safetensors:bert.embeddings.word_embeddings.weight"])

    alone = words_after("alone", others=())
    for other in OTHERS:
        assert words_after(other, others=(other,)) != pytest.approx(alone, abs=1e-4)


def test_a_task_that_reads_more_of_the_base_than_the_main_one_is_refused(made: Path, tmp_path: Path) -> None:
    labels = {"path": str(made / "sequence-classification" / "train.jsonl"), "task": "sequence-classification"}
    tokens = {"path": str(made / "token-classification" / "train.jsonl")}
    spec = several(made, task="token-classification", datasets=[tokens, labels], evaluation=None)
    said = tiny.in_worker(tiny.finetune, str(tmp_path), spec)
    assert "make sequence-classification the task of the training, and token-classification that of a data set" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": [{"path": "a"}, {"path": "b", "task": "causal-lm"}]}, '"causal-lm" is learnt alone'),
        ({"task": "causal-lm"}, '"causal-lm" is learnt alone'),
        ({"datasets": [{"path": "a"}, {"path": "b", "task": "masked-lm", "split": "test"}], "evaluation": {}},
         "are evaluated"),
        ({"datasets": [{"path": "b", "task": "masked-lm"}]}, 'of the task itself, "sequence-classification"'),
        ({"method": "lora"}, 'use "method: full"'),
        ({"objective": "distill", "teacher": "c"}, '"objective: distill" learns one task'),
        ({"evaluation": {"fraction": 0.1}}, "name a data set to evaluate on by its split"),
        ({"datasets": [{"path": "a"}, {"path": "b", "task": "mask-lm"}]}, "masked-lm"),
    ],
)  # fmt: skip
def test_tasks_that_do_not_go_together_are_refused_where_they_stand(changes: dict[str, Any], message: str) -> None:
    both = [{"path": "a"}, {"path": "b", "task": "masked-lm"}]
    train = {"base_model": "m", "task": "sequence-classification", "datasets": both}
    spec = {"name": "t", "kind": "train", "resources": {"accelerators": "A100:1"}, "train": {**train, **changes}}
    with pytest.raises(SpecError, match=message):
        load(json.dumps(spec))


def test_a_look_wants_of_each_data_set_the_columns_of_its_own_task(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"text": "a film", "label": "good"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a film"}\n')
    train = {
        "base_model": "m", "task": "sequence-classification", "objective": "classify",
        "datasets": [{"path": "labels.jsonl"}, {"path": "texts.jsonl", "task": "masked-lm"}],
    }  # fmt: skip
    assert look.look(train, tmp_path, is_complete=True)["errors"] == []
    train["datasets"][1].pop("task")
    assert "label" in look.look(train, tmp_path, is_complete=True)["errors"][0]
