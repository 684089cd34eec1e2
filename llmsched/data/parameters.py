"""What a request may say of how to go on from its prompt, checked: names that are known, values that mean something.

A name that is not known here is refused with the nearest that is, never ignored. Names are OpenAI's, and vLLM's where
OpenAI has none.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_BIASES = 1024
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
CHAT_TOKENS = 1024  # ours for chat: a model that never ends must not hold a slot for its whole context
LONGEST_SCHEMA = 65_536  # characters
# Of a request, between the gateway and replicas alone, by vLLM's name: whose keys and values of the prompt are taken.
TRANSFER = "kv_transfer_params"
# What moves them, by vLLM's name, and the variables in which vLLM reads where an engine is asked for them.
CONNECTOR = "NixlConnector"
SIDE_CHANNEL = ("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT")

# Taken by text routes. `user` is the gateway's, which chooses a replica by it, and changes no answer.
_TEXT = {
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop",
    "stop_token_ids", "seed", "logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "user",
}  # fmt: skip
CHAT = _TEXT | {
    "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template_kwargs",
}  # fmt: skip
COMPLETIONS = _TEXT | {"prompt"}
EMBEDDINGS = {"model", "input", "encoding_format", "dimensions", "user"}
CLASSIFY = {"model", "input", "explain", "user"}
TRANSCRIPTIONS = {"model", "file", "response_format", "user"}

# Understood elsewhere but not here, with the values that ask for nothing.
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default", "flex"),  # the gateway's: who goes first where replicas are full
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "stream": (None, False, "false"),
    "language": (None,),
    "prompt": (None, ""),
    "timestamp_granularities": (None,),
    "include": (None,),
    "chunking_strategy": (None,),
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
    """How to go on from a prompt. `temperature` 0 is greedy; `top_k` 0 is no bound; `seed` makes a draw repeatable.

    Penalties are of what was made so far: `frequency_penalty` for each time a token came, `presence_penalty` once,
    both taken from its logit; `repetition_penalty` divides, and counts the prompt too (Keskar et al. 2019).
    `logit_bias`: (token, added to its logit). `logprobs`: None for none, else how many of the likeliest tokens are told
    at each place. `schema`: a JSON schema as text that the whole answer keeps to.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    schema: str | None = None


class Usual(NamedTuple):
    """How a model is meant to be drawn from: of its generation_config.json, what a request leaves out."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, generation_config: Any) -> Usual:
        """As transformers' `generate` reads it: a model that does not say that it is drawn from is greedy."""
        usual = {name: getattr(generation_config, name, None) for name in cls._fields}
        if not getattr(generation_config, "do_sample", None):
            usual = {"repetition_penalty": usual["repetition_penalty"]}
        elif usual["temperature"] is None:
            usual["temperature"] = 1.0
        kinds = {name: type(default) for name, default in cls._field_defaults.items()}
        return cls(**{name: kinds[name](value) for name, value in usual.items() if value is not None})


GREEDY = Usual()


def refuse_what_is_not_here(body: Mapping[str, Any], known: set[str]) -> None:
    """Raises RequestError."""
    for name, value in body.items():
        if name in known:
            continue
        if name not in _NOT_HERE:
            message = f'There is no parameter "{name}" here.{_nearest(name, known)}'
            raise RequestError(message, param=name, code="unknown_parameter")
        if value not in _NOT_HERE[name]:
            raise RequestError(f'"{name}" is not supported here.', param=name, code="unsupported_parameter")


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f' Did you mean "{near[0]}"?' if near else ""


def sampling(body: Mapping[str, Any], usual: Usual, usual_tokens: int, *, is_chat: bool) -> Sampling:
    """Raises RequestError."""
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else (stop or [])
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f'"stop" must be a text or a list of at most {MAX_STOPS}, none empty.', param="stop")
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    seed = body.get("seed")
    if seed is not None and type(seed) is not int:
        raise RequestError('"seed" must be a whole number.', param="seed")
    draws = ("top_p", "top_k", "min_p", "seed")
    is_draw = any(body.get(word) is not None for word in draws) or body.get("n") not in (None, 1)
    temperature = 1.0 if is_draw and not usual.temperature else usual.temperature
    top_k = body.get("top_k")
    return Sampling(
        max_tokens=whole(body, name, usual_tokens, least=1, most=1 << 20),
        temperature=_number(body, "temperature", temperature, least=0.0, most=2.0),
        top_p=_number(body, "top_p", usual.top_p, least=0.0, most=1.0),
        top_k=0 if top_k == -1 else whole(body, "top_k", usual.top_k, least=0, most=1 << 20),  # vLLM's word for none
        min_p=_number(body, "min_p", usual.min_p, least=0.0, most=1.0),
        stop=tuple(stops),
        stop_token_ids=_tokens(body, "stop_token_ids"),
        seed=seed,
        frequency_penalty=_number(body, "frequency_penalty", 0.0, least=-2.0, most=2.0),
        presence_penalty=_number(body, "presence_penalty", 0.0, least=-2.0, most=2.0),
        repetition_penalty=_number(body, "repetition_penalty", usual.repetition_penalty, least=0.01, most=10.0),
        logit_bias=_biases(body),
        logprobs=_logprobs(body, is_chat),
        schema=_schema(body),
    )


