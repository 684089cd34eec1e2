"""GPU memory from the headers of a model's files: what is counted, what is warned of, what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_harness import ANN, ManualClock, controlling, fake_cluster

from llmsched.control import data_files, gpu_memory, model_files
from llmsched.control.gpu_memory import Verdict
from llmsched.errors import RequestError
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCAB = 3584, 28, 28, 4, 18944, 152064  # the shapes of Qwen2.5-7B
CONFIG = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32768,
}
GB = 10**9


def shapes() -> dict[str, tuple[int, ...]]:
    wide = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, out in (("q", HIDDEN), ("k", wide), ("v", wide), ("o", HIDDEN)):
            found[f"{at}.self_attn.{name}_proj.weight"] = (out, HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            found[f"{at}.mlp.{name}_proj.weight"] = shape
        found[f"{at}.input_layernorm.weight"] = (HIDDEN,)
    return found


NUMBERS = sum(math.prod(shape) for shape in shapes().values())


def write_header(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """A safetensors file of which only the header is there: nobody may read further."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape} for name, shape in tensors.items()}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def seven_billion(tmp_path: Path) -> str:
    folder = tmp_path / "seven"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    every = list(shapes().items())
    write_header(folder / "model-1-of-2.safetensors", dict(every[:100]))
    write_header(folder / "model-2-of-2.safetensors", dict(every[100:]))
    return str(folder)


def train(model: str, gpu: str = "L4:1", **more: Any) -> dict[str, Any]:
    section = {"base_model": model, "datasets": [{"path": "/data/rows.jsonl"}], **more}
    return {"name": "tune", "kind": "train", "resources": {"accelerators": [gpu]}, "train": section}


def serve(model: str, gpu: str = "L4:1", **more: Any) -> dict[str, Any]:
    section = {"model": {"source": model}, **more}
    return {"name": "chat", "kind": "serve", "resources": {"accelerators": [gpu]}, "serve": section}


def judged(data: dict[str, Any], where: str | None = "") -> gpu_memory.Verdict:
    spec = load_json(data)
    return gpu_memory.judge(
        compile_workload(spec), spec.dump(), gpu_memory.source_of(spec.dump()) if where == "" else where
    )


