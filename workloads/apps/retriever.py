"""Passages by meaning: documents, and new ones while it runs, found by the vectors of a `feature-extraction` endpoint.

    serve: {app: "workloads.apps.retriever:Retriever", args: {documents: notes/, model: minilm}}
    calls: [minilm]

`{"query": "...", "k": 5}` -> `{"passages": [{"text", "score", ...}], "of": 12, "left_out": 0, "set_aside": []}`.
Replicas read the same files, so all know the same; what comes, changes or goes below `documents` is noticed in `follow`
seconds. Rows of a batch may bring vectors. A long text is several passages (`of`: how many there are), and of one
beyond a million characters, or a .txt file of as many, the rest is in none (`left_out` characters). `set_aside` says
what is wrong with files that cannot be read: each waits until it changes, and what was known of it before is still
found.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from llmsched.data.files import DataFile, find, is_pattern
from llmsched.data.media import folder_of
from llmsched.data.rows import DataError, NothingThere
from llmsched.errors import RequestError
from llmsched.runtime import calls
from workloads.apps.asking import asked, once_there
from workloads.apps.documents import document, is_of_the_disk
from workloads.apps.index import Index

AGAIN_S = 5.0
AT_MOST_NAMED = 5  # files that are set aside
MOST = 100  # passages of one answer
LONGEST_QUERY = 20_000  # characters: two messages to a Desk, and more than any model reads


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
        self._aside: dict[Path, tuple[tuple[int, int] | None, str]] = {}  # as it was then (None: look again), and why
        self._closing = threading.Event()
        if not is_pattern(documents) and not self._place.exists():
            raise DataError(f"documents: there is no file or folder {documents}")
        find(self._place, aside={})  # raises for a place that has none
        once_there(self._take_in, min(follow, AGAIN_S))
        if not self._seen:
            raise DataError("; ".join(self._named()) or f"there is no file {documents}")
        weakref.finalize(self, self._closing.set)
        about = (weakref.ref(self), self._closing, follow)
        threading.Thread(target=_follow, args=about, daemon=True, name="follow").start()

    async def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        query, k = body.get("query"), body.get("k", 5)
        if set(body) - {"query", "k"} or not isinstance(query, str) or not query:
            raise HTTPException(422, 'a question is {"query": a text, "k": how many}')
        if len(query) > LONGEST_QUERY:
            raise HTTPException(422, f'"query" has {len(query)} characters; at most {LONGEST_QUERY} are read')
        if type(k) is not int or not 1 <= k <= MOST:
            raise HTTPException(422, f'"k" must be a whole number from 1 to {MOST}')
        (vector,) = await asyncio.to_thread(asked, calls.embeddings, self._model, [self._prefix + query])
        if (width := self._index.width) not in (0, len(vector)):
            other = f"the documents have vectors of {width:,} numbers, and {self._model} makes some of {len(vector):,}"
            raise HTTPException(409, f"{other}: they are of another model")
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
        unknown: dict[Path, str] = {}
        try:
            files = {file.path: file for file in find(self._place, aside=unknown) if file.path.exists()}
        except NothingThere:
            files = {}
        there = files.keys() | unknown.keys()
        for path in self._seen.keys() - there:
            self._index.remove(self._name(path))
            del self._seen[path]
            self._left_out.pop(path, None)
            self._aside = {}  # one may have been refused for the length of the vectors of this
        self._aside = {path: why for path, why in self._aside.items() if path in there}
        for path, why in unknown.items():
            self._set_aside(path, None, f"{self._name(path)}: {why}")
        for path, file in files.items():
            about = path.stat()
            stamp = about.st_mtime_ns, about.st_size
            if self._aside.get(path, (None,))[0] == stamp:
                continue
            if self._seen.get(path) != stamp:
                try:
                    self._take(file)
                except DataError as error:
                    self._set_aside(path, None if is_of_the_disk(error) else stamp, str(error))
                    continue
                self._seen[path] = stamp
            self._aside = {other: why for other, why in self._aside.items() if other != path}

    def _take(self, file: DataFile) -> None:
        """Raises DataError for what is wrong with the file, LlmschedError as `calls.embeddings`."""
        name = self._name(file.path)
        found = document(file, name, self._column, self._vector, partial(calls.embeddings, self._model))
        try:
            self._index.replace(name, found.passages, found.vectors)
        except RequestError as error:
            raise DataError(str(error)) from None
        self._left_out[file.path] = found.left_out

    def _set_aside(self, path: Path, stamp: tuple[int, int] | None, why: str) -> None:
        if self._aside.get(path) != (stamp, why):
            print(f"[retriever] set aside: {why}", flush=True)
        self._aside = {**self._aside, path: (stamp, why)}

    def _name(self, path: Path) -> str:
        """From the folder of the documents on."""
        return str(path.relative_to(folder_of(self._place)))

    def _named(self) -> list[str]:
        return [why for _, why in self._aside.values()][:AT_MOST_NAMED]


def _follow(of: weakref.ref[Retriever], closing: threading.Event, every_s: float) -> None:
    """Holds no app while it waits, so that one that nobody has any more ends, and this with it."""
    while not closing.wait(every_s):
        if (app := of()) is not None:
            app.look()
        del app
