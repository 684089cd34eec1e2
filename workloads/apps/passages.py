"""A long text in passages that a model of vectors reads whole, cut where sentences or words end."""

from __future__ import annotations

from collections.abc import Iterator

LONGEST = 2_000  # characters of a passage
OF_ONE_AT_MOST = 500  # passages of one text; what is beyond is left out
_ENDS = ("\n\n", "\n", ". ", " ")  # the best place to cut first


def passages(text: str) -> Iterator[str]:
    """At most OF_ONE_AT_MOST, each of at most LONGEST characters; a text that is no longer is one, as it is."""
    if len(text) <= LONGEST:
        yield text
        return
    start = 0
    for _ in range(OF_ONE_AT_MOST):
        while start < len(text) and text[start].isspace():
            start += 1
        if start >= len(text):
            return
        end = _end(text, start)
        yield text[start:end].rstrip()
        start = end


def left_out(text: str) -> int:
    """How many characters of it are in no passage, at least."""
    return max(0, len(text) - LONGEST * OF_ONE_AT_MOST)


def _end(text: str, start: int) -> int:
    if len(text) - start <= LONGEST:
        return len(text)
    for mark in _ENDS:
        found = text.rfind(mark, start + LONGEST // 2, start + LONGEST)
        if found >= 0:
            return found + len(mark.rstrip(" "))
    return start + LONGEST
