"""Vectors of words from texts: Skip-gram and CBOW with negative samples (Mikolov et al. 2013).

What is left is vectors.safetensors ("words" [words, size]) and words.json, in the order of the rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from llmsched.runtime import artifact
from workloads.loops.learning import learn, rows_of, settings
from workloads.sources import BadInput

KNOWN = {
    "text": "text", "kind": "skip-gram", "size": 64, "window": 4, "negatives": 8, "least": 5, "rare_below": 1e-3,
    "global_batch_size": 512,
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    if chosen.kind not in ("skip-gram", "cbow"):
        raise BadInput(f'config.kind: expected "skip-gram" or "cbow", got {chosen.kind!r}')
    texts = [words_in(str(row[chosen.text])) for row in rows_of(chosen.data, chosen.text)]
    counts = Counter(word for text in texts for word in text)
    words = sorted(word for word, count in counts.items() if count >= chosen.least)
    if len(words) < 2:
        raise BadInput(f"data set {chosen.data}: fewer than two words come {chosen.least} times (config.least)")
    centers, around = places(texts, {word: number for number, word in enumerate(words)}, counts, chosen)
    often = torch.tensor([counts[word] for word in words], dtype=torch.float64) ** 0.75
    torch.manual_seed(chosen.seed)
    model = Vectors(len(words), chosen.size)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        of_step = torch.multinomial(often, chosen.global_batch_size * chosen.negatives, True, generator=chance)
        strange = of_step.view(chosen.global_batch_size, -1)[at : at + len(rows)]
        loss = model.skip_gram if chosen.kind == "skip-gram" else model.cbow
        return loss(centers[rows], around[rows], strange)

    learn(model, len(centers), loss_of, chosen)

    def write(folder: Path) -> None:
        save_file({"words": model.inner.weight.detach()}, folder / "vectors.safetensors")
        (folder / "words.json").write_text(json.dumps(words))

    artifact.save(write)
    artifact.metrics(words=len(words), places=len(centers))


class Vectors(nn.Module):  # type: ignore[misc]
    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Embedding(words, size), nn.Embedding(words, size)
        nn.init.uniform_(self.inner.weight, -0.5 / size, 0.5 / size)
        nn.init.zeros_(self.outer.weight)

    def skip_gram(self, centers: torch.Tensor, around: torch.Tensor, strange: torch.Tensor) -> torch.Tensor:
        """The word says each of those around it, and none of the strange ones."""
        there = around >= 0
        said = self.inner(centers)
        near = (self.outer(around.clamp(min=0)) @ said[:, :, None])[..., 0]
        far = (self.outer(strange) @ said[:, :, None])[..., 0]
        weight = there.sum(1, keepdim=True) / strange.shape[1] * _K
        return -(functional.logsigmoid(near) * there).sum() - (functional.logsigmoid(-far) * weight).sum()

    def cbow(self, centers: torch.Tensor, around: torch.Tensor, strange: torch.Tensor) -> torch.Tensor:
        """Those around it say the word, and none of the strange ones."""
        there = (around >= 0)[..., None]
        said = (self.inner(around.clamp(min=0)) * there).sum(1) / there.sum(1)
        near = (self.outer(centers) * said).sum(1)
        far = (self.outer(strange) @ said[:, :, None])[..., 0]
        return -functional.logsigmoid(near).sum() - functional.logsigmoid(-far).sum()


_K = 5.0  # strange words that each of those around weighs as much as


def words_in(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def places(
    texts: list[list[str]], numbers: dict[str, int], counts: Counter[str], chosen: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each word that has others around it, and those; -1 where a text ends. Of words that come more often than
    `rare_below` of all, some are left out, always the same."""
    total, wide = sum(counts.values()), chosen.window
    chance = torch.Generator().manual_seed(chosen.seed)
    centers, around = [], []
    for text in texts:
        draws = torch.rand(len(text), generator=chance).tolist()
        kept = [
            numbers[word]
            for word, draw in zip(text, draws, strict=True)
            if word in numbers and draw < (chosen.rare_below * total / counts[word]) ** 0.5
        ]
        padded = [*[-1] * wide, *kept, *[-1] * wide]
        if len(kept) > 1:
            centers += kept
            around += [[*padded[n : n + wide], *padded[n + wide + 1 : n + 2 * wide + 1]] for n in range(len(kept))]
    if not centers:
        raise BadInput(f"data set {chosen.data}: no text has two words that come {chosen.least} times (config.least)")
    return torch.tensor(centers), torch.tensor(around)
