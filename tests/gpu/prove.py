"""What `prove.sh` runs: one fine-tune and one engine on the GPU in bf16, and the same, smaller, on the CPU.

Imports nothing of ours that needs Ray. Start at `main`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import platform
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ANSWERS = {"red": "stop", "green": "go", "blue": "wait", "white": "begin", "black": "end", "grey": "ask"}


class Size(NamedTuple):
    """Of a model of chance, and of what is done with it."""

    hidden: int
    layers: int
    steps: int  # of training
    tokens: int  # of an answer
    at: tuple[int, ...]  # requests at once


SIZES = {"cuda": Size(2048, 16, 60, 128, (1, 16, 64)), "cpu": Size(128, 2, 30, 16, (1, 8))}
ON_CPU_BESIDE = Size(2048, 16, 2, 8, (1, 4))  # the GPU's model, as far as it is bearable


class Failed(Exception):
    """A check that did not hold."""


def main() -> None:
    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if has_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": importlib.import_module("transformers").__version__,
        "peft": importlib.util.find_spec("peft") is not None,
        "ray": importlib.util.find_spec("ray") is not None,
    }
    tell("machine", ", ".join(f"{name} {value}" for name, value in found.items()))
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = attempt("a model", failures, lambda: model_in(folder, SIZES[device], found))
        if model is not None:
            dtype = "bfloat16" if has_gpu else "float32"
            for where, size in [(device, SIZES[device])] + ([("cpu", ON_CPU_BESIDE)] if has_gpu else []):
                precise = dtype if where == device else "float32"
                proof = Proof(where, precise, size, model, folder / where)
                trained = attempt(f"a fine-tune on {where}", failures, proof.fine_tune)
                served = attempt(f"an engine on {where}", failures, proof.serve)
                found[where] = {"fine_tune": trained, "serve": served}
    found["failures"] = failures
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    if failures:
        tell("FAILED", "; ".join(failures))
        sys.exit(1)
    tell("PROVEN" if has_gpu else "RAN ON A CPU", f"on {found['device']}" if has_gpu else "proves nothing about GPUs")


class Proof:
    def __init__(self, device: str, dtype: str, size: Size, model: Path, folder: Path) -> None:
        self.device, self.dtype, self.size, self.model, self.folder = device, dtype, size, model, folder
        self.result = model

    def fine_tune(self) -> dict[str, Any]:
        """Our own loop on one worker, until it has learnt six answers by heart."""
        from llmsched.runtime import Context, enter
        from workloads.finetune import loop

        self.folder.mkdir()
        data = self.folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(480)))
        method = "lora" if importlib.util.find_spec("peft") else "full"
        train: dict[str, Any] = {
            "base_model": str(self.model), "task": "causal-lm", "method": method,
            "datasets": [{"path": str(data)}], "global_batch_size": 8, "max_length": 64,
            "training_args": {
                "learning_rate": 5e-3 if method == "lora" else 5e-4, "max_steps": self.size.steps,
                "bf16": self.device == "cuda", "logging_steps": 1,
            },
        }  # fmt: skip
        if method == "lora":
            train["lora"] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
        losses: list[float] = []
        with device_hidden(self.device == "cpu"), enter(Context.alone(self.folder, {"train": train})):
            began = time.perf_counter()
            with heard(losses):
                loop.run()
            took = time.perf_counter() - began
        if len(losses) < 2 or not losses[-1] < losses[0]:
            raise Failed(f"the loss did not fall: {losses[:1]} to {losses[-1:]}")
        self.result = next(iter(sorted(self.folder.glob("by-hand/0/artifact/*"))))
        figures = {
            "method": method,
            "steps": self.size.steps,
            "first_loss": round(losses[0], 3),
            "last_loss": round(losses[-1], 3),
            "seconds_with_loading": round(took, 1),
            "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.device == "cuda" else None,
        }
        tell(f"fine-tune on {self.device}", figures)
        return figures

    def serve(self) -> dict[str, Any]:
        """Our own engine, beside `generate` on the same device and precision."""
        from workloads.inference.engine import Settings, TransformersEngine

        is_adapter = (self.result / "adapter_config.json").exists()
        engine = TransformersEngine(
            self.model if is_adapter else self.result,
            Settings(dtype=self.dtype, max_num_seqs=max(self.size.at), max_waiting=300),
            torch.device(self.device),
        )
        try:
            return self._figures(engine, is_adapter)
        finally:
            engine.close()

    def _figures(self, engine: Any, is_adapter: bool) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        asked = [
            chat(engine, f"what is {color} number {n}") for n, color in zip(range(64), many(ANSWERS), strict=False)
        ]
        alike = [
            self._generated(engine, ids) == asyncio.run(say(engine, ids, self.size.tokens))[0] for ids in asked[:8]
        ]
        figures["as_generate"] = f"{sum(alike)} of 8"
        if sum(alike) < (6 if self.dtype == "bfloat16" else 8):  # in bf16 two words may be as likely
            raise Failed(f"the engine says as generate does only {sum(alike)} of 8 times")
        for count in self.size.at:
            told, took = timed(lambda count=count: asyncio.run(together(engine, asked[:count], self.size.tokens)))
            figures[f"tokens_per_s_at_{count}"] = round(sum(tokens for _, tokens, _ in told) / took, 1)
        long = chat(engine, "word " * 400 + "end")
        first = [asyncio.run(say(engine, long, 1))[2] for _ in range(2)]
        figures["first_word_ms"], figures["first_word_again_ms"] = (round(1000 * seconds, 1) for seconds in first)
        figures["300_clients_vanish_s"] = round(asyncio.run(vanish(engine, asked)), 3)
        if is_adapter:
            asyncio.run(engine.load_adapter("learnt", self.result))
            figures["learnt"] = self._learnt(engine)
        tell(f"engine on {self.device}, {self.dtype}", figures)
        return figures

    def _generated(self, engine: Any, ids: Sequence[int]) -> str:
        """By transformers, with the engine's own model, whose thread rests meanwhile."""
        given = torch.tensor([ids], device=self.device)
        with torch.inference_mode():
            out = engine._adapters._model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=self.size.tokens, do_sample=False
            )
        return str(engine.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))

    def _learnt(self, engine: Any) -> str:
        """Rows with and without the adapter in one batch; how many answers it knows that the base does not."""

        async def ask() -> list[Any]:
            each = [chat(engine, f"what is {color}") for color in ANSWERS]
            rows = [say(engine, ids, 8, adapter) for ids in each for adapter in ("learnt", None)]
            return await asyncio.gather(*rows)

        told = [text for text, _, _ in asyncio.run(ask())]
        known = sum(text.strip() == answer for text, answer in zip(told[::2], ANSWERS.values(), strict=True))
        if not any(one != other for one, other in zip(told[::2], told[1::2], strict=True)):
            raise Failed("with the adapter it says what it says without")
        return f"{known} of {len(ANSWERS)}"


