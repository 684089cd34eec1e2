"""One forward pass for many: embeddings and classification, batched over the requests that are there.

Whatever has gathered while the last pass ran makes the next one, inputs of like length together.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workloads import context_length
from workloads.inference.engine import Settings
from workloads.inference.openai import RequestError
from workloads.inference.packed import pack

Text = str | list[int]
BATCH_TOKENS = 16_384  # padding included


class _Job(NamedTuple):
    tokens: dict[str, list[int]]  # input_ids and, where the model has them, token_type_ids
    done: Future[Any]


class Encoder:
    """A model that makes one answer per input in one pass. `task`: feature-extraction or sequence-classification."""

    def __init__(self, folder: Path, task: str, settings: Settings, device: torch.device) -> None:
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

        self.task = task
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        kind = AutoModel if task == "feature-extraction" else AutoModelForSequenceClassification
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        self._model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        self._model.to(device).eval()
        pack(self._model)
        self._device = device
        self._settings = settings
        self._finish: Callable[[Any, torch.Tensor], list[Any]] = (
            self._labels if task == "sequence-classification" else (self._first if _takes_first(folder) else self._mean)
        )
        config = self._model.config
        self.max_length = settings.max_model_len or context_length.longest(config, self._tokenizer) or 1 << 20
        self._pad = self._tokenizer.pad_token_id or 0
        self._wake = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    async def run(self, inputs: Sequence[Text | tuple[str, str | None]]) -> tuple[list[Any], int]:
        """One result per input (a unit vector, or {label: probability}) and the tokens read. Longer inputs are cut to
        `max_length` tokens. Raises RequestError."""
        tokens = await asyncio.to_thread(lambda: [self._tokens(one) for one in inputs])
        jobs = [_Job(each, Future()) for each in tokens]
        with self._wake:
            self.check()
            waiting = len(self._jobs)
            if waiting and waiting + len(jobs) > self._settings.max_waiting + self._settings.max_num_seqs:
                raise RequestError(f"{waiting} inputs are waiting already. Try again.", code="full", status=429)
            self._jobs.extend(jobs)
            self._wake.notify()
        try:
            results = await asyncio.gather(*(asyncio.wrap_future(job.done) for job in jobs))
        finally:
            for job in jobs:
                job.done.cancel()  # the client left: those not yet begun are skipped
        return results, sum(len(each["input_ids"]) for each in tokens)

    def check(self) -> None:
        if self._is_closing or not self._thread.is_alive():
            raise RuntimeError("the encode thread has ended")

    def close(self) -> None:
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _tokens(self, one: Text | tuple[str, str | None]) -> dict[str, list[int]]:
        cut = {"truncation": True, "max_length": self.max_length}
        if isinstance(one, list):
            if any(token >= self._model.config.vocab_size for token in one):
                raise RequestError("A token number is beyond this model's vocabulary.", param="input")
            return {"input_ids": one[: self.max_length]}
        made = self._tokenizer(*one, **cut) if isinstance(one, tuple) else self._tokenizer(one, **cut)
        return {name: made[name] for name in ("input_ids", "token_type_ids") if name in made}

    def _run(self) -> None:
        while jobs := self._next():
            jobs.sort(key=lambda job: len(job.tokens["input_ids"]))
            while jobs:
                batch, jobs = _fitting(jobs, self._settings.max_num_seqs)
                try:
                    results = self._forward([job.tokens for job in batch])
                except Exception as error:  # fails this batch; the next one is served
                    for job in batch:
                        job.done.set_exception(
                            RequestError(f"The model failed: {error}", code="engine_error", status=500)
                        )
                else:
                    for job, result in zip(batch, results, strict=True):
                        job.done.set_result(result)
        for job in self._jobs:
            job.done.cancel()

    def _next(self) -> list[_Job]:
        """Everything that waits and is still wanted; [] when closing."""
        with self._wake:
            while not self._is_closing:
                jobs = [job for job in self._jobs if job.done.set_running_or_notify_cancel()]
                self._jobs.clear()
                if jobs:
                    return jobs
                self._wake.wait()
        return []

    def _forward(self, rows: list[dict[str, list[int]]]) -> list[Any]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows], device=self._device)

        mask = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows], device=self._device
        )
        inputs = {"input_ids": padded("input_ids", self._pad), "attention_mask": mask}
        if all("token_type_ids" in row for row in rows):
            inputs["token_type_ids"] = padded("token_type_ids", 0)
        with torch.inference_mode():
            return self._finish(self._model(**inputs), mask)

    def _mean(self, out: Any, mask: torch.Tensor) -> list[Any]:
        weights = mask[..., None].to(out.last_hidden_state.dtype)
        return _unit((out.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1))

    def _first(self, out: Any, mask: torch.Tensor) -> list[Any]:
        return _unit(out.last_hidden_state[:, 0])

    def _labels(self, out: Any, mask: torch.Tensor) -> list[Any]:
        names = self._model.config.id2label
        chances = torch.softmax(out.logits.float(), dim=-1).tolist()
        return [{str(names[n]): chance for n, chance in enumerate(row)} for row in chances]


def _unit(vectors: torch.Tensor) -> list[Any]:
    unit: list[Any] = torch.nn.functional.normalize(vectors.float(), dim=-1).tolist()
    return unit


def _fitting(jobs: list[_Job], most: int) -> tuple[list[_Job], list[_Job]]:
    """The first of `jobs`, sorted by length, that go through the model together, and the rest."""
    count = 1
    while count < min(most, len(jobs)) and (count + 1) * len(jobs[count].tokens["input_ids"]) <= BATCH_TOKENS:
        count += 1
    return jobs[:count], jobs[count:]


def _takes_first(folder: Path) -> bool:
    """Whether the model's own note on pooling (sentence-transformers' file) says: the first token, not the mean."""
    note = folder / "1_Pooling" / "config.json"
    return note.is_file() and bool(json.loads(note.read_text()).get("pooling_mode_cls_token"))
