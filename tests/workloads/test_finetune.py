"""Fine-tuning gives the same result on any number of workers, across stops and resizes, and says what was wrong."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest

from llmsched.runtime import artifact

# AdamW divides a gradient by its own size: one that is zero but for rounding becomes a whole step, in a direction that
# depends on the processor's kernels. With an epsilon above rounding, equal mathematics gives equal weights anywhere.
STEADY = {"adam_epsilon": 1e-4}


ABSENT = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed: nothing is refused"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny.in_worker(tiny.make, str(folder))
    return folder


def classify(made: Path, **changes: Any) -> dict[str, Any]:
    train = {
        "base_model": str(made / "bert"),
        "task": "sequence-classification",
        "method": "full",
        "datasets": [
            {"path": str(made / "train.jsonl"), "split": "train"},
            {"path": str(made / "test.jsonl"), "split": "test"},
        ],
        "global_batch_size": 8,
        "training_args": {
            **STEADY,
            "learning_rate": 0.01,
            "num_train_epochs": 2,
            "weight_decay": 0.1,
            "logging_steps": 1,
        },
        "evaluation": {"on": "test", "metrics": ["loss", "accuracy"], "every": 4},
    }
    return {"train": {**train, **changes}, "checkpoint": {"every": 600.0, "keep": 3}}


def chat(made: Path, **changes: Any) -> dict[str, Any]:
    train = {
        "base_model": str(made / "llama"),
        "task": "causal-lm",
        "method": "lora",
        "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        "datasets": [{"path": str(made / "chat.jsonl"), "split": "train"}],
        "global_batch_size": 5,
        "max_length": 24,
        "training_args": {**STEADY, "learning_rate": 0.05, "max_steps": 6, "warmup_ratio": 0.2, "logging_steps": 1},
        "evaluation": {"on": "train", "metrics": ["loss"]},
    }
    return {"train": {**train, **changes}, "checkpoint": {"every": 600.0, "keep": 3}}


def result_of(folder: Path, attempt: int = 1) -> dict[str, Any]:
    left = artifact.read_result(str(folder), "by-hand/0", attempt, 1)
    return {**left, "weights": tiny.in_worker(tiny.weights, left["artifact"])}


def losses(folder: Path, attempt: int = 1) -> dict[int, float]:
    lines = map(json.loads, (folder / f"by-hand/0/{attempt}/progress.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-5)
    assert one["weights"].keys() == other["weights"].keys()
    for name, numbers in one["weights"].items():
        assert numbers == pytest.approx(other["weights"][name], abs=1e-5), name


@pytest.mark.parametrize("spec", [classify, chat])
def test_three_workers_train_exactly_as_one_does(spec: Any, made: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert tiny.in_worker(tiny.finetune, str(one), spec(made)) == "done"
    assert tiny.gang(3, tiny.finetune, str(three), spec(made, micro_batch_size=1)) == ["done"] * 3
    assert losses(three) == pytest.approx(losses(one), abs=2e-5)
    assert len(losses(one)) == 6
    lines = [json.loads(line) for line in (three / "by-hand/0/1/progress.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "data_wait" in line]
    assert len(timed) == 6
    for line in timed:
        assert 0 <= line["data_wait"] < 1  # rows are encoded before the first step: none waits
        assert line["slowest_rank"] in range(3)
        assert 0 < line["rank_step_s"] <= line["slowest_rank_step_s"]
    assert_close(result_of(one), result_of(three))


def test_a_worker_without_a_row_in_a_step_still_takes_part(made: Path, tmp_path: Path) -> None:
    small = classify(made, global_batch_size=2, training_args={**STEADY, "learning_rate": 0.01, "max_steps": 4})
    assert tiny.gang(3, tiny.finetune, str(tmp_path / "three"), small) == ["done"] * 3
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), small) == "done"
    assert_close(result_of(tmp_path / "one"), result_of(tmp_path / "three"))


def test_the_log_tells_how_the_training_goes(made: Path, tmp_path: Path) -> None:
    assert tiny.in_worker(tiny.finetune_logged, str(tmp_path), classify(made)) == "done"
    said = (tmp_path / "log").read_text()
    assert "step 6/6: phase training, loss " in said
    assert said.index("eval.loss_before") < said.index("phase training") < said.index("phase saving")


def test_packed_samples_train_as_those_that_stand_alone(made: Path, tmp_path: Path) -> None:
    changes = {"method": "full", "lora": None, "max_length": 48, "evaluation": {"on": "train", "metrics": ["loss"]}}
    alone, packed = (
        chat(made, global_batch_size=14, **changes),
        chat(made, global_batch_size=14, packing=True, **changes),
    )
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "alone"), alone) == "done"
    assert tiny.gang(2, tiny.finetune, str(tmp_path / "packed"), packed) == ["done"] * 2
    assert "14 samples are packed into" in (tmp_path / "packed/by-hand/0/1/progress.jsonl").read_text()
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "alone"), abs=2e-5)
    assert_close(result_of(tmp_path / "alone"), result_of(tmp_path / "packed"))


@pytest.mark.parametrize("spec", [classify, chat])
def test_a_stop_and_a_resize_do_not_show_in_the_result(spec: Any, made: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.in_worker(tiny.finetune, str(whole), spec(made)) == "done"
    assert tiny.gang(3, tiny.finetune, str(parts), spec(made), 1, 3) == ["stopped at 2"] * 3
    assert tiny.gang(1, tiny.finetune, str(parts), spec(made), 2, 3) == [
        "stopped at 5" if spec is chat else "stopped at 4"
    ]
    assert tiny.gang(2, tiny.finetune, str(parts), spec(made), 3) == ["done"] * 2
    assert_close(result_of(whole), result_of(parts, attempt=3))
    assert "eval.loss_before" in result_of(parts, attempt=3)["metrics"]


def test_a_checkpoint_holds_safetensors_and_json_only_and_with_lora_no_base_weights(made: Path, tmp_path: Path) -> None:
    assert tiny.in_worker(tiny.finetune, str(tmp_path), chat(made), 1, 3) == "stopped at 2"
    (folder,) = (tmp_path / "by-hand/0/checkpoints/1-1").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "llmsched.json",
        "optimizer.safetensors",
        "trainer.json",
        "manifest.json",
    }
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(made / "llama")
    assert json.loads((folder / "llmsched.json").read_text()) == {"base_model": str(made / "llama")}
    held = tiny.in_worker(tiny.weights, str(folder))
    assert all("lora_" in name for name in held)


def test_it_learns_and_the_result_is_a_model_that_transformers_loads_with_its_labels(
    made: Path, tmp_path: Path
) -> None:
    spec = classify(made, training_args={"learning_rate": 0.01, "num_train_epochs": 20})
    assert tiny.in_worker(tiny.finetune, str(tmp_path), spec) == "done"
    left = result_of(tmp_path)
    assert left["metrics"]["eval.accuracy_before"] < 0.7 and left["metrics"]["eval.accuracy"] == 1.0
    config = json.loads((Path(left["artifact"]) / "config.json").read_text())
    assert config["label2id"] == {"neg": 0, "pos": 1} and config["architectures"] == ["BertForSequenceClassification"]
    assert (Path(left["artifact"]) / "tokenizer.json").is_file()
    assert set(left["metrics"]) == {f"eval.{name}" for name in ("loss", "accuracy", "loss_before", "accuracy_before")}


def test_pairs_and_whole_number_labels_work(made: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = [{"a": "good film", "b": chance.choice(["fine", "grim"]), "gold": number % 3} for number in range(12)]
    (tmp_path / "nli.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"text": "a", "text_pair": "b", "label": "gold"}
    spec = classify(made, datasets=[{"path": str(tmp_path / "nli.jsonl"), "columns": columns}], evaluation=None)
    assert tiny.in_worker(tiny.finetune, str(tmp_path), spec) == "done"
    config = json.loads((Path(result_of(tmp_path)["artifact"]) / "config.json").read_text())
    assert config["label2id"] == {"0": 0, "1": 1, "2": 2}


def encoded(rank: int, size: int, folder: str, row: dict[str, Any], max_length: int) -> list[Any]:
    from transformers import AutoTokenizer

    from workloads.tasks.learns.next_token import Learns
    from workloads.tasks.reads import Text
    from workloads.tasks.task import IGNORED

    tokenizer = AutoTokenizer.from_pretrained(folder)
    [found] = Learns("causal-lm", Text(tokenizer, max_length)).encoded(row)
    return [
        tokenizer.convert_ids_to_tokens(found["input_ids"]),
        tokenizer.convert_ids_to_tokens([label for label in found["labels"] if label != IGNORED]),
    ]


def test_only_what_the_assistant_says_counts_in_a_chat(made: Path) -> None:
    turns = [("user", "how do i reset"), ("assistant", "open the film"), ("user", "how"), ("assistant", "very nice")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    tokens, learned = tiny.in_worker(encoded, str(made / "llama"), row, 64)
    assert tokens[:6] == ["<|im_start|>", "user", "how", "do", "i", "reset"]
    assert learned == ["open", "the", "film", "<|im_end|>", "very", "nice", "<|im_end|>"]
    assert tiny.in_worker(encoded, str(made / "llama"), row, 12)[1] == ["open", "the", "film"]


def test_only_the_target_counts_after_a_prompt(made: Path) -> None:
    tokens, learned = tiny.in_worker(encoded, str(made / "llama"), {"text": "how do i", "target": "reset"}, 64)
    assert tokens == ["how", "do", "i", "reset", "<|im_end|>"] and learned == ["reset", "<|im_end|>"]


def text_pieces(rank: int, size: int, model: str, file: str) -> list[int]:
    from transformers import AutoTokenizer

    from workloads.tasks.learns.next_token import Learns
    from workloads.tasks.reads import Text

    task = Learns("causal-lm", Text(AutoTokenizer.from_pretrained(model), 8))
    return [len(piece["labels"]) for piece in task.samples([{"path": file, "format": "text"}], {})]


def test_a_long_text_becomes_several_samples_and_nothing_is_lost(made: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("good " * 19 + "\nbad film\n")
    assert tiny.in_worker(text_pieces, str(made / "llama"), str(tmp_path / "texts.txt")) == [8, 8, 4, 3]


def runs_out_of_memory(rank: int, size: int, folder: str, spec: dict[str, Any]) -> str:
    """The loop on a machine where more than two samples at once do not fit."""
    import torch

    from workloads.tasks.learns.one_label import Learns as Classification

    fits = Classification.collate

    def collate(self: Classification, rows: Any) -> Any:
        if len(rows) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("more than two samples")
        return fits(self, rows)

    Classification.collate = collate  # type: ignore
    return tiny.finetune(rank, size, folder, spec)


def test_running_out_of_memory_makes_micro_batches_smaller_and_changes_nothing_else(made: Path, tmp_path: Path) -> None:
    assert tiny.in_worker(runs_out_of_memory, str(tmp_path / "tight"), classify(made)) == "done"
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "roomy"), classify(made)) == "done"
    assert_close(result_of(tmp_path / "tight"), result_of(tmp_path / "roomy"))
    assert "micro-batches of 2" in (tmp_path / "tight/by-hand/0/1/progress.jsonl").read_text()


def rates(rank: int, size: int, name: str, warmup: int) -> list[list[float]]:
    import torch
    from transformers import get_scheduler

    from workloads.finetune.settings import Settings

    settings = Settings(learning_rate=0.5, lr_scheduler_type=name, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    wanted = []
    for _ in range(20):
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    return [wanted, [settings.rate(step, 20) for step in range(1, 21)]]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_the_schedule_is_the_one_transformers_has_under_that_name(name: str) -> None:
    for warmup in (0, 5):
        wanted, got = tiny.in_worker(rates, name, 0 if name == "constant" else warmup)
        assert got == pytest.approx(wanted)


def broken(made: Path, tmp_path: Path, what: str) -> dict[str, Any]:
    rows = [{"path": str(made / "train.jsonl")}, {"path": str(tmp_path / "test.jsonl"), "split": "test"}]
    match what:
        case "weights":
            (tmp_path / "model").mkdir()
            for file in (made / "llama").iterdir():
                (tmp_path / "model" / file.name).write_bytes(
                    file.read_bytes()[:2000] if "safetensors" in file.name else file.read_bytes()
                )
            return chat(made, base_model=str(tmp_path / "model"))
        case "other-model":
            (tmp_path / "model").mkdir()
            for file in (made / "llama").iterdir():
                origin = made / "bert" if "safetensors" in file.name else made / "llama"
                (tmp_path / "model" / file.name).write_bytes((origin / file.name).read_bytes())
            return chat(made, base_model=str(tmp_path / "model"))
        case "label":
            (tmp_path / "test.jsonl").write_text('{"text": "good", "label": "neutral"}')
            return classify(made, datasets=rows)
        case "column":
            (tmp_path / "test.jsonl").write_text('{"review": "good", "stars": 5}')
            return classify(made, datasets=rows)
        case "one-label":
            (tmp_path / "test.jsonl").write_text('{"text": "good", "label": 1}')
            return classify(made, datasets=[{"path": str(tmp_path / "test.jsonl")}])
        case "no-template":
            return chat(made, base_model=str(made / "bert"))
        case "too-short":
            return chat(made, max_length=2)
        case "messages":
            (tmp_path / "test.jsonl").write_text('{"messages": [{"role": "user"}]}')
            return chat(made, datasets=[{"path": str(tmp_path / "test.jsonl")}])
        case "adapter":
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "adapter_config.json").write_text("{}")
            (tmp_path / "model" / "adapter_model.safetensors").write_bytes(b"")
            return chat(made, base_model=str(tmp_path / "model"))
        case "qlora":
            return chat(made, method="qlora")
        case "target-modules":
            return chat(made, lora={"r": 2, "target_modules": ["nothing"]})
        case "diverges":
            return classify(made, training_args={"learning_rate": 1e30, "max_steps": 5, "max_grad_norm": 0})
        case "metric":
            return classify(made, evaluation={"on": "test", "metrics": ["perplexity"]})
    raise ValueError(what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "the weights in .*model cannot be loaded"),
        ("other-model", "weights are missing in .*model"),
        (
            "label",
            "test.jsonl: label 'neutral' of row 1 of test.jsonl does not occur in the training data .there: neg, pos",
        ),
        ("column", "no column 'text' for the role 'text'; found: review, stars"),
        ("one-label", "every label is '1'; expected at least two"),
        ("no-template", "no chat template"),
        ("too-short", "no token to learn within max_length 2"),
        (
            "messages",
            "test.jsonl: row 1 of test.jsonl has messages .*: turn 1 has no content",
        ),
        ("adapter", "adapter_config.json in .*model names no base model"),
        pytest.param("qlora", "bitsandbytes is not installed .* pip install 'llmsched.qlora.'", marks=ABSENT),
        ("target-modules", "lora: .*nothing"),
        ("diverges", "the loss became .* lower the learning_rate"),
        ("metric", "'perplexity' is not computed for sequence-classification; expected loss, accuracy"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(what: str, message: str, made: Path, tmp_path: Path) -> None:
    import re

    answer = tiny.in_worker(tiny.finetune, str(tmp_path), broken(made, tmp_path, what))
    assert re.match(f"refused: .*{message}", answer), answer
    assert len(answer.splitlines()) == 1
