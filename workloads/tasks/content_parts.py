"""Chat templates that want the content of a message as a list of parts, as those of models that see have them.

    {"role": "user", "content": "hello"}   ->   {"role": "user", "content": [{"type": "text", "text": "hello"}]}

Given a text such a template writes nothing of it, or fails. Asked of the template itself, by whether a text comes out;
the same for what is learnt and for what is asked of an endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MARK = "\ue000\ue001"  # private use: no template trims it, no template knows it
_known: dict[str, bool] = {}  # by the text of the template

Message = Mapping[str, Any]


def fitting(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    """The messages as the tokenizer's chat template wants them; the very same where it takes texts."""
    template = str(tokenizer.chat_template)
    if template not in _known:
        asked = [{"role": "user", "content": _MARK}]
        _known[template] = not _shows(tokenizer, asked) and _shows(tokenizer, in_parts(asked))
    return in_parts(messages) if _known[template] else list(messages)


def in_parts(messages: Sequence[Message]) -> list[Message]:
    return [
        {**one, "content": [{"type": "text", "text": one["content"]}]} if isinstance(one.get("content"), str) else one
        for one in messages
    ]


def _shows(tokenizer: Any, messages: Sequence[Message]) -> bool:
    try:
        return _MARK in tokenizer.apply_chat_template(list(messages), tokenize=False)
    except Exception:  # a template fails in many ways
        return False
