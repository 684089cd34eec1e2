"""How weights change beside the usual steps: preferences, a teacher, and the same on any number of workers."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest
from test_finetune import STEADY, assert_close, chat, classify, losses, made, result_of  # noqa: F401  a fixture

from llmsched.runtime import artifact

ARGS = {**STEADY, "learning_rate": 0.02, "max_steps": 5, "logging_steps": 1, "lr_scheduler_type": "constant"}
SPLITS = ("train", "test")


def alike(one: Path, two: Path, spec: dict[str, Any], **on_two: Any) -> dict[str, Any]:
    """What one worker leaves in `one`; two that stop, and one that goes on from there, leave the same in `two`."""
    assert tiny.in_worker(tiny.finetune, str(one), spec) == "done"
    stopped = tiny.gang(2, tiny.finetune, str(two), {**spec, **on_two}, 1, 4)
    assert [each.partition(" at ")[0] for each in stopped] == ["stopped"] * 2
    assert tiny.in_worker(tiny.finetune, str(two), spec, 2) == "done"
    left: dict[str, Any] = result_of(one)
    assert_close(left, result_of(two, attempt=2))
    return left


def pairs(made: Path, folder: Path, method: str, **changes: Any) -> dict[str, Any]:  # noqa: F811
    """Answers with "good" are better."""
    chance = random.Random(5)
    rows = []
    for _ in range(18):
        said = [" ".join([word, *chance.choices(["film", "plot", "very"], k=chance.randrange(1, 4))]) for word in TWO]
        rows.append({"prompt": chance.choice(["how is", "do you"]), "chosen": said[0], "rejected": said[1]})
    for name, part in zip(SPLITS, (rows[:12], rows[12:]), strict=True):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    data = [{"path": str(folder / f"{name}.jsonl"), "split": name} for name in SPLITS]
    evaluation = {"on": "test", "metrics": ["accuracy", "margin"]}
    dpo = {"objective": "dpo", "dpo": {"beta": 0.5}, "datasets": data, "evaluation": evaluation, "training_args": ARGS}
    spec = chat(made, **{**dpo, "method": method, "global_batch_size": 4, **changes})
    if method == "full":
        spec["train"].pop("lora")
    return spec


TWO = ("good", "bad")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_preferences_are_learnt_alike_on_any_number_of_workers(method: str, made: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two, spec = tmp_path / "one", tmp_path / "two", pairs(made, tmp_path, method)
    left = alike(one, two, spec)
    assert losses(one)[1] == pytest.approx(math.log(2), abs=1e-5)  # it begins as its reference
    assert left["metrics"]["eval.accuracy"] > 0.8 and left["metrics"]["eval.accuracy_before"] == 0
    told = tiny.in_worker(by_hand, str(made / "llama"), left["artifact"], str(tmp_path / "test.jsonl"), 0.5)
    assert [left["metrics"][f"eval.{name}"] for name in ("loss", "margin")] == pytest.approx(told, abs=1e-4)


def by_hand(rank: int, size: int, base: str, trained: str, file: str, beta: float) -> list[float]:
    """The loss and the margin as the paper has them, a pair at a time and by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def chance_of(model: Any, prompt: str, answer: str) -> Any:
        before = tokenizer(prompt)["input_ids"]
        after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            said = torch.log_softmax(model(torch.tensor([before + after])).logits[0], -1)
        return sum(said[len(before) - 1 + place, token] for place, token in enumerate(after))

    models = [AutoModelForCausalLM.from_pretrained(each).eval() for each in (trained, base)]  # PEFT's adapters as well
    margins = []
    for row in map(json.loads, Path(file).read_text().splitlines()):
        gains = [
            chance_of(models[0], row["prompt"], row[name]) - chance_of(models[1], row["prompt"], row[name])
            for name in ("chosen", "rejected")
        ]
        margins.append(beta * (gains[0] - gains[1]))
    found = torch.stack(margins)
    return [float(-torch.log(torch.sigmoid(found)).mean()), float(found.mean())]


