"""What a user will like, first: by how it is liked, how they like, and how near its text is to what they liked before.

    serve: {app: "workloads.apps.ranker:Ranker", args: {model: minilm, features: [year]}}
    calls: [minilm]

`{"user": "u1", "rank": [{"item": "7", "text": "...", "year": 1994}, ...], "k": 10}` -> the best k, each with a `score`
(the chance that it is liked) and `because`: what each feature adds to it. `{"seen": [{"user", "item", "text",
"liked"}]}` teaches it, one answer after the other: the few weights too. `{}` -> the weights, and how much it has seen.
What it knows lasts as long as its replica, so it has one: `replicas: 1`. Rows that are none are set aside, counted and
named.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from llmsched import sanitize
from llmsched.runtime import calls, progress
from workloads.apps.asking import asked
from workloads.apps.online_weights import OnlineWeights
from workloads.apps.tastes import ITEMS_AT_MOST, Recent, Tastes

AT_ONCE = 64  # texts in one request for vectors
ROWS_AT_MOST = 2_000  # of one request
TEXT_AT_MOST = 2_000  # characters that are read
LARGEST = 1e15  # of a feature: one that is beyond would be all that its mean and spread still show
NAMED = 5  # rows that were set aside
OWN = ("user", "item", "match")
_EXPECTED = (
    'expected {"user": NAME, "rank": [{"item", "text", ...}], "k": 10}, {"seen": [{"user", "item", "liked"}]} or {}'
)


class Ranker:
    """`model`: the endpoint that makes vectors of texts; without one, texts do not count. `features`: columns of
    numbers that count besides."""

    def __init__(self, *, model: str = "", features: Sequence[str] = ()) -> None:
        if strange := [name for name in features if name in (*OWN, "text", "liked")]:
            raise ValueError(f"features: {', '.join(strange)} stands for something already")
        self._model, self._features = model, [*features]
        self._weights, self._tastes = OnlineWeights([*OWN, *features]), Tastes()
        self._vectors: Recent[np.ndarray] = Recent(ITEMS_AT_MOST)
        self._aside, self._named = 0, deque[str](maxlen=NAMED)
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        names = sorted(body) if isinstance(body, dict) else None
        if names == []:
            with self._lock:
                return {"seen": self._weights.seen, "weights": self._weights.weights, "set_aside": self._aside,
                        "named": [*self._named]}  # fmt: skip
        is_known = names in (["seen"], ["rank", "user"], ["k", "rank", "user"])
        rows = body.get("seen", body.get("rank")) if is_known else None
        if not isinstance(rows, list) or len(rows) > ROWS_AT_MOST:
            raise HTTPException(422, f"{_EXPECTED}; at most {ROWS_AT_MOST:,} rows")
        if names == ["seen"]:
            return self._learn(rows)
        k = body.get("k", 10)
        if _name(body["user"]) is None or type(k) is not int or k < 1:
            raise HTTPException(422, f"{_EXPECTED}; k is a whole number above 0")
        return {"order": self._order(str(body["user"]), rows, k)}

    def _order(self, user: str, rows: list[Any], k: int) -> list[dict[str, Any]]:
        for number, row in enumerate(rows, 1):
            if why := self._wrong(row):
                raise HTTPException(422, f'"rank": row {number} {why}')
        vectors = self._vectors_of(rows)
        with self._lock:
            found = []
            for row, vector in zip(rows, vectors, strict=True):
                features = self._features_of(user, row, vector)
                parts = {name: round(value, 4) for name, value in self._weights.parts(features).items()}
                found.append({"item": row["item"], "score": round(self._weights.chance(features), 6), "because": parts})
        return sorted(found, key=lambda one: -one["score"])[:k]

    def _learn(self, rows: list[Any]) -> dict[str, Any]:
        """Each answer is first foreseen, then learnt from."""
        wrong = [self._wrong(row) or self._unanswered(row) for row in rows]
        vectors = iter(self._vectors_of([row for row, why in zip(rows, wrong, strict=True) if not why]))
        with self._lock:
            for number, (row, why) in enumerate(zip(rows, wrong, strict=True), 1):
                if why:
                    self._aside += 1
                    self._named.append(f"row {number:,} {why}")
                    continue
                user, item, liked, vector = str(row["user"]), str(row["item"]), row["liked"], next(vectors)
                self._weights.learn(self._features_of(user, row, vector), liked)
                self._tastes.learn(user, item, vector, liked)
            progress.report(seen=self._weights.seen, set_aside=self._aside)
        return {"seen": len(rows) - sum(map(bool, wrong)), "set_aside": sum(map(bool, wrong))}

    def _features_of(self, user: str, row: dict[str, Any], vector: np.ndarray | None) -> dict[str, float]:
        own = self._tastes.features(user, str(row["item"]), vector)
        return own | {name: float(row[name]) for name in self._features if row.get(name) is not None}

    def _wrong(self, row: Any) -> str:
        """ "" for a row that can be used."""
        if not isinstance(row, dict):
            return "is not an object with named fields"
        if _name(row.get("item")) is None:
            return "has no 'item' that is a name or a number"
        if not isinstance(row.get("text", ""), str):
            return "has a 'text' that is none"
        for name in self._features:
            value = row.get(name, 0.0)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and abs(value) <= LARGEST):
                return f"has a {name!r} that is no number: {sanitize.line(repr(value), 50)}"
        return ""

    def _unanswered(self, row: dict[str, Any]) -> str:
        if _name(row.get("user")) is None:
            return "has no 'user' that is a name or a number"
        return "" if isinstance(row.get("liked"), bool) else "has no 'liked' that is true or false"

    def _vectors_of(self, rows: list[dict[str, Any]]) -> list[np.ndarray | None]:
        """Of each text; one that was seen before is not asked for again. Raises HTTPException."""
        texts = [row.get("text", "")[:TEXT_AT_MOST] if self._model else "" for row in rows]
        with self._lock:
            found = {text: self._vectors[text] for text in texts if text in self._vectors}
        new = [text for text in dict.fromkeys(texts) if text and text not in found]
        for begin in range(0, len(new), AT_ONCE):
            some = new[begin : begin + AT_ONCE]
            made = np.asarray(asked(calls.embeddings, self._model, some), np.float32)
            found |= dict(zip(some, made, strict=True))
        with self._lock:
            for text, vector in found.items():
                self._vectors.use(text, vector)
        return [found.get(text) for text in texts]


def _name(value: Any) -> str | None:
    is_one = isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) <= 200
    return str(value) if is_one and str(value) else None
