"""Messages as OpenAI, ShareGPT, LLaMA-Factory and TRL write them -> messages as chat templates read them.

    {"role", "content": text, "tool_calls"?: [{"type", "function": {"name", "arguments": object}}], "learn"?: bool, ...}

`learn: False` is ours: an assistant's turn that does not count (OpenAI's `weight: 0`, axolotl's `train: false`). Other
keys go to the template as they are, keys without a value are left out.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
_OF_PYTHON = re.compile(
    r"<[\w.]+ object at 0x[0-9a-f]+>|(?:array|tensor|dict|defaultdict|OrderedDict|DataFrame)\(.*\)\Z", re.S
)


class Unusable(ValueError):
    """What a row lacks or has wrong, as the rest of the sentence that its place begins."""


def plain_text(value: Any, role: str) -> str:
    """The text of a role. Raises Unusable for what would be trained on as Python writes it."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:
        raise Unusable(f"has a {_kind(value)} as {role!r}; expected a text")
    text = str(value)
    if is_python(text):
        raise Unusable(
            f"has Python's way of writing a {_kind_of_python(text)} as {role!r} ({text[:40]!r}); expected a text"
        )
    return text


def is_python(text: str) -> bool:
    """A list, an object or an instance that somebody turned into a text with str()."""
    start = text.lstrip()[:2]
    if start.startswith(("[", "{", "(")) and "'" in text and start[:1] + text.rstrip()[-1:] in ("[]", "{}", "()"):
        if _of_json(text) is not None:
            return False
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
        return (
            isinstance(value, dict)
            or isinstance(value, (list, tuple))
            and any(isinstance(each, dict) for each in value)
        )
    return bool(_OF_PYTHON.fullmatch(text.strip()))


def messages_of(value: Any, before: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The messages of one conversation, with `before` in front unless it has a system message. Raises Unusable."""
    if isinstance(value, str):
        found = _of_json(value)
        if found is None:
            python = ": it is Python's way of writing one" if is_python(value) else ""
            raise Unusable(
                f"has messages that must be a list of objects with role and content, or that as JSON{python}"
            )
        value = found
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise Unusable("has messages that must be a list of objects with role and content (or from and value)")
    found = [_message(each, turn) for turn, each in enumerate(value, 1)]
    return found if not before or found[0]["role"] == "system" else [*before, *found]


def tools_of(value: Any) -> list[Any] | None:
    """The tools a conversation offers: JSON schemas, as a list or as JSON. Raises Unusable."""
    if value is None:
        return None
    found = _of_json(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Unusable("tools must be a list of objects, or that as JSON")
    return [each if "function" in each else {"type": "function", "function": each} for each in found] or None


def shows_python(text: str, call: Mapping[str, Any]) -> bool:
    """The arguments stand in the text as Python writes an object, not as JSON."""
    arguments = call["function"]["arguments"]
    return (
        isinstance(arguments, dict)
        and bool(arguments)
        and repr(arguments) in text
        and json.dumps(arguments) not in text
    )


def with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """For a template that joins texts."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def with_written_calls(message: dict[str, Any]) -> dict[str, Any]:
    """For a template that shows no calls."""
    if "tool_calls" not in message:
        return message
    written = [f"<tool_call>\n{json.dumps(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**plain, "content": "\n".join([*([message["content"]] if message["content"] else []), *written])}


def _message(message: dict[str, Any], turn: int) -> dict[str, Any]:
    given, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(given, str):
        raise Unusable(f"has messages that must be objects with role and content: turn {turn} has the role {given!r}")
    role = given if "role" in message and given not in _ROLES else _ROLES.get(given.lower())
    if role is None:
        known = ", ".join(_ROLES)
        raise Unusable(f"has a turn {turn} from {given!r}; expected one of {known}")
    others = {key: each for key, each in message.items() if each is not None and key not in _KNOWN}
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else None)
    if role == "function_call" or (role == "assistant" and calls):
        if role == "function_call":
            calls, content = content, None
        text = _content(content, turn) if content is not None else ""
        return {"role": "assistant", "content": text, "tool_calls": _calls(calls, turn), **others, **_learn(message)}
    text = _content(content, turn)
    if role == "assistant" and not text.strip() and not any(isinstance(each, str) for each in others.values()):
        raise Unusable(f"has a turn {turn} in which the assistant says nothing")
    return {"role": role, "content": text, **others, **(_learn(message) if role == "assistant" else {})}


_KNOWN = ("role", "from", "content", "value", "tool_calls", "function_call", "weight", "train", "learn")


def _learn(message: dict[str, Any]) -> dict[str, bool]:
    """OpenAI's `weight: 0 | 1`, axolotl's `train: false`."""
    for key in ("weight", "train"):
        if (value := message.get(key)) is not None:
            if value not in (0, 1):
                raise Unusable(f"has a message with {key}: {value!r}; expected 0 or 1")
            return {} if value else {"learn": False}
    return {}


def _content(content: Any, turn: int) -> str:
    if isinstance(content, list):
        return "".join(_part(part, turn) for part in content)
    if content is None:
        raise Unusable(f"has messages that must be objects with role and content: turn {turn} has no content")
    return plain_text(content, f"content of turn {turn}")


def _part(part: Any, turn: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS:
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    raise Unusable(
        f"has a content part of the type {kind!r} in turn {turn}; a model of texts reads parts of the type text"
    )


_TEXT_PARTS = ("text", "input_text", "output_text")


def _calls(value: Any, turn: int) -> list[dict[str, Any]]:
    found = _of_json(value) if isinstance(value, str) else value
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise Unusable(f"has tool calls in turn {turn} that are no list of objects")
    calls = []
    for call in found:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unusable(f"has a tool call without a name in turn {turn}")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            read = _of_json(arguments)
            if read is None and arguments.strip():
                raise Unusable(f"has a tool call in turn {turn} whose arguments are not JSON ({arguments[:40]!r})")
            arguments = {} if read is None else read
        kept = {key: call[key] for key in ("id",) if call.get(key) is not None}
        calls.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _of_json(text: str) -> Any:
    """A list or an object written as JSON; None for anything else."""
    try:
        found = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, (list, dict)) else None


def _kind(value: Any) -> str:
    kinds = {list: "list", dict: "object", bool: "true or false", bytes: "file of bytes", float: "number that is none"}
    return kinds.get(type(value), type(value).__name__)


def _kind_of_python(text: str) -> str:
    return {"[": "list", "{": "dict", "(": "tuple"}.get(text.lstrip()[:1], "object")
