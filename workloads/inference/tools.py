"""Tools: what a client offers is shown to the model by its chat template, and calls are found again in what it says.

Two forms are read: JSON between <tool_call> tags, as the templates of Hermes and Qwen teach it, and an answer that is
one JSON object, as those of Llama do. A call that the client demands (`tool_choice`) is made by a schema instead.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsched.data.parameters import RequestError, schema_text

MAX_TOOLS = 128
OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tools:
    """`offered`: as the client sent them, for the template. `schema`: of the call that is demanded, else None."""

    offered: tuple[dict[str, Any], ...] = ()
    schema: str | None = None
    several: bool = True

    @property
    def names(self) -> list[str]:
        return [one["function"]["name"] for one in self.offered]


def tools_of(body: Mapping[str, Any]) -> Tools | None:
    """None where no call can be made. Raises RequestError."""
    given, choice = body.get("tools") or [], body.get("tool_choice")
    if not isinstance(given, list) or len(given) > MAX_TOOLS or not all(_is_tool(one) for one in given):
        raise RequestError(
            f'"tools" must be a list of at most {MAX_TOOLS} {{"type": "function", "function": {{"name": ..., '
            '"parameters": {a JSON schema}}}.',
            param="tools",
        )
    several = body.get("parallel_tool_calls")
    if several not in (None, True, False):
        raise RequestError('"parallel_tool_calls" must be true or false.', param="parallel_tool_calls")
    names = [one["function"]["name"] for one in given]
    if len(set(names)) < len(names):
        raise RequestError("Two tools have one name.", param="tools")
    if choice in (None, "auto", "none"):
        return Tools(tuple(given), None, several is not False) if given and choice != "none" else None
    if choice == "required" and given:
        return Tools(tuple(given), _demanded(given), False)
    named = choice.get("function") if isinstance(choice, dict) else None
    wanted = [one for one in given if isinstance(named, dict) and one["function"]["name"] == named.get("name")]
    if not wanted:
        raise RequestError(
            '"tool_choice" must be "none", "auto", "required" or {"type": "function", "function": {"name": one of '
            f"{', '.join(names) or 'the tools, and there are none'}}}}}.",
            param="tool_choice",
        )
    return Tools(tuple(given), _demanded(wanted), False)


def _is_tool(one: Any) -> bool:
    function = one.get("function") if isinstance(one, dict) and one.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    return isinstance(function.get("parameters", {}), dict)


def _demanded(tools: Sequence[Mapping[str, Any]]) -> str:
    shared: dict[str, Any] = {}  # definitions, to which references lead from the root
    calls = []
    for one in tools:
        name, arguments = one["function"]["name"], dict(one["function"].get("parameters") or {"type": "object"})
        for key, meaning in dict(arguments.pop("$defs", {})).items():
            if shared.setdefault(key, meaning) != meaning:
                raise RequestError(f'Two tools define "{key}" differently in $defs. Name one of them.', param="tools")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return schema_text({**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": shared})


class ToolReader:
    """The text of one answer on its way to a client: `push` gives what is certainly no call; `finish` the rest, and the
    calls. Text that only looks like a call stays text."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._text = ""
        self._shown = 0

    def push(self, text: str) -> str:
        self._text += text
        if self._tools.schema is not None:
            return ""
        begun = self._text.lstrip()
        if not begun or begun.startswith("{"):
            return ""
        at = self._text.find(OPEN)
        upto = at if at >= 0 else len(self._text) - _held(self._text)
        fresh = self._text[self._shown : upto] if upto > self._shown else ""
        self._shown = max(self._shown, upto)
        return fresh

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        rest = self._text[self._shown :]
        said, calls = _calls_in(rest, set(self._tools.names))
        if not calls:
            return rest, []
        return said, calls if self._tools.several else calls[:1]


def _held(text: str) -> int:
    """How many characters at its end may yet become the opening tag."""
    return next((size for size in range(min(len(text), len(OPEN) - 1), 0, -1) if text.endswith(OPEN[:size])), 0)


def _calls_in(text: str, names: set[str]) -> tuple[str, list[dict[str, Any]]]:
    """(what else is said, the calls)."""
    if OPEN not in text:
        call = _call(text, names)
        return ("", [call]) if call else (text, [])
    said, *parts = text.split(OPEN)
    calls = []
    for part in parts:
        inner, _, after = part.partition(CLOSE)
        call = _call(inner, names)
        if call is None:
            return text, []
        calls.append(call)
        said += after
    return said.strip(), calls


def _call(text: str, names: set[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("name") not in names:
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def earlier_calls(given: Any, param: str) -> list[dict[str, Any]]:
    """`tool_calls` of an earlier answer, as templates want them: arguments as the object that the text spells."""
    wrong = RequestError(f'{param}: "tool_calls" must be calls as an answer had them.', param=param)
    if not isinstance(given, list) or not given:
        raise wrong
    calls = []
    for one in given:
        function = one.get("function") if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                raise RequestError(f'{param}: the "arguments" of a call are no JSON.', param=param) from None
        inner = {"name": function["name"], "arguments": arguments}
        calls.append({"id": str(one.get("id", "")), "type": "function", "function": inner})
    return calls
