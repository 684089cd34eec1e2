"""The text engine on transformers: every request that is there decodes together, on one thread.

The loop admits sequences between two steps and lets one leave when it is done, stopped or its client has gone
(continuous batching), rows of all adapters in one batch. A long prompt is read in pieces, so that the others go on
meanwhile; a beginning that an earlier one had too is not read again (`prefix_cache.py`). `Engine` is the port that
`vllm_engine.py` fills too.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from llmsched.data.parameters import RequestError, Sampling, Usual
from workloads.inference import weights
from workloads.inference.adapters import AdapterError, Adapters
from workloads.inference.batch import Batch, Decoder, Newcomer, layers_of
from workloads.inference.drafts import MOST, Drafts
from workloads.inference.grammar import Grammars, SchemaGrammar
from workloads.inference.packed import lay_out
from workloads.inference.prefix_cache import Layers, PrefixCache
from workloads.inference.sampling import Said, Sampler, next_tokens
from workloads.inference.stuck import Rounds, cpu_seconds
from workloads.inference.text import TextStream

PREFILL_TOKENS = 512  # of prompts, between two steps of those that decode
PREFIX_MIB = 128
LEAST_TOKENS = 64  # a pass over fewer takes about as long: the weights have to be read


class Piece(NamedTuple):
    """Some text of an answer, and the counts so far. `finish_reason` ("stop" or "length") is on the last one."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    said: tuple[Said, ...] = ()  # its tokens, where their probabilities were asked for
    cached_tokens: int = 0  # of the prompt, that were not read again


class Engine(Protocol):
    """A causal language model that answers many requests at once."""

    tokenizer: Any
    max_model_len: int
    usual: Usual  # for what a request leaves out

    def generate(self, prompt: Sequence[int], sampling: Sampling, adapter: str | None) -> AsyncGenerator[Piece, None]:
        """Goes on from the tokens `prompt`. Closing the generator frees its place. Raises RequestError."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Under a name that is known already, replaces it for requests to come. Raises AdapterError."""

    def check(self) -> None:
        """Raises RuntimeError when it can serve no more."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """`engine_kwargs`, by vLLM's names where it has one. `max_waiting`: requests beyond those that decode.
    `prefix_cache_mib`: of keys and values of earlier prompts; None: what `PREFIX_MIB` says on a CPU, and a twentieth of
    the memory that is free on a GPU. `num_speculative_tokens`: of a draft that one pass checks; 0: none are made."""

    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_waiting: int = 256
    dtype: str = "auto"
    quantization: str | None = None  # "int8": the linear layers compute in 8 bits
    enable_prefix_caching: bool = True
    prefix_cache_mib: int | None = None
    num_speculative_tokens: int = MOST

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Settings:
        """Raises ValueError for a name or value that means nothing here."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(kwargs) - known):
            raise ValueError(
                f"engine_kwargs: {', '.join(unknown)} not known; this engine has {', '.join(sorted(known))}"
            )
        for name in ("max_model_len", "max_num_seqs", "max_waiting", "prefix_cache_mib"):
            value = kwargs.get(name, 1)
            if type(value) is not int or value < 1:
                raise ValueError(f"engine_kwargs: {name} must be a whole number of at least 1, not {value!r}")
        drafted = kwargs.get("num_speculative_tokens", 1)
        if type(drafted) is not int or not 0 <= drafted <= 64:
            raise ValueError(f"engine_kwargs: num_speculative_tokens must be a whole number up to 64, not {drafted!r}")
        if type(kwargs.get("enable_prefix_caching", True)) is not bool:
            raise ValueError("engine_kwargs: enable_prefix_caching must be true or false")
        if kwargs.get("dtype", "auto") not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError("engine_kwargs: dtype must be auto, float32, bfloat16 or float16")
        if kwargs.get("quantization") not in (None, "int8"):
            raise ValueError("engine_kwargs: quantization must be int8")
        return cls(**kwargs)


