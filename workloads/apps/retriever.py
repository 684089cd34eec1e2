"""Passages by meaning: documents, and new ones while it runs, found by the vectors of a `feature-extraction` endpoint.

    serve: {app: "workloads.apps.retriever:Retriever", args: {documents: notes/, model: minilm}}
    calls: [minilm]

`{"query": "...", "k": 5}` -> `{"passages": [{"text", "score", "source", ...}], "of": 1234}`. Replicas read the same
files, so all know the same; what comes or changes below `documents` is read in `follow` seconds. Rows of a batch may
bring vectors. Search is exact: numpy, and faiss beyond 200,000 passages.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from llmsched.data.files import DataFile, find
from llmsched.data.reading import read
from llmsched.data.rows import BadRows, DataError
from llmsched.errors import RequestError
from llmsched.runtime import calls

AT_ONCE = 64  # texts in one request for vectors
NUMPY_AT_MOST = 200_000
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
        self._trouble = ""
        self._closing = threading.Event()
        self._take_in()
        threading.Thread(target=self._follow, args=(follow,), daemon=True, name="follow").start()

    async def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        query, k = body.get("query"), body.get("k", 5)
        if set(body) - {"query", "k"} or not isinstance(query, str) or not query:
            raise HTTPException(422, 'a question is {"query": a text, "k": how many}')
        if type(k) is not int or not 1 <= k <= MOST:
            raise HTTPException(422, f'"k" must be a whole number from 1 to {MOST}')
        (vector,) = await asyncio.to_thread(calls.embeddings, self._model, [self._prefix + query])
        found = await asyncio.to_thread(self._index.nearest, np.asarray(vector, np.float32), k)
        return {"passages": found, "of": len(self._index)}

    def check_health(self) -> None:
        if self._trouble:
            raise RuntimeError(self._trouble)

    def __del__(self) -> None:
        self._closing.set()

    def _follow(self, every_s: float) -> None:
        while not self._closing.wait(every_s):
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
        passages, vectors = [], []
        for row, place in zip(rows, rows.places, strict=True):
            rest = {key: value for key, value in row.items() if key not in (self._column, self._vector)}
            passages.append({"text": str(row[self._column]), "source": str(place), **rest})
            vectors.append(row.get(self._vector))
        bare = [at for at, vector in enumerate(vectors) if vector is None]
        for begin in range(0, len(bare), AT_ONCE):
            some = bare[begin : begin + AT_ONCE]
            made = calls.embeddings(self._model, [passages[at]["text"] for at in some])
            for at, vector in zip(some, made, strict=True):
                vectors[at] = vector
        return passages, np.asarray(vectors, np.float32)


class Index:
    """Unit vectors by source. What is looked at is never changed, only replaced whole: readers need no lock."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[list[dict[str, Any]], np.ndarray]] = {}
        self._now: tuple[list[dict[str, Any]], Any] = ([], None)

    def __len__(self) -> int:
        return len(self._now[0])

    def replace(self, source: str, passages: list[dict[str, Any]], vectors: np.ndarray) -> None:
        """Raises RequestError for vectors of another length than those that are there."""
        if vectors.ndim != 2:
            raise RequestError(f"{source}: its vectors are not of one length.")
        for other, (_, there) in self._parts.items():
            if other != source and there.shape[1] != vectors.shape[1]:
                raise RequestError(
                    f"{source}: vectors of {vectors.shape[1]} numbers, those of {other} {there.shape[1]}."
                )
        self._parts[source] = passages, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        whole = np.concatenate([part for _, part in self._parts.values()])
        found = [one for some, _ in self._parts.values() for one in some]
        self._now = found, whole if len(found) <= NUMPY_AT_MOST else _faiss(whole)

    def nearest(self, vector: np.ndarray, k: int) -> list[dict[str, Any]]:
        """The k likest by cosine, likest first."""
        passages, whole = self._now
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        k = min(k, len(passages))
        if isinstance(whole, np.ndarray):
            scores = whole @ vector
            best: Sequence[int] = np.argpartition(-scores, k - 1)[:k].tolist()
            ranked = sorted(best, key=lambda at: (-scores[at], at))
            return [{**passages[at], "score": round(float(scores[at]), 6)} for at in ranked]
        told, places = whole.search(vector[None], k)
        return [{**passages[at], "score": round(float(s), 6)} for s, at in zip(told[0], places[0], strict=True)]


def _faiss(whole: np.ndarray) -> Any:
    try:
        import faiss
    except ImportError:
        raise RequestError(
            f"{len(whole)} passages want faiss.", hint="environment: {pip: [faiss-cpu]} in the spec brings it."
        ) from None
    index = faiss.IndexFlatIP(whole.shape[1])
    index.add(whole)
    return index
