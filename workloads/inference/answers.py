"""The servers of a replica: a request of a route in, an OpenAI answer or its chunks out. The class for language
models; `forward.py` has the one for all others.

Errors leave as RequestError; `replica.py` makes answers of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llmsched.data.parameters import RequestError, Sampling
from workloads.inference import logprobs, openai
from workloads.inference.engine import Engine, Piece
from workloads.inference.openai import Choice, TextRequest, Usage
from workloads.inference.sampling import Said
from workloads.inference.tools import ToolReader
from workloads.tasks import content_parts


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

    routes: tuple[str, ...] = ("chat/completions", "completions")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.load_adapter = engine.load_adapter
        self.check = engine.check

    @property
    def can_chat(self) -> bool:
        return bool(self._engine.tokenizer.chat_template)

    async def call(self, route: str, body: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
        request, prompts = await self._parse(route, body)
        made = [_Made(request, self._engine.tokenizer) for _ in range(len(prompts) * request.n)]
        async with aclosing(self._pieces(request, prompts, adapter)) as pieces:
            async for index, piece in pieces:
                made[index].add(piece)
        return openai.Answer(request).whole([one.whole() for one in made], _usage(prompts, made))

    async def first_token(self) -> None:
        """Of a prompt of one token: what is done once is done then, and an engine that cannot generate says so before
        anybody asks it. Raises RequestError."""
        one = Sampling(max_tokens=1, temperature=0.0)
        async with aclosing(self._engine.generate([0], one, None)) as pieces:
            async for _ in pieces:
                pass

    async def stream(self, route: str, body: Mapping[str, Any], adapter: str | None) -> AsyncGenerator[Any, None]:
        request, prompts = await self._parse(route, body)
        answer = openai.Answer(request)
        made = [_Made(request, self._engine.tokenizer) for _ in range(len(prompts) * request.n)]
        async with aclosing(self._pieces(request, prompts, adapter)) as pieces:
            async for index, piece in pieces:
                for part in made[index].parts(piece):
                    yield answer.chunk(index, part)
        if request.include_usage:
            yield answer.usage_chunk(_usage(prompts, made))

    async def _parse(self, route: str, body: Mapping[str, Any]) -> tuple[TextRequest, list[list[int]]]:
        if route == "completions":
            request = openai.completion_request(body, self._engine.usual)
            assert request.prompts is not None
            prompts = [self._tokens(prompt) for prompt in request.prompts]
        else:
            request = openai.chat_request(body, self._engine.usual)
            prompts = [await self._chat_tokens(request)]
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
        known = len(self._engine.tokenizer)
        if any(token >= known for token, _ in request.sampling.logit_bias):
            raise RequestError(f"This model has {known} tokens.", param="logit_bias")
        limit = min(request.sampling.max_tokens, room)
        return replace(request, sampling=replace(request.sampling, max_tokens=limit)), prompts

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        tokenizer = self._engine.tokenizer
        tokens = prompt if isinstance(prompt, list) else list(tokenizer(prompt)["input_ids"])
        if any(token >= len(tokenizer) for token in tokens):
            raise RequestError("A token number is beyond this model's vocabulary.", param="prompt")
        return tokens

    async def _chat_tokens(self, request: TextRequest) -> list[int]:
        if any(isinstance(message["content"], list) for message in request.messages or ()):
            raise RequestError(
                'This model reads texts; images are for one of "task: image-text-to-text".', param="messages"
            )
        tokenizer = self._engine.tokenizer
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        if not template:
            raise RequestError("This model has no chat template: it completes texts. Use /v1/completions.")
        if request.tools is not None and "tools" not in template:
            raise RequestError("This model's chat template shows it no tools: it would not know them.", param="tools")
        offered = [*request.tools.offered] if request.tools is not None else None
        try:
            text = tokenizer.apply_chat_template(
                content_parts.fitting(tokenizer, request.messages or ()),
                tools=offered,
                tokenize=False,
                add_generation_prompt=True,
                **request.template,
            )
        except Exception as error:  # a template refuses in its own words, an order of roles for example
            raise RequestError(f"The model's chat template refuses this: {error}", param="messages") from None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generate(self, prompt: list[int], request: TextRequest, adapter: str | None) -> AsyncGenerator[Piece, None]:
        """The only answer to a request."""
        return self._engine.generate(prompt, request.sampling, adapter)

    async def _pieces(
        self, request: TextRequest, prompts: list[list[int]], adapter: str | None
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice, piece) of every answer, as they come; all decode together."""
        jobs = [prompt for prompt in prompts for _ in range(request.n)]
        if len(jobs) == 1:
            async with aclosing(self._generate(jobs[0], request, adapter)) as pieces:
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


@dataclass(slots=True)
class _Made:
    """One answer as it grows."""

    request: TextRequest
    tokenizer: Any
    count: int = 0
    cached: int = 0
    _texts: list[str] = field(default_factory=list)
    _said: list[Said] = field(default_factory=list)
    _reason: str | None = None
    _reader: ToolReader | None = None
    _length: int = 0  # of the text before, in characters

    def __post_init__(self) -> None:
        if self.request.tools is not None:
            self._reader = ToolReader(self.request.tools)

    def add(self, piece: Piece) -> str:
        """What of its text is certainly no call of a tool."""
        self.count, self.cached, self._reason = piece.completion_tokens, piece.cached_tokens, piece.finish_reason
        self._said += piece.said
        text = piece.text if self._reader is None else self._reader.push(piece.text)
        self._texts.append(text)
        return text

    def whole(self) -> Choice:
        rest, calls = ("", []) if self._reader is None else self._reader.finish()
        told = self._told(self._said)
        return Choice("".join(self._texts) + rest, "tool_calls" if calls else self._reason or "", calls, told)

    def parts(self, piece: Piece) -> list[Choice]:
        """Of a stream: the text, and then how it ended."""
        text, told = self.add(piece), self._told(piece.said)
        if piece.finish_reason is None:
            self._length += len(text)
            return [Choice(text, logprobs=told)] if text or piece.said or self._reader is None else []
        rest, calls = ("", []) if self._reader is None else self._reader.finish()
        last = Choice("", "tool_calls" if calls else piece.finish_reason, calls)
        if text or rest:
            return [Choice(text + rest, logprobs=told), last]
        return [last._replace(logprobs=told)]

    def _told(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if self.request.sampling.logprobs is None:
            return None
        if self.request.messages is not None:
            return logprobs.for_chat(said, self.tokenizer)
        return logprobs.for_completions(said, self.tokenizer, self._length)


def _usage(prompts: Sequence[Sequence[int]], made: Sequence[_Made]) -> Usage:
    """`made`: the answers, of each prompt as many as of the others. A prompt counts once."""
    firsts = made[:: len(made) // len(prompts)]
    return Usage(sum(map(len, prompts)), sum(one.count for one in made), sum(one.cached for one in firsts))


def _seeded(sampling: Sampling, index: int) -> Sampling:
    """Choices of one request differ, and repeat with its seed."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
