"""Encoder-decoders (translation, summaries) behind the engine's port: transformers' own `generate`, one request after
the other on one thread. What is drawn follows the request's seed. Chat reads the last message alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from workloads.inference.adapters import AdapterError
from workloads.inference.engine import Piece, Settings
from workloads.inference.packed import pack
from workloads.inference.parameters import RequestError, Sampling, Usual
from workloads.inference.text import TextStream
from workloads.tasks.table import model_class, reader_of

_LAST_MESSAGE = "{{ messages[-1]['content'] }}"
# Of parameters.Sampling, what `generate` does not do in the same sense, with the values that ask for nothing.
_NOT_HERE = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "logit_bias": (), "logprobs": None, "schema": None}


class Seq2SeqEngine:
    """What is read and what is said has half of `max_model_len` each."""

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        kind = model_class("seq2seq-lm")
        self._model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        self._model.to(device).eval()
        pack(self._model)
        self._reader = reader_of("seq2seq-lm", folder, str(folder), self._model.config, settings.max_model_len)
        self.tokenizer, self.max_model_len = self._reader.tokenizer, 2 * self._reader.max_length
        self.usual = Usual.of(self._model.generation_config)
        self._device, self._settings = device, settings
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "seq2seq")
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = _LAST_MESSAGE

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
            ids = await asyncio.get_running_loop().run_in_executor(self._thread, self._say, list(prompt), sampling)
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

    def check(self) -> None:
        """The thread ends with the process alone."""

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _say(self, prompt: list[int], sampling: Sampling) -> list[int]:
        text = self.tokenizer.decode(prompt, skip_special_tokens=True)
        ids = torch.tensor([list(self._reader.encode(text)["input_ids"])], device=self._device)  # framed as in training
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            names = ("temperature", "top_p", "top_k", "min_p")
            drawn = {name: getattr(sampling, name) for name in names} | {"do_sample": True}
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(sampling.max_tokens, self._reader.max_length),
                repetition_penalty=sampling.repetition_penalty,
                **drawn,
            )
        return [int(token) for token in out[0, 1:]]  # without the mark that begins an answer

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id} if ends is None else set(ends if isinstance(ends, list) else [ends])
