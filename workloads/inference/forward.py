"""One forward pass for many: every task whose answer takes one, batched over the requests that are there.

Whatever has gathered while the last pass ran makes the next one, inputs of like length together. Reasons for an answer
(`why.py`) are sought when nobody waits for one, a part at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmsched.data.media import ROLES, of_text
from llmsched.data.messages import Unusable
from llmsched.data.parameters import RequestError
from llmsched.data.tasks import KINDS
from workloads.inference import openai, weights, why
from workloads.inference.engine import Settings
from workloads.inference.packed import lay_out
from workloads.tasks.answers import answers_of
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.table import model_class, reader_of

Input = str | list[int] | Mapping[str, str | bytes]  # a text, its tokens, or an image or audio, as base64 too
BATCH_TOKENS = 16_384  # padding included
MOST_EXPLAINED = 64  # inputs of a request: each takes as long as some fifty answers


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
    """`label`: its number, of an answer whose reasons are asked for."""

    read: Encoded
    done: Future[Any]
    label: int | None = None


class Forward:
    """A model that makes one answer per input in one pass."""

    def __init__(self, folder: Path, task: str, settings: Settings, device: torch.device) -> None:
        self.routes = KINDS[task].answers
        dtype: Any = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
        self._model = weights.load(model_class(task), folder, dtype, task)
        self._model.to(device).eval().requires_grad_(False)
        lay_out(self._model, settings.quantization)
        self._device = device
        self._task = task
        self._settings = settings
        config = self._model.config
        self._reader: Any = reader_of(task, folder, str(folder), config, settings.max_model_len or 1 << 20)
        self._says = answers_of(task, self._model, self._reader)
        self._numbers = {str(name): number for number, name in config.id2label.items()}
        self._roles = KINDS[task].roles
        self._form = _FORMS.get(task)
        self._encode = getattr(self._reader, self._form.reads if self._form else "encode")
        self._wake = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._reasons: deque[_Job] = deque()  # answers to be explained
        self._sought: tuple[_Job, Generator[None, None, why.Weights]] | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    async def run(self, inputs: Sequence[Input | tuple[str, str | None]]) -> tuple[list[Any], int]:
        """One answer per input, and the tokens read. Longer inputs are cut. Raises RequestError."""
        jobs = await asyncio.to_thread(self._read_all, inputs)
        return await self._done(jobs, self._jobs), sum(self._reader.size(job.read) for job in jobs)

    async def explain(self, inputs: Sequence[Any], answers: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """What each word of each input adds to its answer, as `why.words` tells. Raises RequestError."""
        labels = [self._numbers[answer[0]["label"]] for answer in answers]

        def read() -> list[_Job]:
            pairs = zip(inputs, labels, strict=True)
            return [_Job(self._reader.placed(*filter(None, one)), Future(), label) for one, label in pairs]

        jobs = await asyncio.to_thread(read)
        found = await self._done(jobs, self._reasons)
        return [why.words(job.read, each) for job, each in zip(jobs, found, strict=True)]

    def check_explains(self, inputs: Sequence[Any]) -> None:
        """Raises RequestError where `explain` cannot be answered."""
        if not KINDS[self._task].explains:
            there = ", ".join(name for name, kind in KINDS.items() if kind.explains)
            message = f"The answers of {self._task} cannot be explained word by word, only those of {there}."
            raise RequestError(message, param="explain", code="unsupported_parameter")
        if not self._reader.tokenizer.is_fast:
            message = "The tokenizer of this model does not say where its tokens stand in a text."
            raise RequestError(message, param="explain", code="unsupported_parameter")
        if len(inputs) > MOST_EXPLAINED:
            raise RequestError(f'With "explain" a request has at most {MOST_EXPLAINED} inputs.', param="input")

    async def _done(self, jobs: list[_Job], queue: deque[_Job]) -> list[Any]:
        with self._wake:
            self.check()
            waiting = len(self._jobs) + len(self._reasons)
            if waiting and waiting + len(jobs) > self._settings.max_waiting + self._settings.max_num_seqs:
                raise RequestError(f"{waiting} inputs are waiting already. Try again.", code="full", status=429)
            queue.extend(jobs)
            self._wake.notify()
        try:
            return await asyncio.gather(*(asyncio.wrap_future(job.done) for job in jobs))
        finally:
            for job in jobs:
                job.done.cancel()  # the client left: those not yet begun are skipped

    def check(self) -> None:
        if self._is_closing or not self._thread.is_alive():
            raise RuntimeError("the thread of the model has ended")

    def close(self) -> None:
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _read_all(self, inputs: Sequence[Input | tuple[str, str | None]]) -> list[_Job]:
        jobs: list[_Job] = []
        for number, one in enumerate(inputs):
            try:
                jobs.append(_Job(self._read(one), Future()))
            except RequestError as error:
                if len(inputs) == 1:
                    raise
                place = f"input[{number}]"
                raise RequestError(f"{place}: {error.message}", param=place, code=error.code) from None
        return jobs

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
        return [
            of_text(one[role]) if role in ROLES and isinstance(one[role], str) else one[role] for role in self._roles
        ]

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs:
                self._answer(jobs)
            else:
                self._seek_on()
        for job in [*self._jobs, *self._reasons, *([self._sought[0]] if self._sought else [])]:
            if not job.done.cancel() and not job.done.done():
                job.done.set_exception(RequestError("The endpoint is closing.", code="closing", status=503))

    def _answer(self, jobs: list[_Job]) -> None:
        jobs.sort(key=lambda job: self._reader.size(job.read))
        while jobs:
            batch, jobs = self._fitting(jobs)
            self._answer_together(batch)

    def _answer_together(self, batch: list[_Job]) -> None:
        """What fails together is tried one by one: who shares a batch with one that fails is answered all the same."""
        try:
            results = self._forward([job.read for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].done.set_exception(_failed(error))
                return
            for job in batch:
                self._answer_together([job])
        else:
            for job, result in zip(batch, results, strict=True):
                job.done.set_result(result)

    def _next(self) -> list[_Job] | None:
        """Everything that waits and is still wanted; [] when there are only reasons to seek, None when closing."""
        with self._wake:
            while not self._is_closing:
                jobs = [job for job in self._jobs if job.done.set_running_or_notify_cancel()]
                self._jobs.clear()
                if jobs or self._reasons or self._sought:
                    return jobs
                self._wake.wait()
        return None

    def _seek_on(self) -> None:
        """A part of the reasons for one answer."""
        if self._sought is None:
            with self._wake:
                job = self._reasons.popleft()
            if not job.done.set_running_or_notify_cancel() or job.label is None:
                return
            self._sought = job, self._weights(job.read, job.label)
        job, parts = self._sought
        try:
            next(parts)
            return
        except StopIteration as end:
            job.done.set_result(end.value)
        except Exception as error:  # fails this one; the next one is served
            job.done.set_exception(_failed(error))
        self._sought = None

    def _weights(self, read: Encoded, label: int) -> Generator[None, None, why.Weights]:
        batch = self._on_device([read])
        nothing = torch.tensor([self._reader.nothing(read)], device=self._device)
        return (yield from why.weights(self._model, batch, label, nothing))

    def _fitting(self, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """The first of `jobs`, sorted by length, that go through the model together, and the rest."""
        most, count = min(self._settings.max_num_seqs, len(jobs)), 1
        while (
            self._reader.batches and count < most and (count + 1) * self._reader.size(jobs[count].read) <= BATCH_TOKENS
        ):
            count += 1
        return jobs[:count], jobs[count:]

    def _forward(self, rows: list[Encoded]) -> list[Any]:
        batch = self._on_device(rows)
        with torch.inference_mode():
            return self._says(self._model(**batch), batch, rows)

    def _on_device(self, rows: list[Encoded]) -> Batch:
        return {name: tensor.to(self._device) for name, tensor in self._reader.collate(rows).items()}


def _failed(error: Exception) -> RequestError:
    return RequestError(f"The model failed: {error}", code="engine_error", status=500)


class ForwardServer:
    """Embeddings, or labels with scores."""

    def __init__(self, model: Forward) -> None:
        self._model = model
        self.routes = model.routes
        self.check = model.check

    async def call(self, route: str, body: Mapping[str, Any], adapter: str | None) -> dict[str, Any] | str:
        model = str(body.get("model", ""))
        if route == "audio/transcriptions":
            file, is_bare = openai.transcription(body)
            ((said,), *_), _ = await self._model.run([{"audio": file}])
            return said["text"] if is_bare else {"text": said["text"]}
        if route == "embeddings":
            inputs, as_base64 = openai.embedding_inputs(body)
            vectors, tokens = await self._model.run(inputs)
            return openai.embeddings_answer(model, vectors, tokens, as_base64)
        inputs, explain = openai.classify_inputs(body)
        if explain:
            self._model.check_explains(inputs)
        answers, tokens = await self._model.run(inputs)
        if explain:
            reasons = await self._model.explain(inputs, answers)
            answers = [[{**one[0], "why": each}] for one, each in zip(answers, reasons, strict=True)]
        return openai.classify_answer(model, answers, tokens)

    async def stream(self, route: str, body: Mapping[str, Any], adapter: str | None) -> AsyncGenerator[Any, None]:
        raise RequestError(f"/v1/{route} does not stream.", param="stream")
        yield  # pragma: no cover  makes it a generator, as the others are

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise RequestError("Adapters go on a causal-lm model only.", code="no_adapters")
