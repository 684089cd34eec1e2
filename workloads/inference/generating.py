"""Models behind the engine's port that answer by transformers' own `generate`: one request after the other on one
thread. What is drawn follows the request's seed."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llmsched.data.parameters import RequestError, Sampling, Usual
from workloads.inference import weights
from workloads.inference.adapters import AdapterError
from workloads.inference.engine import Piece, Settings
from workloads.inference.packed import lay_out
from workloads.inference.text import TextStream
from workloads.tasks.table import model_class, reader_of

# Of parameters.Sampling, what `generate` does not do in the same sense, with the values that ask for nothing.
_NOT_HERE = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "logit_bias": (), "logprobs": None, "schema": None}


class GeneratingEngine(ABC):
    task: str
    max_model_len: int

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        kind = model_class(self.task)
        self._model = weights.load(kind, folder, dtype, self.task)
        self._model.to(device).eval()
        lay_out(self._model, settings.quantization)
        self.reader = reader_of(self.task, folder, str(folder), self._model.config, settings.max_model_len)
        self.tokenizer = self.reader.tokenizer
        self.usual = Usual.of(self._model.generation_config)
        self._device, self._settings = device, settings
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "generate")

    @abstractmethod
    def _inputs(self, prompt: Sequence[int]) -> dict[str, Any]:
        """What the model reads of a prompt."""

    def _answer(self, out: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Of what `generate` gave, the tokens of the answer."""
        return out[0, inputs["input_ids"].shape[1] :]

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None
    ) -> AsyncGenerator[Piece, None]:
        for name, off in _NOT_HERE.items():
            if getattr(sampling, name) != off:
                raise RequestError(f'"{name}" is not supported by this kind of model.', param=name)
        if self._waiting >= self._settings.max_waiting:
            raise RequestError(f"{self._waiting} requests are waiting already. Try again.", code="full", status=429)
        self._waiting += 1
        try:
            ids = await asyncio.get_running_loop().run_in_executor(self._thread, self._say, prompt, sampling)
        finally:
            self._waiting -= 1
        text, said, reason, count = TextStream(self.tokenizer, sampling.stop), "", "length", 0
        ends = {*self._ends(), *sampling.stop_token_ids}
        for count, token in enumerate(ids, 1):  # noqa: B007  the last one counts
            if token in ends or text.stopped:
                reason = "stop"
                break
            said += text.push(token)
        said += text.finish()
        yield Piece(said, len(prompt), count, "stop" if text.stopped else reason)

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise AdapterError("adapters go on a causal-lm model only; serve the trained adapter as the model's source")

    def check(self) -> None:  # noqa: B027
        """The thread ends with the process alone."""

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _say(self, prompt: Sequence[int], sampling: Sampling) -> list[int]:
        inputs = {
            name: each.to(self._device, self._model.dtype) if each.is_floating_point() else each.to(self._device)
            for name, each in self._inputs(prompt).items()
        }
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            names = ("temperature", "top_p", "top_k", "min_p")
            drawn = {name: getattr(sampling, name) for name in names} | {"do_sample": True}
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            out = self._model.generate(
                **inputs,
                max_new_tokens=min(sampling.max_tokens, self.reader.max_length),
                repetition_penalty=sampling.repetition_penalty,
                **drawn,
            )
        return [int(token) for token in self._answer(out, inputs)]

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id} if ends is None else set(ends if isinstance(ends, list) else [ends])
