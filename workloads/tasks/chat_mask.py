"""Which part of a rendered conversation an assistant's turn is, whatever the chat template does with it.

A template may render a turn differently when it is last, leave thoughts of earlier turns out, or trim a content. So the
beginning of a conversation says nothing of the whole: the whole is rendered again with another content in that one
turn, and where both texts differ is the turn. It goes on to the mark that ends a turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_MARK = "\ue000\ue001"  # private use: no template asks for it, no text begins or ends with it

Messages = Sequence[dict[str, Any]]
Render = Callable[[Messages, bool], str]  # (messages, with the beginning of an answer) -> text. May raise


class Turn(NamedTuple):
    """Characters [start, end) of the text; start == end: the template does not show it. `message` is its index."""

    message: int
    start: int
    end: int


def turns(render: Render, messages: Messages) -> tuple[str, list[Turn]]:
    """The text of a conversation, and where the assistant speaks in it, the mark that ends a turn included.

    Raises what the template raises of the conversation itself."""
    text = render(messages, False)
    found: list[Turn] = []
    footer = ""  # what ends a turn: the same for all, mostly
    regions = {
        index: _difference(text, render(_with(messages, index), False))
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    }
    for index in reversed(regions):
        first, last = regions[index]
        if index == len(messages) - 1:
            footer = _without_end_space(text[last:])
        elif first < last and not (footer and text.startswith(footer, last)):
            footer = _footer(render, messages, index)
        regions[index] = first, last + (_ended(text[last:], footer) if first < last else 0)
    before = 0
    for index, (first, last) in regions.items():
        if first < last:
            first = _start(render, messages, index, text, before, first)
            found.append(Turn(index, first, last))
            before = last
        else:
            found.append(Turn(index, first, first))
    return text, found


def _with(messages: Messages, index: int) -> list[dict[str, Any]]:
    """The conversation with another text, and nothing else, in one turn. Of a turn that calls tools only the arguments
    are others: what stands in it decides how the tools' answers after it are written."""
    message = messages[index]
    other: dict[str, Any] = {"role": message["role"], "content": _MARK}
    if calls := message.get("tool_calls"):
        other = {**message, "tool_calls": [_called_otherwise(call) for call in calls]}
    return [*messages[:index], other, *messages[index + 1 :]]


def _called_otherwise(call: dict[str, Any]) -> dict[str, Any]:
    is_text = isinstance(call["function"]["arguments"], str)
    return {**call, "function": {**call["function"], "arguments": _MARK if is_text else {_MARK: _MARK}}}


def _difference(text: str, other: str) -> tuple[int, int]:
    """[start, end) of `text` that `other` does not have; empty where they are equal."""
    first = len(os.path.commonprefix([text, other]))
    rest = min(len(text), len(other)) - first
    same = _beginning(text[::-1][:rest], other[::-1][:rest])
    return first, len(text) - same


def _beginning(one: str, other: str) -> int:
    return len(os.path.commonprefix([one, other]))


def _ended(rest: str, footer: str) -> int:
    """How much of `footer` is there; of a mark that is another one here, nothing."""
    same = _beginning(rest, footer)
    return same if same == len(footer) else max(footer.rfind(end, 0, same) for end in ">]\n") + 1


def _footer(render: Render, messages: Messages, index: int) -> str:
    """What a template writes after a turn, seen where the conversation ends with it; "" where it may not end there."""
    try:
        text, other = render(messages[: index + 1], False), render(_with(messages[: index + 1], index), False)
    except Exception:
        return ""
    return _without_end_space(text[_difference(text, other)[1] :])


def _without_end_space(footer: str) -> str:
    """The line break after a mark is the next turn's; where nothing else ends a turn, it is the mark."""
    return footer.rstrip() or footer


def _start(render: Render, messages: Messages, index: int, text: str, before: int, first: int) -> int:
    """Where the model goes on from what it is asked with. Not before `before`, and not after `first`."""
    try:
        asked = render(messages[:index], True)
        start = _beginning(asked, text)
        if before <= start <= first:
            return start if start == len(asked) else _before_a_mark(text, before, start)
        header = asked[_beginning(asked, render(messages[:index], False)) :]
    except Exception:  # a template that wants an answer's beginning after a user only, or no conversation of nothing
        return first
    for length in range(len(header), 0, -1):
        at = text.rfind(header[:length], before, first)
        if at >= 0:
            return at + length if length == len(header) else _before_a_mark(text, at, at + length)
    return first


def _before_a_mark(text: str, before: int, start: int) -> int:
    """Not in the middle of a mark such as <tool_call>, of which another one shares the beginning."""
    opened = max(text.rfind(letter, before, start) for letter in "<[")
    return opened if opened > max(text.rfind(letter, before, start) for letter in ">]") else start
