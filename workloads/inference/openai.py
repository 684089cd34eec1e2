"""OpenAI's protocol without a network: requests checked into records, answers and chunks built from text and counts.

What a client asked for and this server does not do is refused by name, never ignored. Plain dictionaries on purpose:
a request passes here on every call.
"""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_CHOICES = 16
MAX_INPUTS = 2048
MAX_STOPS = 4
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
CHAT_TOKENS = 1024  # ours for chat: a model that never ends must not hold a slot for its whole context

# Parameters that are understood elsewhere but not here, with the values that mean "off".
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
}


class RequestError(Exception):
    """The request cannot be answered. `answer()` is what goes back; `status` is the HTTP status it deserves."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request", status: int = 400):
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def answer(self) -> dict[str, Any]:
        kinds = {404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "status": self.status}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to go on from a prompt. `temperature` 0 is greedy; `top_k` 0 is no bound; `seed` makes a draw repeatable."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int = 0


class Usual(NamedTuple):
    """How a model is meant to be drawn from: of its generation_config.json, what a request leaves out."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, generation_config: Any) -> Usual:
        """As transformers' `generate` reads it: a model that does not say that it is drawn from is greedy."""
        if not getattr(generation_config, "do_sample", None):
            return cls()
        temperature, top_p, top_k = (getattr(generation_config, name, None) for name in cls._fields)
        return cls(
            1.0 if temperature is None else float(temperature),
            1.0 if top_p is None else float(top_p),
            0 if top_k is None else int(top_k),
        )


class Usage(NamedTuple):
    prompt: int
    completion: int = 0

    def data(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


GREEDY = Usual()


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A chat (`messages`) or completions (`prompts`) request. Each prompt is answered `n` times."""

    model: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    prompts: list[str | list[int]] | None = None
    n: int = 1
    include_usage: bool = False  # in a stream


# --- requests ---------------------------------------------------------------------------------------------------


def chat_request(body: Mapping[str, Any], usual: Usual = GREEDY) -> TextRequest:
    """Raises RequestError."""
    _refuse_what_is_not_here(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError('"messages" must be a list of at least one {"role", "content"}.', param="messages")
    return TextRequest(
        model=str(body.get("model", "")),
        messages=[_message(message, f"messages[{n}]") for n, message in enumerate(messages)],
        sampling=_sampling(body, usual, CHAT_TOKENS),
        n=_whole(body, "n", 1, least=1, most=MAX_CHOICES),
        include_usage=_include_usage(body),
    )


def completion_request(body: Mapping[str, Any], usual: Usual = GREEDY) -> TextRequest:
    """Raises RequestError."""
    _refuse_what_is_not_here(body)
    return TextRequest(
        model=str(body.get("model", "")),
        prompts=_inputs(body, "prompt"),
        sampling=_sampling(body, usual, COMPLETION_TOKENS),
        n=_whole(body, "n", 1, least=1, most=MAX_CHOICES),
        include_usage=_include_usage(body),
    )


def embedding_inputs(body: Mapping[str, Any]) -> tuple[list[str | list[int]], bool]:
    """The texts (or token lists) to embed, and whether vectors go back as base64. Raises RequestError."""
    if body.get("dimensions") is not None:
        raise RequestError("This model's vectors have one size; leave out dimensions.", param="dimensions")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RequestError('"encoding_format" is "float" or "base64".', param="encoding_format")
    return _inputs(body, "input"), form == "base64"


def classify_inputs(body: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(text, its pair or None): `input` is a text, or a list of texts, [text, pair] or {"text", "text_pair"}."""
    given = body.get("input")
    if isinstance(given, str | dict):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_INPUTS:
        raise RequestError(
            f'"input" must be a text or a list of 1 to {MAX_INPUTS} texts, [text, text] pairs or '
            '{"text", "text_pair"} objects.',
            param="input",
        )
    return [_text_and_pair(one, f"input[{n}]") for n, one in enumerate(given)]


def _text_and_pair(one: Any, param: str) -> tuple[str, str | None]:
    if isinstance(one, dict):
        one = [one.get("text"), *([one["text_pair"]] if one.get("text_pair") is not None else [])]
    if isinstance(one, str):
        return one, None
    if isinstance(one, list) and 1 <= len(one) <= 2 and all(isinstance(part, str) for part in one):
        return one[0], one[1] if len(one) == 2 else None
    raise RequestError(f"{param} must be a text, a pair of texts or an object with text and text_pair.", param=param)


def _message(message: Any, param: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f'{param} must be an object with "role" and "content".', param=param)
    role, content = message["role"], message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise RequestError(f'{param}: role "{role}" is not one of system, developer, user, assistant.', param=param)
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise RequestError(f"{param}: only text parts are understood.", param=param)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{param}: content must be a text or a list of text parts.", param=param)
    return {"role": "system" if role == "developer" else role, "content": content}


def _inputs(body: Mapping[str, Any], name: str) -> list[str | list[int]]:
    """A text, a list of texts, a list of token numbers, or a list of such lists."""
    given = body.get(name)
    if isinstance(given, str) or isinstance(given, list) and given and all(type(token) is int for token in given):
        given = [given]
    is_list = isinstance(given, list) and 1 <= len(given) <= MAX_INPUTS
    if not is_list or not all(_is_input(one) for one in given):  # type: ignore[union-attr]
        raise RequestError(
            f'"{name}" must be a text, a list of 1 to {MAX_INPUTS} texts, or token numbers; none empty.', param=name
        )
    return given  # type: ignore[return-value]


def _is_input(one: Any) -> bool:
    is_tokens = isinstance(one, list) and all(type(token) is int and token >= 0 for token in one)
    return (isinstance(one, str) or is_tokens) and bool(one)


def _sampling(body: Mapping[str, Any], usual: Usual, usual_tokens: int) -> Sampling:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else (stop or [])
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f'"stop" must be a text or a list of at most {MAX_STOPS}, none empty.', param="stop")
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    seed = body.get("seed")
    if seed is not None and type(seed) is not int:
        raise RequestError('"seed" must be a whole number.', param="seed")
    is_draw = any(body.get(word) is not None for word in ("top_p", "seed")) or body.get("n") not in (None, 1)
    temperature = 1.0 if is_draw and not usual.temperature else usual.temperature
    return Sampling(
        max_tokens=_whole(body, name, usual_tokens, least=1, most=1 << 20),
        temperature=_number(body, "temperature", temperature, least=0.0, most=2.0),
        top_p=_number(body, "top_p", usual.top_p, least=0.0, most=1.0),
        top_k=usual.top_k,
        stop=tuple(stops),
        seed=seed,
    )


