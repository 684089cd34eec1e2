"""What the loop asks of a task: samples to tensors, tensors to a loss that can be summed over workers.

A task never averages. It gives sums and the weight they stand for (samples, or tokens that count), and the loop divides
once, by the weight of the whole step: that is why the number of workers does not show in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch


class Score(NamedTuple):
    """Sums over the samples of one batch. `loss` carries the gradient."""

    loss: torch.Tensor
    weight: int  # what `loss` is divided by in the end
    correct: int = 0
    samples: int = 0


class Task(Protocol):
    """One kind of fine-tuning. `samples` of a data set are whatever `encode` takes."""

    unit: str  # what `weight` counts, for people: "samples" | "tokens"
    head_is_new: bool  # the base model may lack the last layer
    new_head: bool  # known once samples are read: the base's last layer means something else
    metrics: tuple[str, ...]
    notes: list[str]  # what was noticed in the data, for people

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Any]:
        """Read, check and encode the data sets of one split. Raises BadInput."""

    def model_class(self) -> Any:
        """The transformers class to load."""

    def model_settings(self) -> dict[str, Any]:
        """What goes into the model's config."""

    def encode(self, sample: Any) -> dict[str, list[int]]:
        """Token ids and labels of one sample, not padded, at most `max_length` long."""

    def collate(self, encoded: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """One padded batch, on the CPU."""

    def score(self, model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> Score: ...


def filler_of(tokenizer: Any, vocab_size: int | None) -> int:
    """The token that pads: the tokenizer's own, unless the model has no place for it (masked, any other does)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and (vocab_size is None or token < vocab_size):
            return int(token)
    return 0


def padded(rows: Sequence[Sequence[int]], filler: int, side: str = "right") -> torch.Tensor:
    """[len(rows), longest] of int64."""
    longest = max(len(row) for row in rows)
    filled = [
        [*row, *[filler] * (longest - len(row))] if side == "right" else [*[filler] * (longest - len(row)), *row]
        for row in rows
    ]
    return torch.tensor(filled, dtype=torch.int64)