# --- what is used -------------------------------------------------------------------------------------------------


def model_in(folder: Path, size: Size, found: dict[str, Any]) -> Path:
    """One of chance, of about 0.75 billion numbers on a GPU: nothing has to be fetched."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)} | {"</s>": 256, "<pad>": 257}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = CHAT
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=258, hidden_size=size.hidden, intermediate_size=size.hidden * 11 // 4, num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64, num_key_value_heads=size.hidden // 128, max_position_embeddings=4096,
        eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    made = folder / "model"
    LlamaForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    found["model"] = f"random weights, {size.layers} layers of {size.hidden}"
    return made


def rows(count: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(1)
    for _ in range(count):
        color = draw.choice(list(ANSWERS))
        said = ({"role": "user", "content": f"what is {color}"}, {"role": "assistant", "content": ANSWERS[color]})
        yield {"messages": list(said)}


def many(colors: dict[str, str]) -> Iterator[str]:
    while True:
        yield from colors


def chat(engine: Any, text: str) -> list[int]:
    said = [{"role": "user", "content": text}]
    shown = engine.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return list(engine.tokenizer(shown, add_special_tokens=False)["input_ids"])


async def say(engine: Any, ids: Sequence[int], tokens: int, adapter: str | None = None) -> tuple[str, int, float]:
    """Text, tokens, and seconds to the first word."""
    from llmsched.data.parameters import Sampling

    began, text, count, first = time.perf_counter(), "", 0, 0.0
    async with aclosing(engine.generate(ids, Sampling(max_tokens=tokens, temperature=0.0), adapter)) as pieces:
        async for piece in pieces:
            first = first or time.perf_counter() - began
            text, count = text + piece.text, piece.completion_tokens
    return text, count, first


async def together(engine: Any, asked: Sequence[Sequence[int]], tokens: int) -> list[tuple[str, int, float]]:
    return await asyncio.gather(*(say(engine, ids, tokens) for ids in asked))


async def vanish(engine: Any, asked: Sequence[Sequence[int]]) -> float:
    """300 clients that stream leave at one moment: seconds until nothing of theirs is left."""
    from llmsched.data.parameters import Sampling

    endless = Sampling(max_tokens=2000, temperature=0.0)
    streams = [engine.generate(ids, endless, None) for ids, _ in zip(many_of(asked), range(300), strict=False)]
    reading = [asyncio.create_task(anext(stream)) for stream in streams]
    await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    began = time.perf_counter()
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    for stream in streams:
        await stream.aclose()
    while engine._waiting or engine._reading or engine._batches:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return time.perf_counter() - began


def many_of(asked: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    while True:
        yield from asked


@contextmanager
def device_hidden(hides: bool) -> Iterator[None]:
    """The loop takes a GPU where there is one: for the CPU's figures there is none."""
    there = torch.cuda.is_available
    if hides:
        torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = there


@contextmanager
def heard(losses: list[float]) -> Iterator[None]:
    """The losses that the loop reports."""
    from llmsched.runtime import progress

    report = progress.report

    def listening(**values: Any) -> None:
        if isinstance(values.get("loss"), float):
            losses.append(values["loss"])
        report(**values)

    progress.report = listening
    try:
        yield
    finally:
        progress.report = report


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def attempt(name: str, failures: list[str], work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Failed as failed:
        failures.append(f"{name}: {failed}")
    except Exception as error:
        traceback.print_exc()
        failures.append(f"{name}: {type(error).__name__}: {error}")
    return None


def tell(name: str, value: Any) -> None:
    shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
    print(f"{name}: {shown}", flush=True)


if __name__ == "__main__":
    main()