class _Request:
    """One sequence on its way: waiting, being read, or a row of a batch."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        adapter: str | None,
        tokenizer: Any,
        deliver: Callable[[Any], None],
        grammar: SchemaGrammar | None,
    ) -> None:
        self.prompt, self.sampling, self.adapter = prompt, sampling, adapter
        self.sampler = Sampler(sampling, prompt, grammar)
        self.text = TextStream(tokenizer, sampling.stop)
        self.deliver = deliver
        self.is_cancelled = self.has_failed = False
        self.drafts: Drafts | None = None  # from when it decodes alone
        self.last_token = -1
        self.answer: list[int] = []  # tokens
        self.cache: Any = None  # of the prompt, until it joins a batch
        self.read = 0  # prompt tokens in `cache`
        self.cached = 0  # of them, those of an earlier prompt

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Add `token`, deliver what it makes certain; whether the answer is complete."""
        self.last_token = token
        self.answer.append(token)
        if self.drafts is not None:
            self.drafts.add(token)
        if token in ends or token in self.sampling.stop_token_ids:
            return self._finish(self.text.finish(), "stop")
        text = self.text.push(token)
        if self.text.stopped:
            return self._finish(text, "stop")
        if len(self.answer) >= self.sampling.max_tokens:
            text += self.text.finish()
            return self._finish(text, "stop" if self.text.stopped else "length")
        if text:
            self._deliver(text, None)
        return False

    def _finish(self, text: str, reason: str) -> bool:
        self._deliver(text, reason)
        return True

    def _deliver(self, text: str, reason: str | None) -> None:
        self.deliver(Piece(text, len(self.prompt), len(self.answer), reason, self._said(), self.cached))

    def _said(self) -> tuple[Said, ...]:
        said, self.sampler.said = tuple(self.sampler.said), []
        return said