def _number(body: Mapping[str, Any], name: str, default: float, *, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most:  # a NaN compares false
        raise RequestError(f'"{name}" must be a number from {least:g} to {most:g}.', param=name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f'"{name}" must be a whole number from {least} to {most}.', param=name)
    return value


def _include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _refuse_what_is_not_here(body: Mapping[str, Any]) -> None:
    for name, off in _NOT_HERE.items():
        if name in body and body[name] not in off:
            raise RequestError(f'"{name}" is not supported here.', param=name, code="unsupported_parameter")


# --- answers ----------------------------------------------------------------------------------------------------


class Answer:
    """The answer to one text request: whole, or in chunks that share its id."""

    def __init__(self, request: TextRequest) -> None:
        self._is_chat = request.messages is not None
        self._began: set[int] = set()  # choices that have had their first chunk
        word = "chatcmpl" if self._is_chat else "cmpl"
        self._id, self._model, self._created = f"{word}-{uuid.uuid4().hex}", request.model, int(time.time())

    def whole(self, choices: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """`choices`: (text, finish reason) in order."""
        made: list[dict[str, Any]] = []
        for index, (text, reason) in enumerate(choices):
            said: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
            )
            made.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        return {**self._envelope(""), "choices": made, "usage": usage.data()}

    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self._is_chat:
            delta: dict[str, str] = {} if index in self._began else {"role": "assistant"}
            if text or not reason:
                delta["content"] = text
            self._began.add(index)
            said = {"delta": delta}
        return {**self._envelope(".chunk"), "choices": [{"index": index, **said, "finish_reason": reason}]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._envelope(".chunk"), "choices": [], "usage": usage.data()}

    def _envelope(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._is_chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def embeddings_answer(model: str, vectors: Sequence[Sequence[float]], tokens: int, as_base64: bool) -> dict[str, Any]:
    def shown(vector: Sequence[float]) -> Any:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else list(vector)

    data = [{"object": "embedding", "index": n, "embedding": shown(vector)} for n, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": model, "usage": _input_usage(tokens)}


def classify_answer(model: str, scores: Sequence[Mapping[str, float]], tokens: int) -> dict[str, Any]:
    """`scores`: for each input {label: probability}."""
    data = []
    for index, each in enumerate(scores):
        label = max(each, key=lambda name: each[name])
        data.append({"index": index, "label": label, "score": each[label], "scores": dict(each)})
    return {"object": "list", "data": data, "model": model, "usage": _input_usage(tokens)}


def _input_usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
