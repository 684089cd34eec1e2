"""The servers of a replica: a request of a route in, an OpenAI answer or its chunks out. The class for language
models; `forward.py` has the one for all others.

Errors leave as RequestError; `replica.py` makes answers of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from workloads.inference import openai
from workloads.inference.engine import Engine, Piece
from workloads.inference.openai import RequestError, Sampling, TextRequest, Usage


class Server(Protocol):
    """What the gateway may ask of this replica: `routes` without "/v1/"."""

    @property
    def routes(self) -> tuple[str, ...]: ...

    async def call(self, route: str, body: Any, adapter: str | None) -> Any: ...

    def stream(self, route: str, body: Any, adapter: str | None) -> AsyncGenerator[Any, None]: ...

    async def load_adapter(self, name: str, folder: Path) -> None: ...

    def check(self) -> Any:
        """Raises when it can serve no more; what it returns is awaited if it can be."""


class TextServer:
    """Chat and completions."""

    routes = ("chat/completions", "completions")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.load_adapter = engine.load_adapter
        self.check = engine.check

    async def call(self, route: str, body: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
        request, prompts = self._parse(route, body)
        texts, reasons = [""] * len(prompts) * request.n, [""] * len(prompts) * request.n
        counts: dict[int, int] = {}
        async with aclosing(self._pieces(request, prompts, adapter)) as pieces:
            async for index, piece in pieces:
                texts[index] += piece.text
                counts[index] = piece.completion_tokens
                reasons[index] = piece.finish_reason or ""
        usage = Usage(sum(map(len, prompts)), sum(counts.values()))
        return openai.Answer(request).whole(list(zip(texts, reasons, strict=True)), usage)

    async def stream(self, route: str, body: Mapping[str, Any], adapter: str | None) -> AsyncGenerator[Any, None]:
        request, prompts = self._parse(route, body)
        answer = openai.Answer(request)
        counts: dict[int, int] = {}
        async with aclosing(self._pieces(request, prompts, adapter)) as pieces:
            async for index, piece in pieces:
                counts[index] = piece.completion_tokens
                yield answer.chunk(
                    index, piece.text, None if piece.finish_reason and piece.text else piece.finish_reason
                )
                if piece.finish_reason and piece.text:
                    yield answer.chunk(index, "", piece.finish_reason)
        if request.include_usage:
            yield answer.usage_chunk(Usage(sum(map(len, prompts)), sum(counts.values())))

    def _parse(self, route: str, body: Mapping[str, Any]) -> tuple[TextRequest, list[list[int]]]:
        if route == "completions":
            request = openai.completion_request(body, self._engine.usual)
            assert request.prompts is not None
            prompts = [self._tokens(prompt) for prompt in request.prompts]
        else:
            request = openai.chat_request(body, self._engine.usual)
            prompts = [self._chat_tokens(request.messages)]
        if not all(prompts):
            raise RequestError("The prompt has no token.", param="messages" if request.messages else "prompt")
        longest = max(map(len, prompts))
        room = self._engine.max_model_len - longest
        if room < 1:
            raise RequestError(
                f"The prompt has {longest} tokens; this model reads {self._engine.max_model_len}, the answer included.",
                code="context_length_exceeded",
                param="messages" if request.messages else "prompt",
            )
        limit = min(request.sampling.max_tokens, room)
        return replace(request, sampling=replace(request.sampling, max_tokens=limit)), prompts

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        tokenizer = self._engine.tokenizer
        tokens = prompt if isinstance(prompt, list) else list(tokenizer(prompt)["input_ids"])
        if any(token >= len(tokenizer) for token in tokens):
            raise RequestError("A token number is beyond this model's vocabulary.", param="prompt")
        return tokens

    def _chat_tokens(self, messages: Any) -> list[int]:
        tokenizer = self._engine.tokenizer
        if not tokenizer.chat_template:
            raise RequestError("This model has no chat template: it completes texts. Use /v1/completions.")
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template refuses in its own words, an order of roles for example
            raise RequestError(f"The model's chat template refuses this: {error}", param="messages") from None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _pieces(
        self, request: TextRequest, prompts: list[list[int]], adapter: str | None
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice, piece) of every answer, as they come; all decode together."""
        jobs = [prompt for prompt in prompts for _ in range(request.n)]
        if len(jobs) == 1:
            async with aclosing(self._engine.generate(jobs[0], request.sampling, adapter)) as pieces:
                async for piece in pieces:
                    yield 0, piece
            return
        merged: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

        async def one(index: int, prompt: list[int], sampling: Sampling) -> None:
            async with aclosing(self._engine.generate(prompt, sampling, adapter)) as pieces:
                async for piece in pieces:
                    merged.put_nowait((index, piece))

        async def all_of_them() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index, prompt in enumerate(jobs):
                        group.create_task(one(index, prompt, _seeded(request.sampling, index)))
            finally:
                merged.put_nowait((-1, None))

        task = asyncio.create_task(all_of_them())
        try:
            while (item := await merged.get())[1] is not None:
                yield item  # type: ignore[misc]
            await task
        except BaseExceptionGroup as group:  # the first answer that failed has ended the others
            raise group.exceptions[0] from None
        finally:
            task.cancel()


def _seeded(sampling: Sampling, index: int) -> Sampling:
    """Choices of one request differ, and repeat with its seed."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