class TransformersEngine:
    """Loads the model in `folder` and starts the decode thread."""

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        dtype: Any = settings.dtype
        if dtype == "auto" and device.type == "cpu":
            dtype = torch.float32  # half precision is emulated, hence slower, on most CPUs
        model = weights.load(AutoModelForCausalLM, folder, dtype, "causal-lm")
        model.to(device).eval()
        lay_out(model, settings.quantization)
        self.max_model_len = _context(model.config, settings.max_model_len)
        self.usual = Usual.of(model.generation_config)
        self._ends = _end_tokens(model, self.tokenizer)
        self._grammars = Grammars(self.tokenizer, model.config.get_text_config().vocab_size, self._ends)
        self._adapters = Adapters(model)
        self._decoder = Decoder(model, self._adapters, device)
        self._prefixes: PrefixCache | None = None
        if settings.enable_prefix_caching and self._decoder.can_reuse:
            self._prefixes = PrefixCache(_prefix_bytes(settings, device))
        self._settings = settings
        self._names: dict[str, str] = {}  # adapter as asked for -> as the model knows it (a new one for each version)
        self._retired: list[str] = []  # replaced, perhaps still in use
        self._versions = itertools.count(1)

        self._wake = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._tasks: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._is_closing = False
        self._reading: _Request | None = None  # the one whose prompt is being read
        self._ready: list[Newcomer[_Request]] = []  # their prompts are read: they join before the next step
        self._batches: list[Batch[_Request]] = []
        self._rounds = Rounds()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    # --- called on the event loop -------------------------------------------------------------------------------

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None
    ) -> AsyncGenerator[Piece, None]:
        pieces: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(item: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, item)

        grammar = None
        if sampling.schema is not None:
            grammar = await asyncio.to_thread(self._grammars.begin, sampling.schema)
        with self._wake:
            self.check()
            if adapter is not None and adapter not in self._names:
                raise RequestError(f'The adapter "{adapter}" is not loaded here.', code="model_not_found", status=404)
            if len(self._waiting) >= self._settings.max_waiting:
                raise RequestError(
                    f"{len(self._waiting)} requests are waiting already. Try again shortly.", code="full", status=429
                )
            inner = self._names[adapter] if adapter is not None else None
            request = _Request(prompt, sampling, inner, self.tokenizer, deliver, grammar)
            self._waiting.append(request)
            self._wake.notify()
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, RequestError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            request.is_cancelled = True  # the decode thread looks at this between two steps

    async def load_adapter(self, name: str, folder: Path) -> None:
        await asyncio.to_thread(self._adapters.check, folder)
        await asyncio.wrap_future(self._between_steps(lambda: self._put_in(name, folder)))

    def check(self) -> None:
        if self._is_closing or not self._thread.is_alive():
            raise RuntimeError("the decode thread has ended")
        self._rounds.check(time.monotonic(), cpu_seconds(self._thread.ident or 0))

    def close(self) -> None:
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _between_steps(self, do: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        with self._wake:
            self._tasks.append((do, done))
            self._wake.notify()
        return done

    # --- the decode thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._await_work():
                self._rounds.begin()
                self._do_tasks()
                self._drop_cancelled()
                self._read_prompts()
                self._join()
                for batch in list(self._batches):
                    self._guard(lambda batch=batch: self._step(batch), lambda batch=batch: batch.rows)  # type: ignore[misc]
                self._batches = [batch for batch in self._batches if batch.rows]
        finally:
            with self._wake:
                self._is_closing = True
                left = self._all()
            for request in left:
                request.deliver(RequestError("The replica is stopping.", code="stopping", status=503))
            for _, done in self._tasks:
                done.set_exception(RuntimeError("the decode thread has ended"))

    def _await_work(self) -> bool:
        """Whether to go on; sleeps while there is nothing to do."""
        self._rounds.rest()
        with self._wake:
            while not (self._is_closing or self._waiting or self._tasks or self._reading or self._batches):
                self._wake.wait()
            return not self._is_closing

    def _do_tasks(self) -> None:
        while self._tasks:
            do, done = self._tasks.popleft()
            try:
                do()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

    def _all(self) -> list[_Request]:
        """That wait, are read, or decode."""
        read = [one for one in (self._reading, *(ready.row for ready in self._ready)) if one is not None]
        return [*self._waiting, *read, *(row for batch in self._batches for row in batch.rows)]

    def _drop_cancelled(self) -> None:
        with self._wake:
            if any(request.is_cancelled for request in self._waiting):
                self._waiting = deque(request for request in self._waiting if not request.is_cancelled)
        if self._reading and self._reading.is_cancelled:
            self._reading = None
        for batch in self._batches:
            batch.keep([n for n, row in enumerate(batch.rows) if not row.is_cancelled])
        self._batches = [batch for batch in self._batches if batch.rows]

    def _read_prompts(self) -> None:
        """As much of them as may be read between two steps."""
        left = PREFILL_TOKENS
        while left > 0 and (request := self._next_to_read()) is not None:
            before = request.read
            self._guard(lambda: self._read_on(request, left), lambda: [request])  # noqa: B023  called at once
            if request.is_cancelled:
                self._reading = None
            left -= max(request.read - before, LEAST_TOKENS)

    def _next_to_read(self) -> _Request | None:
        if self._reading is None:
            there = sum(len(batch.rows) for batch in self._batches) + len(self._ready)
            with self._wake:
                if self._waiting and there < self._settings.max_num_seqs:
                    self._reading = self._waiting.popleft()
        return self._reading

    def _read_on(self, request: _Request, most: int) -> None:
        """One piece of its prompt; after the last piece its first token is drawn."""
        prompt = request.prompt
        if request.cache is None:
            self._begin(request)
        upto = min(request.read + most, len(prompt))
        logits = self._decoder.prefill(prompt[:upto], request.cache, request.read, request.adapter)
        request.read = upto
        if upto < len(prompt):
            return
        is_over = self._take(request, next_tokens(logits, [request.sampler])[0])
        self._reading, cache, request.cache = None, request.cache, None
        if self._prefixes is not None:
            self._prefixes.keep(request.adapter, prompt, layers_of(cache))
        if not is_over:
            self._ready.append(Newcomer(request, cache, upto))

    def _begin(self, request: _Request) -> None:
        """Its cache, with what is known of its prompt; the last token is read in any case, for what comes after it."""
        found, pieces = 0, list[Layers]()
        if self._prefixes is not None:
            found, pieces = self._prefixes.find(request.adapter, request.prompt[:-1])
        request.cache = self._decoder.filled_cache(pieces)
        request.read = request.cached = found

    def _join(self) -> None:
        while self._ready:
            batch = self._batch_for(self._ready[0].row)
            fit = [one for one in self._ready if batch.group == self._adapters.group(one.row.adapter)]
            together = fit if self._decoder.can_batch else fit[:1]
            self._ready = [one for one in self._ready if one not in together]
            self._guard(
                lambda: batch.join(together),  # noqa: B023  called at once
                lambda: [*(one.row for one in together), *batch.rows],  # noqa: B023
            )

    def _batch_for(self, request: _Request) -> Batch[_Request]:
        group = self._adapters.group(request.adapter)
        if self._decoder.can_batch:
            for batch in self._batches:
                if batch.group == group:
                    return batch
        self._batches.append(Batch(group))
        return self._batches[-1]

    def _step(self, batch: Batch[_Request]) -> None:
        draft = self._draft(batch)
        if draft:
            ended = [self._step_by_draft(batch, draft)]
        else:
            tokens = next_tokens(batch.step(self._decoder), [row.sampler for row in batch.rows])
            ended = [self._take(row, token) for row, token in zip(batch.rows, tokens, strict=True)]
        if not any(ended):
            return
        if self._prefixes is not None:  # a dialogue goes on with its answer
            for index in (n for n, is_over in enumerate(ended) if is_over):
                row = batch.rows[index]
                if not row.has_failed:
                    self._prefixes.keep(row.adapter, [*row.prompt, *row.answer[:-1]], batch.columns(index))
        batch.keep([n for n, is_over in enumerate(ended) if not is_over])

    def _draft(self, batch: Batch[_Request]) -> list[int]:
        """Of who decodes alone: with others a pass computes enough as it is."""
        if len(batch.rows) > 1 or not self._decoder.can_reuse or not self._settings.num_speculative_tokens:
            return []
        (row,) = batch.rows
        if row.drafts is None:
            row.drafts = Drafts([*row.prompt, *row.answer], self._settings.num_speculative_tokens)
        return row.drafts.next()[: row.sampling.max_tokens - len(row.answer) - 1]

    def _step_by_draft(self, batch: Batch[_Request], draft: list[int]) -> bool:
        """As many steps at once as the draft is right, and one. Whether the answer is complete."""
        (row,) = batch.rows
        taken, is_over = 0, False
        logits = batch.read_draft(self._decoder, draft)
        for place in range(len(draft) + 1):
            token = next_tokens(logits[place : place + 1], [row.sampler])[0]
            is_over = self._take(row, token)
            taken += 1
            if is_over or place == len(draft) or token != draft[place]:
                break
        batch.drop_last(len(draft) + 1 - taken)
        assert row.drafts is not None
        row.drafts.told(len(draft), taken - 1)
        return is_over

    def _take(self, request: _Request, token: int | Exception) -> bool:
        """Whether its answer is complete. What fails with its token, a schema that breaks off for example, ends this
        request and no other of the batch."""
        try:
            if isinstance(token, Exception):
                raise token
            return request.take(token, self._ends)
        except Exception as error:
            _fail(error, [request])
            return True

    def _guard(self, do: Callable[[], None], concerned: Callable[[], Sequence[_Request]]) -> None:
        """A step that fails (out of memory, say) fails the requests in it; they are dropped, the next ones served."""
        try:
            do()
        except Exception as error:
            _fail(error, concerned())

    def _put_in(self, name: str, folder: Path) -> None:
        inner = f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}-v{next(self._versions)}"
        try:
            self._adapters.load(inner, folder)
        except Exception as error:
            raise AdapterError(f"PEFT cannot load it: {error}") from error
        with self._wake:
            if name in self._names:
                self._retired.append(self._names[name])
            self._names[name] = inner
            in_use = {request.adapter for request in self._all()}
        for old in [old for old in self._retired if old not in in_use]:
            self._adapters.drop(old)
            if self._prefixes is not None:
                self._prefixes.forget(old)
            self._retired.remove(old)


def _fail(error: Exception, requests: Sequence[_Request]) -> None:
    if not isinstance(error, RequestError):
        traceback.print_exception(error)
        error = RequestError(f"The model failed: {error}", code="engine_error", status=500)
    for request in requests:
        request.deliver(error)
        request.is_cancelled = request.has_failed = True


def _context(config: Any, asked: int | None) -> int:
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    if own is None:
        return asked or 1 << 20
    if asked is not None and asked > own:
        raise ValueError(f"engine_kwargs: max_model_len is {asked}, but this model's context is {own}")
    return asked or int(own)


def _prefix_bytes(settings: Settings, device: torch.device) -> int:
    if settings.prefix_cache_mib is None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 20
    return (settings.prefix_cache_mib or PREFIX_MIB) << 20


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for given in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ends.update(given if isinstance(given, list) else [given] if given is not None else [])
    return frozenset(ends)


def use_threads(cpus: float) -> int:
    """Let torch use this replica's share of the CPUs, at least one thread; how many that is."""
    threads = max(1, min(int(cpus), os.cpu_count() or 1))
    torch.set_num_threads(threads)
    return threads


def device_for(gpus: float) -> torch.device:
    return torch.device("cuda" if gpus > 0 and torch.cuda.is_available() else "cpu")
