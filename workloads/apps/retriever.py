"""Passages by meaning: documents, and new ones while it runs, found by the vectors of a `feature-extraction` endpoint.

    serve: {app: "workloads.apps.retriever:Retriever", args: {documents: notes/, model: minilm}}
    calls: [minilm]

`{"query": "...", "k": 5}` -> `{"passages": [{"text", "score", "source", ...}], "of": 1234, "left_out": 0}`. Replicas
read the same files, so all know the same; what comes or changes below `documents` is read in `follow` seconds. Rows of
a batch may bring vectors. A long text is several passages, and of one beyond a million characters the rest is left out:
`of` says how many passages there are, `left_out` how many characters are in none.
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
from llmsched.data.rows import BadRows, DataError
from llmsched.runtime import calls
from workloads.apps.index import Index
from workloads.apps.passages import LONGEST, left_out, passages

AT_ONCE = 64  # texts in one request for vectors
MOST = 100  # passages of one answer


class Retriever:
    """`documents`: a file, folder or pattern, as in a data set; `column` is what is found, `vector` what it may bring.
    `model`: the endpoint that makes vectors. `prefix`: before each query, where the model was taught one."""

    def __init__(
        self, documents: str, model: str, *, column: str = "text", vector: str = "vector", prefix: str = "",
        follow: float = 10.0,
    ) -> None:  # fmt: skip
        self._place, self._model, self._prefix = Path(documents), model, prefix
        self._column, self._vector = column, vector
        self._index = Index()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._left_out: dict[Path, int] = {}
        self._trouble = ""
        self._closing = threading.Event()
        self._take_in()
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
        return {"passages": found, "of": len(self._index), "left_out": sum(self._left_out.values())}

    def check_health(self) -> None:
        if self._trouble:
            raise RuntimeError(self._trouble)

    def look(self) -> None:
        """For what came or changed."""
        try:
            self._take_in()
            self._trouble = ""
        except Exception as error:  # a file that is half written, an endpoint that is away: the next look has it
            self._trouble = f"new documents cannot be read: {error}"
            print(f"[retriever] {self._trouble}", flush=True)

    def _take_in(self) -> None:
        for file in find(self._place):
            about = file.path.stat()
            stamp = (about.st_mtime_ns, about.st_size)
            if self._seen.get(file.path) != stamp:
                self._index.replace(str(file.path), *self._read(file))
                self._seen[file.path] = stamp

    def _read(self, file: DataFile) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Its passages, and a vector for each."""
        rows = read(file.path, str(file.path), BadRows(str(file.path)))
        if self._column not in rows[0]:
            raise DataError(f"{file.path}: there is no column {self._column!r}; it has {', '.join(rows[0])}")
        found: list[dict[str, Any]] = []
        vectors: list[Any] = []
        self._left_out[file.path] = 0
        for row, place in zip(rows, rows.places, strict=True):
            rest = {key: value for key, value in row.items() if key not in (self._column, self._vector)}
            text, vector = str(row[self._column]), row.get(self._vector)
            parts = [*passages(text)] if vector is None else [text[:LONGEST]]
            found += ({"text": part, "source": str(place), **rest} for part in parts)
            vectors += [vector] * len(parts)
            if beyond := left_out(text):
                self._left_out[file.path] += beyond
                print(f"[retriever] {place}: its last {beyond} characters or more are left out", flush=True)
        bare = [at for at, vector in enumerate(vectors) if vector is None]
        bare.sort(key=lambda at: len(found[at]["text"]))  # a short text that stands beside a long one costs as much
        for begin in range(0, len(bare), AT_ONCE):
            some = bare[begin : begin + AT_ONCE]
            made = calls.embeddings(self._model, [found[at]["text"] for at in some])
            for at, vector in zip(some, made, strict=True):
                vectors[at] = vector
        return found, np.asarray(vectors, np.float32)


def _follow(of: weakref.ref[Retriever], closing: threading.Event, every_s: float) -> None:
    """Holds no app while it waits, so that one that nobody has any more ends, and this with it."""
    while not closing.wait(every_s):
        if (app := of()) is not None:
            app.look()
        del app
