"""Every task of the table trains on two workers as on one, goes on after a stop on another number, measures, serves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import finetune_tiny as tiny
import pytest
import tiny_tasks
from test_finetune import STEADY, assert_close, losses, result_of

from llmsched.data.tasks import KINDS, MEASURES, metrics_of
from llmsched.spec import train as spec_train

TRAINED = list(tiny_tasks.MAKERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tiny.in_worker(tiny_tasks.make, str(folder))
    return folder


def spec_of(made: Path, name: str, **changes: Any) -> dict[str, Any]:
    task = "sequence-classification" if name == "regress" else name
    objective = "regress" if name == "regress" else next(iter(KINDS[task].learns))
    train = {
        "base_model": str(made / name / "model"),
        "task": task,
        "objective": objective,
        "method": "full",
        "datasets": [{"path": str(made / name / f"{split}.jsonl"), "split": split} for split in ("train", "test")],
        "global_batch_size": 5,
        "training_args": {**STEADY, "learning_rate": 0.01, "max_steps": 5, "logging_steps": 1},
        "evaluation": {"on": "test", "metrics": list(metrics_of(task, objective))},
    }
    return {"train": {**train, **changes}, "checkpoint": {"every": 600.0, "keep": 3}}


@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_and_a_resize_train_every_task_as_one_worker_does(name: str, made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert tiny.in_worker(tiny.finetune, str(one), spec_of(made, name)) == "done"
    stopped = tiny.gang(2, tiny.finetune, str(two), spec_of(made, name, micro_batch_size=1), 1, 4)
    assert [each.partition(" at ")[0] for each in stopped] == ["stopped"] * 2
    assert tiny.in_worker(tiny.finetune, str(two), spec_of(made, name), 2) == "done"
    assert losses(two, 2)[5] == pytest.approx(losses(one)[5], abs=2e-5)
    left = result_of(one)
    assert_close(left, result_of(two, attempt=2))
    task, objective = spec_of(made, name)["train"]["task"], spec_of(made, name)["train"]["objective"]
    assert {f"eval.{metric}" for metric in metrics_of(task, objective)} < set(left["metrics"])


def test_the_spec_names_the_tasks_and_metrics_of_the_table() -> None:
    assert set(KINDS) <= set(get_args(spec_train.Task))
    assert set(sum(MEASURES.values(), ())) <= set(get_args(spec_train.Metric))
    assert {objective for kind in KINDS.values() for objective in kind.learns} <= set(get_args(spec_train.Objective))


def asked(rank: int, size: int, folder: str, task: str, inputs: list[Any]) -> Any:
    import asyncio

    from workloads.inference.replica import _server

    os.environ["LLMSCHED_CACHE"] = str(Path(folder).parent / "cache")
    server = _server({"model": {"source": folder}, "task": task}, Path(folder), 1, 0)
    return json.loads(json.dumps(asyncio.run(server.call(server.routes[0], {"model": "x", "input": inputs}, None))))


def learnt(made: Path, name: str, folder: Path, steps: int, **changes: Any) -> Path:
    args = {"learning_rate": 0.02, "max_steps": steps, "lr_scheduler_type": "constant"}
    spec = spec_of(made, name, training_args=args, global_batch_size=14, **changes)
    assert tiny.in_worker(tiny.finetune, str(folder), spec) == "done"
    return Path(result_of(folder)["artifact"])


def test_entities_come_with_their_characters_and_only_entities_do(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "token-classification", tmp_path, 40)
    answer = tiny.in_worker(asked, str(model), "token-classification", ["the good film was bad", "the plot is dull"])
    first = [each for each in answer["data"] if each["index"] == 0]
    assert [(each["label"], each["text"]) for each in first] == [("GOOD", "good film"), ("BAD", "bad")]
    assert first[0]["at"] == {"start": 4, "end": 13} and 0 < first[0]["score"] <= 1
    assert [each["index"] for each in answer["data"]] == [0, 0]


@pytest.mark.parametrize("name", ["token-classification", "question-answering", "regress"])
def test_an_adapter_of_any_of_them_is_served_as_its_base_with_it(name: str, made: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    model = learnt(made, name, tmp_path, 2, method="lora", lora=lora, evaluation=None)
    inputs = [["how is", "a film"]] if name == "question-answering" else ["a film"]
    task = "sequence-classification" if name == "regress" else name
    answer = tiny.in_worker(asked, str(model), task, inputs)
    assert all(set(each) >= {"label", "score", "index"} for each in answer["data"])
    if name == "regress":
        assert answer["data"][0]["label"] == "value"


def test_an_answer_to_a_question_is_a_part_of_its_passage(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "question-answering", tmp_path, 40)
    pair = ["how is", "the film was very dull"]
    (found,) = tiny.in_worker(asked, str(model), "question-answering", [pair])["data"]
    assert pair[1][found["at"]["start"] : found["at"]["end"]] == found["text"] == found["label"]
    assert found["text"] in "film was very"


def test_a_number_is_answered_as_a_score(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "regress", tmp_path, 40)
    texts = ["good good good good film", "bad bad bad bad film"]
    good, bad = tiny.in_worker(asked, str(model), "sequence-classification", texts)["data"]
    assert good["label"] == "value" and good["score"] > bad["score"] + 1


def test_an_encoder_decoder_says_the_target_over_chat_and_completions(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "seq2seq-lm", tmp_path, 80)
    said, refused = tiny.in_worker(said_by, str(model))
    (choice,) = said["choices"]
    assert choice["finish_reason"] == "stop", choice
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "nice film" and said["usage"]["completion_tokens"] == 3
    assert refused.startswith('"logprobs" is not supported')


def said_by(rank: int, size: int, folder: str) -> Any:
    import asyncio

    from workloads.inference.parameters import RequestError
    from workloads.inference.replica import _server

    server = _server({"model": {"source": folder}, "task": "seq2seq-lm"}, Path(folder), 1, 0)
    body = {"model": "x", "messages": [{"role": "user", "content": "good good good plot"}], "max_tokens": 8}
    said = json.loads(json.dumps(asyncio.run(server.call("chat/completions", body, None))))
    try:
        asyncio.run(server.call("chat/completions", {**body, "logprobs": True}, None))
    except RequestError as error:
        return said, str(error)
    return said, "answered"
