"""Unit vectors and what they are of, found by cosine: exact, by numpy, and by faiss beyond what numpy does well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmsched.errors import RequestError

NUMPY_AT_MOST = 200_000


class Index:
    """Unit vectors by source. What is looked at is never changed, only replaced whole: readers need no lock."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[list[dict[str, Any]], np.ndarray]] = {}
        self._now: tuple[list[dict[str, Any]], Any] = ([], None)

    def __len__(self) -> int:
        return len(self._now[0])

    @property
    def width(self) -> int:
        """Numbers of a vector; 0 while there is none."""
        return next((there.shape[1] for _, there in self._parts.values()), 0)

    def replace(self, source: str, passages: list[dict[str, Any]], vectors: np.ndarray) -> None:
        """Raises RequestError for vectors of another length than those that are there."""
        if vectors.ndim != 2:
            raise RequestError(f"{source}: its vectors are not of one length.")
        for other, (_, there) in self._parts.items():
            if other != source and there.shape[1] != vectors.shape[1]:
                raise RequestError(
                    f"{source}: vectors of {vectors.shape[1]} numbers, those of {other} {there.shape[1]}."
                )
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._put({**self._parts, source: (passages, unit)})

    def remove(self, source: str) -> None:
        """What is not there is no error."""
        self._put({other: part for other, part in self._parts.items() if other != source})

    def _put(self, parts: dict[str, tuple[list[dict[str, Any]], np.ndarray]]) -> None:
        """Nothing has changed where it raises."""
        found = [one for some, _ in parts.values() for one in some]
        whole = np.concatenate([part for _, part in parts.values()]) if parts else None
        self._now = found, whole if whole is None or len(found) <= NUMPY_AT_MOST else _faiss(whole)
        self._parts = parts

    def nearest(self, vector: np.ndarray, k: int) -> list[dict[str, Any]]:
        """The k likest by cosine, likest first."""
        passages, whole = self._now
        if not passages:
            return []
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
