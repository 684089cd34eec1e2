"""What an output of a model says of each row of a batch: one rule for answers and for metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workloads.adapters import json_in
from workloads.tasks.reads import Batch

Says = Callable[[Any, Batch], list[Any]]  # (output, what was read) -> an answer for each row


def answers_of(route: str, model: Any, folder: Path) -> Says:
    """How `model`, loaded from `folder`, answers on a route."""
    if route == "classify":
        names = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        return lambda out, batch: labels(out.logits, names)
    note = json_in(folder / "1_Pooling" / "config.json")  # sentence-transformers' note on pooling
    return first_token if note.get("pooling_mode_cls_token") else mean_of_tokens


def labels(logits: torch.Tensor, names: list[str]) -> list[dict[str, float]]:
    """{label: probability} of each row."""
    return [dict(zip(names, row, strict=True)) for row in torch.softmax(logits.float(), dim=-1).tolist()]


def mean_of_tokens(out: Any, batch: Batch) -> list[Any]:
    """A vector of length 1 for each row, as is the next."""
    weights = batch["attention_mask"][..., None].to(out.last_hidden_state.dtype)
    return _unit((out.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1))


def first_token(out: Any, batch: Batch) -> list[Any]:
    return _unit(out.last_hidden_state[:, 0])


def _unit(vectors: torch.Tensor) -> list[Any]:
    unit: list[Any] = torch.nn.functional.normalize(vectors.float(), dim=-1).tolist()
    return unit
