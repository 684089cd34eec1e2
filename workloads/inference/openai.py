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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from llmsched.data import parameters
from llmsched.data.media import of_text
from llmsched.data.messages import Unusable
from llmsched.data.parameters import (
    CHAT_TOKENS,
    COMPLETION_TOKENS,
    GREEDY,
    MAX_CHOICES,
    RequestError,
    Sampling,
    Usual,
)
from workloads.inference.tools import Tools, earlier_calls, tools_of

MAX_INPUTS = 2048
# Of the call of a chat template, what is ours to say.
_TEMPLATE_WORDS = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding",
    "continue_final_message", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask",
}  # fmt: skip


class Usage(NamedTuple):
    prompt: int
    completion: int = 0
    cached: int = 0  # of the prompt, not read again

    def data(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A chat (`messages`) or completions (`prompts`) request. Each prompt is answered `n` times."""

    model: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    prompts: list[str | list[int]] | None = None
    n: int = 1
    include_usage: bool = False  # in a stream
    tools: Tools | None = None
    template: Mapping[str, Any] = field(default_factory=dict)  # for the chat template
    transfer: Mapping[str, Any] | None = None  # where the prompt was read already; see split.py


# --- requests ---------------------------------------------------------------------------------------------------


def chat_request(body: Mapping[str, Any], usual: Usual = GREEDY) -> TextRequest:
    """Raises RequestError."""
    parameters.refuse_what_is_not_here(body, parameters.CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError('"messages" must be a list of at least one {"role", "content"}.', param="messages")
    tools, sampling = tools_of(body), parameters.sampling(body, usual, CHAT_TOKENS, is_chat=True)
    if tools is not None and tools.schema is not None:
        if sampling.schema is not None:
            raise RequestError('A demanded call leaves no room for "response_format".', param="response_format")
        sampling = replace(sampling, schema=tools.schema)
    return TextRequest(
        model=str(body.get("model", "")),
        messages=[_message(message, f"messages[{n}]") for n, message in enumerate(messages)],
        sampling=sampling,
        n=parameters.whole(body, "n", 1, least=1, most=MAX_CHOICES),
        include_usage=parameters.include_usage(body),
        tools=tools,
        template=_template(body),
    )


def completion_request(body: Mapping[str, Any], usual: Usual = GREEDY) -> TextRequest:
    """Raises RequestError."""
    parameters.refuse_what_is_not_here(body, parameters.COMPLETIONS)
    return TextRequest(
        model=str(body.get("model", "")),
        prompts=_inputs(body, "prompt"),
        sampling=parameters.sampling(body, usual, COMPLETION_TOKENS, is_chat=False),
        n=parameters.whole(body, "n", 1, least=1, most=MAX_CHOICES),
        include_usage=parameters.include_usage(body),
    )


def _template(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict) or (ours := sorted(_TEMPLATE_WORDS & set(given))):
        words = f"may not say {', '.join(ours)}" if isinstance(given, dict) else "must be an object"
        raise RequestError(f'"chat_template_kwargs" {words}.', param="chat_template_kwargs")
    return given


def embedding_inputs(body: Mapping[str, Any]) -> tuple[list[str | list[int]], bool]:
    """The texts (or token lists) to embed, and whether vectors go back as base64. Raises RequestError."""
    parameters.refuse_what_is_not_here(body, parameters.EMBEDDINGS)
    if body.get("dimensions") is not None:
        raise RequestError("This model's vectors have one size; leave out dimensions.", param="dimensions")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RequestError('"encoding_format" is "float" or "base64".', param="encoding_format")
    return _inputs(body, "input"), form == "base64"


def classify_inputs(body: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """Each (text, its pair or None), or {"image"} or {"audio"}: `input` is one, or a list, also of [text, pair]. And
    whether the answers are to be explained. Raises RequestError."""
    parameters.refuse_what_is_not_here(body, parameters.CLASSIFY)
    explain = body.get("explain") or False
    if explain is not True and explain is not False:
        raise RequestError('"explain" is true or false.', param="explain")
    given = body.get("input")
    if isinstance(given, str | dict):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_INPUTS:
        raise RequestError(
            f'"input" must be a text or a list of 1 to {MAX_INPUTS} texts, [text, text] pairs or '
            '{"text", "text_pair"} objects.',
            param="input",
        )
    return [_text_and_pair(one, f"input[{n}]") for n, one in enumerate(given)], explain


def transcription(body: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The file, and whether the bare text goes back. Raises RequestError."""
    parameters.refuse_what_is_not_here(body, parameters.TRANSCRIPTIONS)
    file, form = body.get("file"), body.get("response_format", "json")
    if not isinstance(file, bytes) or not file:
        raise RequestError('"file" must be an audio file, sent as a form does.', param="file")
    if form not in ("json", "text"):
        raise RequestError(
            '"response_format" is "json" or "text" here: nothing is known of times.', param="response_format"
        )
    return file, form == "text"


def _text_and_pair(one: Any, param: str) -> Any:
    if isinstance(one, dict):
        if strange := sorted(set(one) - {"text", "text_pair", "image", "audio"}):
            raise RequestError(f'{param} has "{strange[0]}"; expected text, text_pair, image, audio.', param=param)
        if "image" in one or "audio" in one:
            if all(isinstance(part, str) for part in one.values()):
                return one
            raise RequestError(f"{param}: an image or audio is base64 or a data: URL.", param=param)
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
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise RequestError(
            f'{param}: role "{role}" is not one of system, developer, user, assistant, tool.', param=param
        )
    if role == "assistant" and message.get("tool_calls") is not None:
        calls = earlier_calls(message["tool_calls"], param)
        return {"role": role, "content": content if isinstance(content, str) else "", "tool_calls": calls}
    if isinstance(content, list):
        parts = [_part(part, f"{param}.content[{n}]", param) for n, part in enumerate(content)]
        if role == "user" and any(part["type"] == "image" for part in parts):
            return {"role": role, "content": parts}
        if any(part["type"] == "image" for part in parts):
            raise RequestError(f'{param}: an image is shown by the role "user".', param=param)
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise RequestError(f"{param}: content must be a text or a list of text parts.", param=param)
    if role == "tool":
        return {"role": role, "content": content, "tool_call_id": str(message.get("tool_call_id", ""))}
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, place: str, param: str) -> dict[str, Any]:
    """{"type": "text", "text"} or {"type": "image", "image": its bytes}. Raises RequestError."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "input_audio":
        raise RequestError(f"{place}: audio goes to /v1/audio/transcriptions, not into a chat.", param=param)
    given = part.get("image_url") if kind == "image_url" else None
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        raise RequestError(f"{place}: only text and image_url parts are understood.", param=param)
    if given.get("detail", "auto") != "auto":
        raise RequestError(f'{place}: "detail" is not supported here.', param=param)
    if not given["url"].startswith("data:"):
        raise RequestError(f"{place}: nothing is fetched; send the image as a data: URL.", param=param)
    try:
        return {"type": "image", "image": of_text(given["url"])}
    except Unusable as error:
        raise RequestError(f"{place}: the image {error}.", param=param) from None


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


class Choice(NamedTuple):
    """One answer, or a chunk of it: `reason` is on the last one."""

    text: str
    reason: str | None = None
    calls: Sequence[dict[str, Any]] = ()
    logprobs: dict[str, Any] | None = None


# --- answers ----------------------------------------------------------------------------------------------------


class Answer:
    """The answer to one text request: whole, or in chunks that share its id."""

    def __init__(self, request: TextRequest) -> None:
        self._is_chat = request.messages is not None
        self._began: set[int] = set()  # choices that have had their first chunk
        word = "chatcmpl" if self._is_chat else "cmpl"
        self._id, self._model, self._created = f"{word}-{uuid.uuid4().hex}", request.model, int(time.time())

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """In order."""
        made: list[dict[str, Any]] = []
        for index, one in enumerate(choices):
            said: dict[str, Any] = {"text": one.text}
            if self._is_chat:
                said = {"message": {"role": "assistant", "content": one.text}}
            if one.calls:
                said["message"] |= {"content": one.text or None, "tool_calls": one.calls}
            made.append({"index": index, **said, "logprobs": one.logprobs, "finish_reason": one.reason})
        return {**self._envelope(""), "choices": made, "usage": usage.data()}

    def chunk(self, index: int, one: Choice) -> dict[str, Any]:
        said: dict[str, Any] = {"text": one.text}
        if self._is_chat:
            delta: dict[str, Any] = {} if index in self._began else {"role": "assistant"}
            if one.text or not (one.reason or one.calls):
                delta["content"] = one.text
            if one.calls:
                delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(one.calls)]
            self._began.add(index)
            said = {"delta": delta}
        if one.logprobs is not None:
            said["logprobs"] = one.logprobs
        return {**self._envelope(".chunk"), "choices": [{"index": index, **said, "finish_reason": one.reason}]}

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


def classify_answer(model: str, answers: Sequence[Sequence[Mapping[str, Any]]], tokens: int) -> dict[str, Any]:
    """`answers`: of each input what was found: {"label", "score", ...}; one may have several, or none."""
    data = [{"index": index, **each} for index, found in enumerate(answers) for each in found]
    return {"object": "list", "data": data, "model": model, "usage": _input_usage(tokens)}


def _input_usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