@pytest.fixture(scope="module")
def teacher(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    folder = tmp_path_factory.mktemp("teacher")
    assert tiny.in_worker(tiny.finetune, str(folder), classify(made, evaluation=None)) == "done"
    return str(result_of(folder)["artifact"])


def taught(made: Path, teacher: str, folder: Path, **changes: Any) -> dict[str, Any]:  # noqa: F811
    """Two of three rows have no label."""
    rows = list(map(json.loads, (made / "train.jsonl").read_text().splitlines()))
    few = [row if number % 3 == 0 else {"text": row["text"]} for number, row in enumerate(rows)]
    (folder / "few.jsonl").write_text("\n".join(map(json.dumps, few)))
    data = [{"path": str(folder / "few.jsonl")}, {"path": str(made / "test.jsonl"), "split": "test"}]
    asked = {"temperature": 3.0, "alpha": 0.7}
    spec = {"objective": "distill", "teacher": teacher, "distill": asked, "datasets": data, "training_args": ARGS}
    return classify(made, **{**spec, "global_batch_size": 22, **changes})


def test_a_teacher_is_learnt_from_alike_on_any_number_of_workers(made: Path, teacher: str, tmp_path: Path) -> None:  # noqa: F811
    one, two, spec = tmp_path / "one", tmp_path / "two", taught(made, teacher, tmp_path)
    left = alike(one, two, spec, micro_batch_size=3)
    assert left["metrics"]["eval.accuracy"] > left["metrics"]["eval.accuracy_before"]
    told = tiny.in_worker(softened, str(made / "bert"), teacher, str(tmp_path / "few.jsonl"))
    assert losses(one)[1] == pytest.approx(told, abs=1e-4)


def softened(rank: int, size: int, base: str, teacher: str, file: str) -> float:
    """The loss before the first step, as Hinton's paper has it and by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(42)
    student = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).eval()
    known = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    rows, total = list(map(json.loads, Path(file).read_text().splitlines())), 0.0
    for row in rows:
        with torch.no_grad():
            said, true = (model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for model in (student, known))
        soft, hoped = torch.softmax(said / 3, -1), torch.softmax(true / 3, -1)
        total += 0.7 * 9 * float((hoped * (hoped.log() - soft.log())).sum())
        if "label" in row:
            total -= 0.3 * float(torch.log_softmax(said, -1)[known.config.label2id[row["label"]]])
    return total / len(rows)


def test_a_language_model_learns_the_tokens_of_its_teacher(made: Path, tmp_path: Path) -> None:  # noqa: F811
    other = chat(made, evaluation=None, method="full", training_args={**ARGS, "max_steps": 20})
    other["train"].pop("lora")
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "teacher"), other) == "done"
    teacher = result_of(tmp_path / "teacher")["artifact"]
    alike = {"objective": "distill", "teacher": teacher, "distill": {"temperature": 1.0, "alpha": 1.0}}
    spec = chat(made, **alike, method="full", training_args={**ARGS, "max_steps": 20}, evaluation=None)
    spec["train"].pop("lora")
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    found = losses(tmp_path / "one")
    assert found[20] < 0.3 * found[1]  # how far it is from the teacher, and nothing else
    assert_close(result_of(tmp_path / "one"), gang_of_two(tmp_path / "two", spec))


def gang_of_two(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    assert tiny.gang(2, tiny.finetune, str(folder), spec) == ["done"] * 2
    return result_of(folder)


def refused(folder: Path, spec: dict[str, Any]) -> str:
    answer: str = tiny.in_worker(tiny.finetune, str(folder), spec)
    assert answer.startswith("refused: ")
    return answer


def test_a_teacher_that_cannot_teach_is_refused_with_why(made: Path, teacher: str, tmp_path: Path) -> None:  # noqa: F811
    spec = taught(made, teacher, tmp_path)
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": "good film", "label": "fine"}))
    assert "are not those that the teacher tells apart (neg, pos)" in refused(tmp_path, spec)
    assert "not trained for sequence-classification" in refused(tmp_path, taught(made, str(made / "bert"), tmp_path))
    spec = chat(made, objective="distill", teacher=str(made / "stranger"))
    tiny.in_worker(strange, str(made / "llama"), str(made / "stranger"))
    assert "its tokenizer is not that of the base model" in refused(tmp_path, spec)
    same = [{"prompt": "how is", "chosen": "good", "rejected": "good"}]
    spec = pairs(made, tmp_path, "lora")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, same)))
    assert "row 1 of train.jsonl has the same answer as chosen and rejected" in refused(tmp_path, spec)


def strange(rank: int, size: int, folder: str, target: str) -> None:
    import shutil

    shutil.copytree(folder, target)
    file = Path(target, "tokenizer.json")
    file.write_text(file.read_text().replace('"grim"', '"gloomy"'))


def zeros_of(weights: dict[str, list[float]]) -> dict[str, float]:
    """The part of each matrix of a layer that is zero."""
    layers = {name: numbers for name, numbers in weights.items() if ".layer." in name and len(numbers) > 200}
    return {name: sum(number == 0 for number in numbers) / len(numbers) for name, numbers in layers.items()}


def test_pruned_weights_stay_zero_and_the_others_learn(made: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two = tmp_path / "one", tmp_path / "two"
    spec = classify(made, prune={"amount": 0.3}, training_args={**ARGS, "weight_decay": 0.1})
    left = alike(one, two, spec)
    parts = zeros_of(left["weights"])
    assert len(parts) == 12 and list(parts.values()) == pytest.approx([0.3] * 12, abs=0.002)
    assert 0.1 < left["metrics"]["sparsity"] < 0.3
    assert left["metrics"]["eval.loss"] != left["metrics"]["eval.loss_before"]


def test_a_model_is_compressed_as_it_is_and_read_again_by_whoever_names_it(
    made: Path,  # noqa: F811
    teacher: str,
    tmp_path: Path,
) -> None:
    test = [{"path": str(made / "test.jsonl"), "split": "test"}]
    change = {"base_model": teacher, "quantize": {"bits": 8}, "datasets": test, "training_args": {"max_steps": 0}}
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "small"), classify(made, **change)) == "done"
    left = artifact.read_result(str(tmp_path / "small"), "by-hand/0", 1, 1)
    small = left["artifact"]
    assert left["metrics"]["eval.loss"] == pytest.approx(left["metrics"]["eval.loss_before"], abs=1e-3)
    assert left["metrics"]["eval.loss"] != left["metrics"]["eval.loss_before"]
    apart, kinds = tiny.in_worker(read_again, teacher, small, str(tmp_path / "cache"))
    assert 0 < apart < 0.01 and kinds == ["torch.float32", "torch.int8"]
    again = classify(made, **{**change, "base_model": small, "quantize": None, "prune": {"amount": 0.5}})
    again["train"]["evaluation"] = {"on": "test", "metrics": ["loss"]}
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "again"), again) == "done"
    pruned = result_of(tmp_path / "again")
    assert pruned["metrics"]["eval.loss_before"] == left["metrics"]["eval.loss"]  # what was evaluated is what was saved
    assert min(zeros_of(pruned["weights"]).values()) >= 0.5
    bare = classify(made, **{**change, "base_model": str(made / "bert")})
    assert "weights are missing" in refused(tmp_path / "bare", bare)


def read_again(rank: int, size: int, whole: str, small: str, cache: str) -> Any:
    """How far weights are apart, of the largest of their row; and the kinds of tensors in the file."""
    import os

    from safetensors.torch import load_file

    from workloads.sources import resolve_model

    os.environ["LLMSCHED_CACHE"] = cache
    before, after = (load_file(resolve_model(each) / "model.safetensors") for each in (whole, small))
    assert before.keys() == after.keys()
    apart = [
        float(((before[name] - after[name]).abs() / before[name].abs().amax(-1, keepdim=True).clamp_min(1e-9)).max())
        for name in before
    ]
    return max(apart), sorted({str(each.dtype) for each in load_file(Path(small, "model.safetensors")).values()})


def test_a_model_without_linear_layers_is_not_compressed_in_silence(made: Path, tmp_path: Path) -> None:  # noqa: F811
    tiny.in_worker(gpt2, str(made / "llama"), str(tmp_path / "gpt2"))
    spec = chat(made, base_model=str(tmp_path / "gpt2"), method="full", prune={"amount": 0.5}, evaluation=None)
    spec["train"].pop("lora")
    assert "of linear layers, and this model has none" in refused(tmp_path / "one", spec)


def gpt2(rank: int, size: int, tokenizer: str, folder: str) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    words = AutoTokenizer.from_pretrained(tokenizer)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    words.save_pretrained(folder)


def test_an_adapter_that_is_merged_is_compressed_too(made: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = chat(made, merge=True, quantize={"bits": 8})
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    left = artifact.read_result(str(tmp_path / "one"), "by-hand/0", 1, 1)
    assert left["metrics"]["eval.loss"] < left["metrics"]["eval.loss_before"]
    again = chat(made, base_model=left["artifact"], method="full", quantize={"bits": 8}, training_args={"max_steps": 0})
    again["train"].pop("lora")
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "again"), again) == "done"
    read = artifact.read_result(str(tmp_path / "again"), "by-hand/0", 1, 1)["metrics"]
    assert read["eval.loss_before"] == read["eval.loss"] == left["metrics"]["eval.loss"]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
def test_an_adapter_learns_on_a_base_in_4_bits(made: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two, spec = tmp_path / "one", tmp_path / "two", chat(made, method="qlora")
    left = alike(one, two, spec)
    assert left["metrics"]["eval.loss"] < left["metrics"]["eval.loss_before"]
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "whole"), chat(made, method="qlora", merge=True)) == "done"
    whole = result_of(tmp_path / "whole")
    assert whole["metrics"]["eval.loss"] == pytest.approx(left["metrics"]["eval.loss"], rel=0.1)
    assert not any("absmax" in name or "lora" in name for name in whole["weights"])