# Of a request; in a batch the rows say it, or there is nobody to tell it to.
_OF_A_REQUEST = {"model", "messages", "prompt", "stream", "stream_options", "user", "n", "logprobs", "top_logprobs",
                 "tools", "tool_choice", "parallel_tool_calls"}  # fmt: skip


def check_generation(args: Mapping[str, Any]) -> None:
    """`args` that go with every row of a batch. Raises RequestError."""
    for name in args:
        if name in _OF_A_REQUEST:
            raise RequestError(f'"{name}" is for a request, and not for the rows of a batch.', param=name)
    refuse_what_is_not_here(args, (CHAT | COMPLETIONS) - _OF_A_REQUEST)
    sampling(args, GREEDY, CHAT_TOKENS, is_chat=True)


def _logprobs(body: Mapping[str, Any], is_chat: bool) -> int | None:
    """Chat has a switch and a number, completions one number."""
    if not is_chat:
        return None if body.get("logprobs") is None else whole(body, "logprobs", 0, least=0, most=MAX_LOGPROBS)
    if body.get("logprobs") is True:
        return whole(body, "top_logprobs", 0, least=0, most=MAX_LOGPROBS)
    if body.get("logprobs") not in (None, False):
        raise RequestError('"logprobs" must be true or false; "top_logprobs" is the number.', param="logprobs")
    if body.get("top_logprobs") not in (None, 0):
        raise RequestError('"top_logprobs" goes with "logprobs": true.', param="top_logprobs")
    return None


def _biases(body: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    given = body.get("logit_bias") or {}
    words = f'"logit_bias" must be an object of at most {MAX_BIASES} token numbers, each with a number in [-100, 100].'
    if not isinstance(given, dict) or len(given) > MAX_BIASES:
        raise RequestError(words, param="logit_bias")
    for token, bias in given.items():
        is_token = token.isascii() and token.isdigit() and len(token) < 10
        if not is_token or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise RequestError(words, param="logit_bias")
    return tuple((int(token), float(bias)) for token, bias in given.items())


def _tokens(body: Mapping[str, Any], name: str) -> tuple[int, ...]:
    given = body.get(name) or []
    if not isinstance(given, list) or len(given) > 256 or not all(type(one) is int and one >= 0 for one in given):
        raise RequestError(f'"{name}" must be a list of at most 256 token numbers.', param=name)
    return tuple(given)


def _schema(body: Mapping[str, Any]) -> str | None:
    """Of `response_format`."""
    form = body.get("response_format")
    if form is None or form == {"type": "text"}:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_object":
        return schema_text({"type": "object"})
    inner = form.get("json_schema") if isinstance(form, dict) and kind == "json_schema" else None
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict | bool):
        raise RequestError(
            '"response_format" must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", '
            '"json_schema": {"name": ..., "schema": {...}}}.',
            param="response_format",
        )
    return schema_text(inner["schema"])


def schema_text(schema: Any) -> str:
    text = json.dumps(schema)
    if len(text) > LONGEST_SCHEMA:
        raise RequestError(f"A schema has at most {LONGEST_SCHEMA} characters.", param="response_format")
    return text


def include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise RequestError('"stream_options" must be an object, and may have "include_usage".', param="stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            hint = _nearest(name, ["include_usage"]) or ' It may have "include_usage".'
            message = f'There is nothing called "{name}" in "stream_options".{hint}'
            raise RequestError(message, param="stream_options", code="unknown_parameter")
    if options.get("include_obfuscation"):
        raise RequestError("Nothing is added to a stream to hide its length.", param="stream_options")
    return options.get("include_usage") is True


def _number(body: Mapping[str, Any], name: str, default: float, *, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most:  # a NaN compares false
        raise RequestError(f'"{name}" must be a number from {least:g} to {most:g}.', param=name)
    return float(value)


def whole(body: Mapping[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f'"{name}" must be a whole number from {least} to {most}.', param=name)
    return value
