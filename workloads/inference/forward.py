"""One forward pass for many: every task whose answer takes one, batched over the requests that are there.

Whatever has gathered while the last pass ran makes the next one, inputs of like length together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmsched.data.media import ROLES, of_text
from llmsched.data.messages import Unusable
from llmsched.data.tasks import KINDS
from workloads.inference import openai
from workloads.inference.engine import Settings
from workloads.inference.packed import pack
from workloads.inference.parameters import RequestError
from workloads.tasks.answers import answers_of
from workloads.tasks.reads import Encoded
from workloads.tasks.table import model_class, reader_of

Input = str | list[int] | dict[str, str]  # a text, its tokens, or an image or audio as base64
BATCH_TOKENS = 16_384  # padding included


class _Form(NamedTuple):
    """An input that is not just read: by which method of the reader, of how many texts, and that in words."""

    reads: str
    parts: int
    words: str


_FORMS = {
    "token-classification": _Form("worded", 1, "one text"),
    "question-answering": _Form("passage", 2, "a question and the passage that may answer it"),
}


class _Job(NamedTuple):
    read: Encoded
    done: Future[Any]


class Forward:
    """A model that makes one answer per input in one pass."""

    def __init__(self, folder: Path, task: str, settings: Settings, device: torch.device) -> None:
        self.routes = KINDS[task].answers
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        self._model = model_class(task).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        self._model.to(device).eval()
        pack(self._model)
        self._device = device
        self._settings = settings
        config = self._model.config
        self._reader: Any = reader_of(task, folder, str(folder), config, settings.max_model_len or 1 << 20)
        self._says = answers_of(task, self._model, self._reader)
        self._roles = KINDS[task].roles
        self._form = _FORMS.get(task)
        self._encode = getattr(self._reader, self._form.reads if self._form else "encode")
        self._wake = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    async def run(self, inputs: Sequence[Input | tuple[str, str | None]]) -> tuple[list[Any], int]:
        """One answer per input, and the tokens read. Longer inputs are cut. Raises RequestError."""
        jobs = await asyncio.to_thread(lambda: [_Job(self._read(one), Future()) for one in inputs])
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
        return results, sum(self._reader.size(job.read) for job in jobs)

    def check(self) -> None:
        if self._is_closing or not self._thread.is_alive():
            raise RuntimeError("the thread of the model has ended")

    def close(self) -> None:
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _read(self, one: Input | tuple[str, str | None]) -> Encoded:
        try:
            if ROLES & {*self._roles}:
                return dict(self._reader.load(self._reader.encode(*self._parts(one))))
            if isinstance(one, dict):
                raise RequestError("This model reads texts.", param="input")
            if not isinstance(one, list):
                parts = [one] if isinstance(one, str) else list(filter(None, one))
                if self._form and len(parts) != self._form.parts:
                    raise RequestError(f"An input of this model is {self._form.words}.", param="input")
                return dict(self._encode(*parts))
            if self._form:
                raise RequestError("This model reads texts, not token numbers.", param="input")
            if any(token >= (self._reader.vocab_size or token + 1) for token in one):
                raise RequestError("A token number is beyond this model's vocabulary.", param="input")
            return {"input_ids": one[: self._reader.max_length]}
        except Unusable as error:
            raise RequestError(f"The input {error}.", param="input") from None

    def _parts(self, one: Any) -> list[Any]:
        if not isinstance(one, dict) or set(one) != {*self._roles}:
            parts = ", ".join(f'"{role}": base64 or a data: URL' if role in ROLES else '"text"' for role in self._roles)
            raise RequestError(f"An input of this model is {{{parts}}}.", param="input")
        return [of_text(one[role]) if role in ROLES else one[role] for role in self._roles]

    def _run(self) -> None:
        while jobs := self._next():
            jobs.sort(key=lambda job: self._reader.size(job.read))
            while jobs:
                batch, jobs = self._fitting(jobs)
                try:
                    results = self._forward([job.read for job in batch])
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

    def _fitting(self, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """The first of `jobs`, sorted by length, that go through the model together, and the rest."""
        most, count = min(self._settings.max_num_seqs, len(jobs)), 1
        while (
            self._reader.batches and count < most and (count + 1) * self._reader.size(jobs[count].read) <= BATCH_TOKENS
        ):
            count += 1
        return jobs[:count], jobs[count:]

    def _forward(self, rows: list[Encoded]) -> list[Any]:
        batch = {name: tensor.to(self._device) for name, tensor in self._reader.collate(rows).items()}
        with torch.inference_mode():
            return self._says(self._model(**batch), batch, rows)


class ForwardServer:
    """Embeddings, or labels with scores."""

    def __init__(self, model: Forward) -> None:
        self._model = model
        self.routes = model.routes
        self.check = model.check

    async def call(self, route: str, body: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
        model = str(body.get("model", ""))
        if route == "embeddings":
            inputs, as_base64 = openai.embedding_inputs(body)
            vectors, tokens = await self._model.run(inputs)
            return openai.embeddings_answer(model, vectors, tokens, as_base64)
        answers, tokens = await self._model.run(openai.classify_inputs(body))
        return openai.classify_answer(model, answers, tokens)

    async def stream(self, route: str, body: Mapping[str, Any], adapter: str | None) -> AsyncGenerator[Any, None]:
        raise RequestError(f"/v1/{route} does not stream.", param="stream")
        yield  # pragma: no cover  makes it a generator, as the others are

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise RequestError("Adapters go on a causal-lm model only.", code="no_adapters")
