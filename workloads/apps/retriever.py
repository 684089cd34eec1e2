"""Passages by meaning: documents, and new ones while it runs, found by the vectors of a `feature-extraction` endpoint.

    serve: {app: "workloads.apps.retriever:Retriever", args: {documents: notes/, model: minilm}}
    calls: [minilm]

`{"query": "...", "k": 5}` -> `{"passages": [{"text", "score", ...}], "of": 12, "left_out": 0, "set_aside": []}`.
Replicas read the same files, so all know the same; what comes, changes or goes below `documents` is noticed in `follow`
seconds. Rows of a batch may bring vectors. A long text is several passages (`of`: how many there are), and of one
beyond a million characters the rest is in none (`left_out` characters). `set_aside` says what is wrong with files that
cannot be read: each waits until it changes, and what was known of it before is still found.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from llmsched.data.files import DataFile, find
from llmsched.data.reading import read
from llmsched.data.rows import BadRows, DataError, NothingThere
from llmsched.errors import RequestError
from llmsched.runtime import calls
from workloads.apps.index import Index
from workloads.apps.passages import LONGEST, left_out, passages

AT_ONCE = 64  # texts in one request for vectors
AT_MOST_NAMED = 5  # files that are set aside
MOST = 100  # passages of one answer


class Retriever:
    """`documents`: a file, folder or pattern, as in a data set; raises DataError where none can be read. `column` is
    what is found, `vector` what it may bring. `model`: the endpoint that makes vectors. `prefix`: before each query."""

    def __init__(
        self, documents: str, model: str, *, column: str = "text", vector: str = "vector", prefix: str = "",
        follow: float = 10.0,
    ) -> None:  # fmt: skip
        self._place, self._model, self._prefix = Path(documents), model, prefix
        self._column, self._vector = column, vector
        self._index = Index()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._left_out: dict[Path, int] = {}
        self._aside: dict[Path, tuple[tuple[int, int], str]] = {}  # as it was then, and why
        self._closing = threading.Event()
        find(self._place)  # raises for a place that has none
        self._take_in()
        if not self._seen:
            raise DataError("; ".join(self._named()) or f"there is no file {documents}")
        weakref.finalize(self, self._closing.set)
        about = (weakref.ref(self), self._closing, follow)
        threading.Thread(target=_follow, args=about, daemon=True, name="follow").start()

    async def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        query, k = body.get("query"), body.get("k", 5)
        if set(body) - {"query", "k"} or not isinstance(query, str) or not query:
            raise HTTPException(422, 'a question is {"query": a text, "k": how many}')
        if type(k) is not int or not 1 <= k <= MOST:
            raise HTTPException(422, f'"k" must be a whole number from 1 to {MOST}')
        (vector,) = await asyncio.to_thread(calls.embeddings, self._model, [self._prefix + query])
        found = await asyncio.to_thread(self._index.nearest, np.asarray(vector, np.float32), k)
        left = sum([*self._left_out.values()])
        return {"passages": found, "of": len(self._index), "left_out": left, "set_aside": self._named()}

    def look(self) -> None:
        """For what came, changed or went."""
        try:
            self._take_in()
        except Exception as error:  # an endpoint that is away, a disk: the next look has it, and what is known serves
            print(f"[retriever] new documents cannot be read yet: {error}", flush=True)

    def _take_in(self) -> None:
        try:
            files = {file.path: file for file in find(self._place) if file.path.exists()}
        except NothingThere:
            files = {}
        for path in self._seen.keys() - files.keys():
            self._index.remove(str(path))
            del self._seen[path]
            self._left_out.pop(path, None)
            self._aside = {}  # one may have been refused for the length of the vectors of this
        self._aside = {path: why for path, why in self._aside.items() if path in files}
        for path, file in files.items():
            stamp = ((about := path.stat()).st_mtime_ns, about.st_size)
            if self._aside.get(path, ("",))[0] == stamp:
                continue
            if self._seen.get(path) != stamp:
                try:
                    self._take(file)
                except ValueError as error:  # of what it holds, so that only a change can mend it
                    self._aside = {**self._aside, path: (stamp, str(error))}
                    print(f"[retriever] set aside: {error}", flush=True)
                    continue
                self._seen[path] = stamp
            self._aside = {other: why for other, why in self._aside.items() if other != path}

    def _take(self, file: DataFile) -> None:
        """Raises ValueError for what is wrong with the file, LlmschedError as `calls.embeddings`."""
        found, vectors, rest_of_it = self._read(file)
        try:
            self._index.replace(str(file.path), found, vectors)
        except RequestError as error:
            raise DataError(str(error)) from None
        self._left_out[file.path] = rest_of_it

    def _named(self) -> list[str]:
        return [why for _, why in self._aside.values()][:AT_MOST_NAMED]

    def _read(self, file: DataFile) -> tuple[list[dict[str, Any]], np.ndarray, int]:
        """Its passages, a vector for each, and how many characters are in none."""
        rows = read(file.path, file.name, BadRows(file.name))
        found: list[dict[str, Any]] = []
        vectors: list[Any] = []
        not_read = 0
        for row, place in zip(rows, rows.places, strict=True):
            if self._column not in row:
                raise DataError(f"{place}: there is no column {self._column!r}; it has {', '.join(row)}")
            rest = {key: value for key, value in row.items() if key not in (self._column, self._vector)}
            text, vector = str(row[self._column]), row.get(self._vector)
            parts = [*passages(text)] if vector is None else [text[:LONGEST]]
            found += ({"text": part, "source": str(place), **rest} for part in parts)
            vectors += [vector] * len(parts)
            if beyond := left_out(text):
                not_read += beyond
                print(f"[retriever] {place}: its last {beyond} characters or more are left out", flush=True)
        bare = [at for at, vector in enumerate(vectors) if vector is None]
        bare.sort(key=lambda at: len(found[at]["text"]))  # a short text that stands beside a long one costs as much
        for begin in range(0, len(bare), AT_ONCE):
            some = bare[begin : begin + AT_ONCE]
            made = calls.embeddings(self._model, [found[at]["text"] for at in some])
            for at, vector in zip(some, made, strict=True):
                vectors[at] = vector
        try:
            return found, np.asarray(vectors, np.float32), not_read
        except (TypeError, ValueError):
            raise DataError(f"{file.name}: its vectors are not lists of numbers of one length") from None


def _follow(of: weakref.ref[Retriever], closing: threading.Event, every_s: float) -> None:
    """Holds no app while it waits, so that one that nobody has any more ends, and this with it."""
    while not closing.wait(every_s):
        if (app := of()) is not None:
            app.look()
        del app