def test_a_model_is_measured_by_the_headers_of_all_its_files(seven_billion: str) -> None:
    files = model_files.read(seven_billion)
    left_out = LAYERS * (HIDDEN + 2 * HIDDEN // HEADS * KV_HEADS + HIDDEN) + HIDDEN  # biases, half of the norms
    assert files.numbers + left_out == 7_615_616_512  # what the real one has
    assert files.size_bytes == 2 * files.numbers
    assert files.config["num_hidden_layers"] == LAYERS


def test_a_full_fine_tune_needs_sixteen_bytes_a_number_and_is_refused_where_no_gpu_has_them(seven_billion: str) -> None:
    verdict = judged(train(seven_billion, "A100:1"))
    assert verdict.refusal is not None
    assert "at least 122 GB" in verdict.refusal.message
    assert "A100 (80 GB)" in verdict.refusal.message
    assert "train.method: lora" in verdict.refusal.hint
    assert "B200" in verdict.refusal.hint


def test_what_stands_beside_a_model_that_is_trained_whole_counts_too(seven_billion: str) -> None:
    pairs = judged(train(seven_billion, "A100:1", objective="dpo"))  # a reference in float32
    assert pairs.refusal is not None and "at least 152 GB" in pairs.refusal.message
    taught = judged(train(seven_billion, "A100:1", objective="distill", teacher="run://large"))
    assert taught.refusal is not None and "without the teacher's own" in taught.refusal.message


def test_lora_counts_the_adapter_only_for_gradients_and_moments(seven_billion: str) -> None:
    arguments = {"bf16": True, "gradient_checkpointing": True}
    data = train(seven_billion, lora={"r": 16}, max_length=512, training_args=arguments)
    need = gpu_memory.estimate(load_json(data).dump(), seven_billion)
    linear = [shape for name, shape in shapes().items() if "_proj" in name]
    adapter = 16 * sum(sum(shape) for shape in linear)
    assert need.certain == 2 * NUMBERS + 12 * adapter
    assert need.certain < need.most < 24 * GB * 0.92
    verdict = judged(data)
    assert (verdict.refusal, verdict.warnings, verdict.needed) == (None, (), need.most)
    two = train(seven_billion, lora={"r": 16, "target_modules": ["q_proj", "v_proj"]}, training_args=arguments)
    assert gpu_memory.estimate(load_json(two).dump(), seven_billion).certain < need.certain


def test_what_fits_in_the_largest_of_a_name_only_is_warned_of(seven_billion: str) -> None:
    verdict = judged(train(seven_billion, "V100:1", lora={}))
    assert verdict.refusal is None
    (warning,) = verdict.warnings
    assert "will not fit in 1 V100 (16 GB)" in warning
    assert "bf16" not in warning  # with that, and all else we know, it would not fit in 16 GB either
    assert warning.endswith("; try a GPU that has as much (A100-80G, H100, H20)")


@pytest.mark.parametrize("gpu", ["A100-40G:1", "L40S:1"])
def test_a_change_that_is_advised_makes_it_fit(seven_billion: str, gpu: str) -> None:
    method = {"method": "full"} if gpu == "A100-40G:1" else {"lora": {}}
    data = train(seven_billion, gpu, micro_batch_size=4, global_batch_size=4, **method)
    before = judged(data)
    advice = before.refusal.hint if before.refusal else before.warnings[0]
    changes = dict(re.findall(r"(\w+\.\w+): (\w+)", advice))
    assert changes["training_args.bf16"] == "true" and ("train.method" in changes) is ("method" in method)
    for change, value in changes.items():
        section, _, name = change.partition(".")
        where = data["train"].setdefault("training_args", {}) if section == "training_args" else data["train"]
        where[name] = yaml.safe_load(value)
    after = judged(data)
    assert (after.refusal, after.warnings) == (None, ())
    assert f"(about {after.needed / GB:.3g} GB)" in advice


def test_as_many_sequences_as_are_advised_fit_and_one_more_does_not(seven_billion: str) -> None:
    (warning,) = judged(serve(seven_billion)).warnings
    number = int(re.findall(r"max_num_seqs: (\d+)", warning)[0])
    assert judged(serve(seven_billion, engine_kwargs={"max_num_seqs": number})).warnings == ()
    assert judged(serve(seven_billion, engine_kwargs={"max_num_seqs": number + 1})).warnings != ()


def test_a_second_gpu_of_a_worker_does_not_help_and_half_a_gpu_has_half_the_memory(seven_billion: str) -> None:
    assert "the one of its 4 GPUs that is used" in judged(train(seven_billion, "V100:4", lora={})).warnings[0]
    half = judged(serve(seven_billion, "L4:0.5", engine_kwargs={"max_model_len": 1, "max_num_seqs": 1}))
    assert "will not fit in 0.5 L4 (12 GB)" in half.warnings[0]


def test_serving_counts_weights_and_the_cache_of_all_sequences(seven_billion: str) -> None:
    kwargs = {"max_model_len": 4096, "max_num_seqs": 8}
    need = gpu_memory.estimate(load_json(serve(seven_billion, engine_kwargs=kwargs)).dump(), seven_billion)
    assert need.certain == 2 * NUMBERS
    assert need.most - need.certain == 2 * LAYERS * KV_HEADS * 128 * 2 * 4096 * 8
    assert judged(serve(seven_billion, engine_kwargs=kwargs)).warnings == ()
    (warning,) = judged(serve(seven_billion)).warnings
    assert "32 sequences of 32768 tokens" in warning
    assert "max_num_seqs" in warning
    assert judged(serve(seven_billion, "T4:1", engine_kwargs={"dtype": "float32"})).refusal is not None


@pytest.mark.parametrize(
    "source", ["hf://org/never-downloaded", "s3://bucket/model", "/no/such/folder", "package:no_such/model"]
)
def test_a_model_that_is_not_here_is_unknown_and_never_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    verdict = judged(train(source))
    assert (verdict.needed, verdict.refusal) == (None, None)
    assert f"{source} needs is unknown" in verdict.warnings[0]


def test_a_model_in_the_hubs_cache_is_known(
    seven_billion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--org--seven"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "abc123").symlink_to(seven_billion)
    assert judged(serve("hf://org/seven", "A100:1")).needed is not None


def test_an_adapter_is_its_base_and_itself(seven_billion: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_header(folder / "adapter_model.safetensors", {"a.lora_A.weight": (16, HIDDEN)}, "F32")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": seven_billion}))
    need = gpu_memory.estimate(load_json(serve(str(folder))).dump(), str(folder))
    assert need.certain == 2 * NUMBERS + 4 * 16 * HIDDEN


def test_a_model_that_was_saved_in_8_bits_counts_as_it_is_loaded(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", {"a.weight": (64, 32), "a.weight_scale": (64, 1)}, "I8")
    config = {"dtype": "bfloat16", "quantization_config": {"format": "int-quantized"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    need = gpu_memory.estimate(load_json(serve(str(tmp_path))).dump(), str(tmp_path))
    assert need.certain == 2 * 64 * 32


def test_without_gpus_or_without_a_model_nothing_is_said(seven_billion: str) -> None:
    on_cpus = train(seven_billion)
    del on_cpus["resources"]
    task = {"name": "x", "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["L4:1"]}}
    for data in (on_cpus, task):
        assert judged(data) == gpu_memory.Verdict()


def gguf(file: Path) -> None:
    """Two tensors, one number of the architecture, a vocabulary to pass over."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    pairs = text("llama.block_count") + struct.pack("<II", 4, 3)
    pairs += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    pairs += text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0.0, 1.0)
    pairs += text("general.name") + struct.pack("<I", 8) + text("tiny")
    tensors = b"".join(
        text(name) + struct.pack("<IQQ", 2, *shape) + struct.pack("<IQ", 2, 0)
        for name, shape in (("token_embd.weight", (8, 4)), ("blk.0.attn_q.weight", (4, 4)))
    )
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 2, 4) + pairs + tensors)


def test_a_gguf_counts_as_the_float32_it_is_converted_to(tmp_path: Path) -> None:
    gguf(tmp_path / "tiny.gguf")
    files = model_files.read(str(tmp_path))
    assert (files.numbers, files.size_bytes, files.config["num_hidden_layers"]) == (48, 192, 3)


def broken(folder: Path, how: str) -> Path:
    file = folder / "model.safetensors"
    content = {
        "empty": b"",
        "longer than it is": struct.pack("<Q", 1 << 60),
        "no JSON": struct.pack("<Q", 4) + b"nope",
        "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "negative": struct.pack("<Q", 39) + b'{"a":{"dtype":"F32","shape":[-5,100000]}}',
        "no shape": struct.pack("<Q", 8) + b'{"a":{}}',
        "a list": struct.pack("<Q", 2) + b"[]",
    }
    if how == "a pipe":
        os.mkfifo(file)
    elif how == "a cut gguf":
        (folder / "model.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 2, 4) + struct.pack("<Q", 1 << 62))
    else:
        file.write_bytes(content[how])
    return folder


@pytest.mark.parametrize(
    "how", ["empty", "longer than it is", "no JSON", "deep", "negative", "no shape", "a list", "a pipe", "a cut gguf"]
)
def test_a_broken_file_makes_a_model_unknown_and_breaks_nothing(tmp_path: Path, how: str) -> None:
    with pytest.raises(model_files.UnknownModel):
        model_files.read(str(broken(tmp_path, how)))


def test_plan_and_apply_of_the_controller_know_it(seven_billion: str) -> None:
    async def scenario() -> None:
        async with controlling() as controller:
            never, fits, maybe = (
                load_json({**data, "name": name})
                for name, data in {
                    "never": train(seven_billion, "A100:1"),
                    "fits": serve(seven_billion, "A100:1", engine_kwargs={"max_model_len": 512}),
                    "maybe": serve("hf://org/unknown", "A100:1"),
                }.items()
            )
            planned = await controller.plan([never, fits, maybe], user=ANN)
            assert [one.outcome for one in planned] == ["refused", "created", "created"]
            assert planned[0].reason is not None and planned[0].reason.code == "impossible"
            assert not planned[0].placement
            assert planned[1].memory_needed_bytes is not None and not planned[1].warnings
            assert planned[2].memory_needed_bytes is None and "unknown" in planned[2].warnings[0]
            with pytest.raises(RequestError, match="never: each worker needs at least 122 GB"):
                await controller.submit([never], user=ANN)
            assert not controller.state.workloads

    asyncio.run(scenario())


def test_an_adapter_of_another_base_or_of_none_is_told_and_one_of_this_base_is_not(tmp_path: Path) -> None:
    for name, base in (("mine", "org/base"), ("theirs", "org/b"), ("none", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    named = [{"name": name, "source": str(tmp_path / name)} for name in ("mine", "theirs", "none", "elsewhere")]
    model = {"model": {"source": "hf://org/base"}, "adapters": named}
    [spec] = [load_json({"name": "chat", "kind": "serve", "serve": model})]
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(spec), spec.dump(), begins=True))
    assert verdict.warnings == (
        f"adapter theirs: {tmp_path}/theirs is of hf://org/b, and this serves hf://org/base: they may not fit together",
        f"adapter none: {tmp_path}/none names no base model, so it may be no adapter",
    )
    assert verdict.refusal is None


def test_a_batch_whose_output_is_taken_is_refused_as_a_new_run_and_not_as_one_that_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
        out = tmp_path / "out"
        section = {"input": {"path": str(tmp_path / "rows.jsonl")}, "model": "package:models/tiny", "output": str(out)}
        spec = load_json({"name": "b", "kind": "batch", "batch": section})
        async with controlling(fake_cluster(clock=ManualClock())) as controller:
            out.mkdir()
            (applied,) = await controller.submit([spec], user=ANN, idempotency_key="one")
            assert applied.outcome == "created"
            (out / "part-000000.parquet").write_text("rows")
            (planned,) = await controller.plan([spec], ANN)
            assert planned.outcome == "unchanged"
            (applied,) = await controller.submit([spec.model_copy(update={"priority": 60})], user=ANN)
            assert applied.outcome == "changed"
            await controller.cancel("b", ANN)
            with pytest.raises(RequestError, match=r"out is not empty: it has part-000000.parquet\. Name a folder"):
                await controller.submit([spec], user=ANN, again=True)
            (applied,) = await controller.submit([spec], user=ANN, idempotency_key="one")
            assert applied.outcome == "created", "what was answered is answered as before"
            other = load_json({"name": "c", "kind": "batch", "batch": section})
            (planned,) = await controller.plan([other], ANN)
            assert planned.outcome == "refused" and "out is not empty" in planned.reason.message

    asyncio.run(story())
