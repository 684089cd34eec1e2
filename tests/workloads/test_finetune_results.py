"""What a fine-tuning leaves is what others load: PEFT, transformers, an endpoint of ours, and the next fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest

from llmsched.runtime import artifact

CLASSIFIER = {"task": "sequence-classification", "lora": {"r": 2, "target_modules": ["query", "value"]}}
CHAT = {"task": "causal-lm", "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny.in_worker(tiny.make, str(folder))
    rows = [{"text": f"{('good', 'bad', 'fine')[n % 3]} film", "label": ("pos", "neg", "so")[n % 3]} for n in range(9)]
    (folder / "three.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def train(made: Path, folder: Path, base: str, kind: dict[str, Any], **changes: Any) -> Path:
    """The folder of the result."""
    data = "three.jsonl" if kind is CLASSIFIER else "chat.jsonl"
    settings = {
        "base_model": base,
        "method": "lora",
        "datasets": [{"path": str(made / data)}],
        "global_batch_size": 3,
        "training_args": {"learning_rate": 0.05, "max_steps": 2},
        **kind,
        **changes,
    }
    assert tiny.in_worker(tiny.finetune, str(folder), {"train": settings, "checkpoint": {}}) == "done"
    return Path(artifact.read_result(str(folder), "by-hand/0", 1, 1)["artifact"])


def loaded(rank: int, size: int, folder: str, cache: str) -> dict[str, Any]:
    """As PEFT reads an adapter by itself, and as our endpoint reads it: the same numbers for one text."""
    import os

    import peft
    import torch
    from transformers import AutoTokenizer

    from workloads.adapters import merged

    os.environ["LLMSCHED_CACHE"] = cache
    whole = merged(Path(folder), "run://lora")
    tokenizer = AutoTokenizer.from_pretrained(whole)
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    if config["task_type"] == "SEQ_CLS":
        from transformers import AutoModelForSequenceClassification as Auto

        theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    else:
        from transformers import AutoModelForCausalLM as Auto

        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    ours = Auto.from_pretrained(whole).eval()
    inputs = tokenizer("good film", return_tensors="pt")
    with torch.inference_mode():
        there, here = theirs.eval()(**inputs).logits, ours(**inputs).logits
        base = Auto.from_pretrained(config["base_model_name_or_path"], num_labels=3)(**inputs).logits
    return {
        "base": config["base_model_name_or_path"],
        "same": bool(torch.allclose(there, here, atol=1e-5)),
        "differs": not torch.allclose(here, base, atol=1e-5),
        "labels": ours.config.label2id,
        "again": merged(Path(folder), "run://lora") == whole,
    }


@pytest.mark.parametrize(("kind", "base"), [(CLASSIFIER, "bert"), (CHAT, "llama")])
def test_an_adapter_names_its_base_as_others_find_it_and_merged_it_is_the_same_model(
    kind: dict[str, Any], base: str, made: Path, tmp_path: Path
) -> None:
    folder = train(made, tmp_path, str(made / base), kind)
    found = tiny.in_worker(loaded, str(folder), str(tmp_path / "cache"))
    assert found["base"] == str(made / base)
    assert found["same"] and found["differs"] and found["again"]
    note = json.loads((folder / "llmsched.json").read_text())
    assert note["base_model"] == str(made / base)
    if kind is CLASSIFIER:
        assert note["id2label"] == {"0": "neg", "1": "pos", "2": "so"}
        assert found["labels"] == {"neg": 0, "pos": 1, "so": 2}
    # What vLLM asks of an adapter: these files, a rank, plain LoRA without biases, matrices by the names of layers.
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["bias"] == "none" and not config["use_dora"]
    held = tiny.in_worker(tiny.weights, str(folder))
    names = [name.partition(":")[2] for name in held]
    assert all(name.startswith("base_model.model.") for name in names)
    assert kind is CLASSIFIER or all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    assert not list(folder.glob("*.bin")) and (folder / "tokenizer.json").is_file()


def served(rank: int, size: int, folder: str, cache: str) -> dict[str, Any]:
    import asyncio
    import os

    from workloads.inference.replica import server_for

    os.environ["LLMSCHED_CACHE"] = cache
    server = server_for({"model": {"source": "run://lora"}, "task": "sequence-classification"}, Path(folder), 1, 0)
    return dict(asyncio.run(server.call("classify", {"model": "x", "input": "good film"}, None)))


def test_a_classifier_with_lora_can_be_served_with_its_labels_and_trained_further(made: Path, tmp_path: Path) -> None:
    first = train(made, tmp_path / "1", str(made / "bert"), CLASSIFIER)
    answer = json.dumps(tiny.in_worker(served, str(first), str(tmp_path / "cache")))
    assert '"neg"' in answer and '"so"' in answer
    second = train(made, tmp_path / "2", str(first), CLASSIFIER)
    note = json.loads((second / "llmsched.json").read_text())
    assert note["base_model"] == str(first) and note["id2label"] == {"0": "neg", "1": "pos", "2": "so"}
    assert tiny.in_worker(loaded, str(second), str(tmp_path / "cache"))["same"]


def tuned_in(rank: int, size: int, workdir: str, store: str, spec: dict[str, Any]) -> Any:
    import os

    os.chdir(workdir)
    return tiny.finetune(rank, size, store, spec)


def test_an_adapter_of_a_base_in_the_workdir_takes_it_along(made: Path, tmp_path: Path) -> None:
    """The workdir is gone when the run has ended: whoever looked for the base there would find none."""
    workdir = shutil.copytree(made, tmp_path / "workdir")
    settings = {
        "base_model": "bert", "method": "lora", "datasets": [{"path": "three.jsonl"}], "global_batch_size": 3,
        "training_args": {"learning_rate": 0.05, "max_steps": 2}, **CLASSIFIER,
    }  # fmt: skip
    store = str(tmp_path / "store")
    assert tiny.in_worker(tuned_in, str(workdir), store, {"train": settings, "checkpoint": {}}) == "done"
    shutil.rmtree(workdir)
    folder = Path(artifact.read_result(store, "by-hand/0", 1, 1)["artifact"])
    found = tiny.in_worker(loaded, str(folder), str(tmp_path / "cache"))
    assert found["base"] == str(folder / "base") and found["same"] and found["differs"]
    again = train(made, tmp_path / "again", str(folder), CLASSIFIER)
    assert json.loads((again / "llmsched.json").read_text())["base_model"] == str(folder)


def dtypes(rank: int, size: int, folder: str) -> list[str]:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return sorted(
        {str(tensor.dtype) for tensor in load_file(Path(folder, "model.safetensors")).values()} | {str(model.dtype)}
    )


def in_half(rank: int, size: int, source: str, target: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def test_a_result_has_the_precision_of_its_base_and_merge_makes_a_whole_model(made: Path, tmp_path: Path) -> None:
    tiny.in_worker(in_half, str(made / "llama"), str(tmp_path / "half"))
    full = train(made, tmp_path / "full", str(tmp_path / "half"), CHAT, method="full")
    whole = train(made, tmp_path / "merged", str(tmp_path / "half"), CHAT, merge=True)
    for folder in (full, whole):
        assert tiny.in_worker(dtypes, str(folder)) == ["torch.bfloat16"]
        assert (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()
    plain = train(made, tmp_path / "plain", str(made / "llama"), CHAT, method="full")
    assert tiny.in_worker(dtypes, str(plain)) == ["torch.float32"]


def bases(rank: int, size: int) -> list[Any]:
    from workloads.adapters import name_of_base

    return [
        name_of_base("hf://org/name", Path("/cache/x")),
        name_of_base("hf://org/name@abc", None),
        name_of_base("package:some/model", Path("/site/some/model")),
        name_of_base("/models/a", None),
    ]


def test_a_base_of_the_hub_is_named_as_the_hub_names_it_and_any_other_by_its_folder() -> None:
    assert [tuple(each) for each in tiny.in_worker(bases)] == [
        ("org/name", None),
        ("org/name", "abc"),
        ("/site/some/model", None),
        ("/models/a", None),
    ]


def new_head(rank: int, size: int, folder: str, data: str) -> list[bool]:
    """Which parts of a classifier stay as they were when its labels become others."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from workloads.finetune.models import load_model
    from workloads.tasks.learns.one_label import Learns
    from workloads.tasks.reads import Text

    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config.id2label, config.label2id = {0: "yes", 1: "no", 2: "open"}, {"yes": 0, "no": 1, "open": 2}
    before = BertForSequenceClassification(config)
    before.save_pretrained(folder)
    found = []
    for known in ({"yes": 0, "no": 1, "open": 2}, {"Neg": 0, "Pos": 1, "So": 2}):
        reader = Text(AutoTokenizer.from_pretrained(Path(data).parent / "bert"), 16)
        task = Learns("sequence-classification", reader, known)
        task.samples([{"path": data}], {})
        after = load_model(task, {"base_model": folder}, Path(folder), None, torch.float32)
        found.append(bool(torch.equal(after.classifier.weight, before.classifier.weight)))
        found.append(bool(torch.equal(after.bert.pooler.dense.weight, before.bert.pooler.dense.weight)))
    return found


def test_a_head_whose_labels_have_another_meaning_is_made_anew_and_nothing_else(made: Path, tmp_path: Path) -> None:
    assert tiny.in_worker(new_head, str(tmp_path), str(made / "three.jsonl")) == [False, True, True, True]
