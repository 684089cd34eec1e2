"""A file as a `Retriever` reads it: its passages with a vector for each, or what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from llmsched import sanitize
from llmsched.data.files import DataFile
from llmsched.data.reading import read
from llmsched.data.rows import BadRows, DataError
from llmsched.errors import RequestError
from workloads.apps.asking import is_refused
from workloads.apps.passages import LONGEST, OF_ONE_AT_MOST, left_out, passages
from workloads.inference.values import Unsayable, encoded

AT_MOST = LONGEST * OF_ONE_AT_MOST  # characters of one text
AT_ONCE = 64  # texts in one request for vectors
Embed = Callable[[list[str]], list[list[float]]]


class Document(NamedTuple):
    passages: list[dict[str, Any]]
    vectors: np.ndarray  # [passages, size]
    left_out: int  # characters that are in no passage


def document(file: DataFile, name: str, column: str, vector: str, embed: Embed) -> Document:
    """`name`: what it is called, in the place of its whole path. `column` is found by, `vector` is what a row may have.
    Raises DataError for what is wrong with it, and as `embed`, whose answer to what it refuses is wrong with it too."""
    try:
        found, vectors, not_read = _rows(file, name, column, vector)
        _fill(found, vectors, embed)
        return Document(found, _numbers(name, vectors), not_read)
    except DataError as error:
        raise DataError(str(error).replace(str(file.path), name)) from error.__cause__
    except RequestError as error:
        if not is_refused(error):
            raise
        raise DataError(f"{name}: {error}") from None


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether the disk would not give the file, which may pass without a change of the file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return True
        error = error.__cause__
    return False


def _rows(file: DataFile, name: str, column: str, vector: str) -> tuple[list[dict[str, Any]], list[Any], int]:
    """Passages, the vector of each or None, and how many characters are in none."""
    rows = read(file.path, name, BadRows(name))
    found: list[dict[str, Any]] = []
    vectors: list[Any] = []
    not_read, room = 0, AT_MOST if file.kind == "txt" else math.inf  # the lines of a text are one document
    for row, at in zip(rows, rows.places, strict=True):
        place = str(at._replace(file=name))
        if column not in row:
            raise DataError(f"{place}: there is no column {column!r}; it has {', '.join(row)}")
        rest = {key: _plain(value) for key, value in row.items() if key not in (column, vector)}
        text, given = sanitize.unicode(str(row[column])), row.get(vector)
        if (room := room - len(text)) < 0 and found:
            not_read += len(text)
            continue
        parts = [*passages(text)] if given is None else [text[:LONGEST]]
        some = [{"text": part, "source": place, **rest} for part in parts]
        try:
            encoded(some)
        except Unsayable as error:  # or every answer that has it would be none
            raise DataError(f"{place}: {error}") from None
        found += some
        vectors += [given] * len(parts)
        if beyond := left_out(text):
            not_read += beyond
            print(f"[retriever] {place}: its last {beyond} characters or more are left out", flush=True)
    if room < 0:
        print(f"[retriever] {name}: what is beyond its first {AT_MOST:,} characters is left out", flush=True)
    return found, vectors, not_read


def _plain(value: Any) -> Any:
    """As JSON has it: what is no number is nothing, and half a character is spelled out."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return sanitize.unicode(value) if isinstance(value, str) else value


def _fill(found: list[dict[str, Any]], vectors: list[Any], embed: Embed) -> None:
    bare = [at for at, vector in enumerate(vectors) if vector is None]
    bare.sort(key=lambda at: len(found[at]["text"]))  # a short text that stands beside a long one costs as much
    for begin in range(0, len(bare), AT_ONCE):
        some = bare[begin : begin + AT_ONCE]
        for at, vector in zip(some, embed([found[at]["text"] for at in some]), strict=True):
            vectors[at] = vector


def _numbers(name: str, vectors: list[Any]) -> np.ndarray:
    try:
        made = np.asarray(vectors, np.float32)
    except (TypeError, ValueError, OverflowError):
        made = np.empty(0, np.float32)
    if made.ndim != 2 or not made.shape[1]:
        raise DataError(f"{name}: its vectors are not lists of numbers of one length")
    if not np.isfinite(made).all():
        raise DataError(f"{name}: its vectors have a number that is not finite")
    return made
