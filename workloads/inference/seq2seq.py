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
from workloads.inference.openai import RequestError, Sampling, Usual
from workloads.inference.packed import pack
from workloads.inference.text import TextStream
from workloads.tasks.table import model_class, reader_of


class Seq2SeqEngine:
    """`max_model_len` bounds what is read and what is said, each for itself."""

    chat_template = "{{ messages[-1]['content'] }}"

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        kind = model_class("seq2seq-lm")
        self._model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        self._model.to(device).eval()
        pack(self._model)
        reader = reader_of("seq2seq-lm", folder, str(folder), self._model.config, settings.max_model_len)
        self.tokenizer, self.max_model_len = reader.processor, 2 * reader.max_length
        self.usual = Usual.of(self._model.generation_config)
        self._device, self._settings = device, settings
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "seq2seq")
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = self.chat_template

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None
    ) -> AsyncGenerator[Piece, None]:
        if self._waiting >= self._settings.max_waiting:
            raise RequestError(f"{self._waiting} requests are waiting already. Try again.", code="full", status=429)
        self._waiting += 1
        try:
            ids = await asyncio.get_running_loop().run_in_executor(self._thread, self._say, list(prompt), sampling)
        finally:
            self._waiting -= 1
        text, reason, count = TextStream(self.tokenizer, sampling.stop), "length", 0
        said = ""
        for token in ids:
            count += 1
            if token in self._ends():
                reason = "stop"
                break
            said += text.push(token)
            if text.stopped:
                break
        said += text.finish()
        yield Piece(said, len(prompt), count, "stop" if text.stopped else reason)

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise AdapterError("adapters go on a causal-lm model only; serve the trained adapter as the model's source")

    def check(self) -> None:
        """The thread ends with the process alone."""

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _say(self, prompt: list[int], sampling: Sampling) -> list[int]:
        half = self.max_model_len // 2
        ids = torch.tensor([prompt[:half]], device=self._device)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")} | {"do_sample": True}
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            shape = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            out = self._model.generate(**shape, max_new_tokens=min(sampling.max_tokens, half), **drawn)
        return [int(token) for token in out[0, 1:]]  # without the mark that begins an answer

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id} if ends is None else set(ends if isinstance(ends, list) else [ends])
