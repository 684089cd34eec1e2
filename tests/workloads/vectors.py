"""An endpoint for vectors that counts words, in the place of a model (not a test itself)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def vector(words: list[str], text: str) -> list[float]:
    return [float(text.count(word)) + 0.01 for word in words]


def asked_for(monkeypatch: pytest.MonkeyPatch, app: ModuleType, words: list[str]) -> list[int]:
    """`minilm` answers the calls of this app. How many texts each request had."""
    sizes: list[int] = []

    def embeddings(model: str, texts: list[str], **_: Any) -> list[list[float]]:
        assert model == "minilm"
        sizes.append(len(texts))
        return [vector(words, text) for text in texts]

    monkeypatch.setattr(app.calls, "embeddings", embeddings)
    return sizes
