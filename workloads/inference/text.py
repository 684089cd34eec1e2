"""From tokens to text that may be shown: whole characters only, and nothing that might yet become a stop text.

A token can be part of a character, and a stop text can come in parts: both are held back until they are decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HALF = "\ufffd"  # what a tokenizer writes for bytes that are not (yet) a character
_PATIENCE = 8  # tokens a character may take before what is there is shown as it is


class TextStream:
    """The growing text of one answer. `push` tokens; `stopped` says that a stop text has come."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._from = 0  # tokens from here on are decoded, so that a first one keeps its leading space
        self._shown = 0  # tokens before this one are in the text already
        self._held = ""  # decoded, but perhaps the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now; often "" ."""
        self._ids.append(token)
        before, now = self._decode(self._ids[self._from : self._shown]), self._decode(self._ids[self._from :])
        if now.endswith(_HALF) and len(self._ids) - self._shown < _PATIENCE:
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """Whatever was held back and is not part of a stop text."""
        if self.stopped:
            return ""
        before, now = self._decode(self._ids[self._from : self._shown]), self._decode(self._ids[self._from :])
        self._shown = len(self._ids)
        text = self._release(now[len(before) :])
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        if not self._stop:
            return text
        ends = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
