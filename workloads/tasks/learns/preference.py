"""Which of two answers is better: direct preference optimization (Rafailov et al. 2023).

A sample is a pair: the answer that was chosen, and one that was not. What is learnt is how much likelier the model
makes the first than the second, beside a reference that is not trained: the base model, which an adapter leaves as it
is. The loss is TRL's of the same name (`loss_type: sigmoid`).
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from workloads import datasets as reading
from workloads.tasks.dialogues import Dialogues
from workloads.tasks.reads import Batch, Encoded, Text, padded
from workloads.tasks.task import IGNORED, Score, Task, output_of

_NAMES = ("chosen", "rejected")


class Learns(Task):
    """`reference`: of a model that is trained whole, the base; None: the adapter is switched off instead."""

    reader: Text
    beta = 0.1
    reference: Any = None

    @property
    def at_once(self) -> int:
        return 2048  # logits as wide as a vocabulary, of the model and of the reference

    def read(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[reading.Rows, reading.BadRows]:
        return reading.conversations(dataset, inputs, pairs=True)

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        dialogues, most = Dialogues(self.reader.tokenizer, self.seen), self.reader.max_length
        both = [dialogues.whole(row[name]) for name in _NAMES]
        for ids, _ in both:
            self.reader.know(ids)
        if not all(any(label != IGNORED for label in labels[1:most]) for _, labels in both):
            self.seen[f"left out: the prompt alone fills max_length {most}, nothing of an answer is left"] += 1
            return
        if any(len(ids) > most for ids, _ in both):
            self.seen[f"with an answer that is cut off at max_length {most}"] += 1
        parts = [{"input_ids": array("i", ids[:most]), "labels": array("i", labels[:most])} for ids, labels in both]
        yield {"parts": parts, "input_ids": max((part["input_ids"] for part in parts), key=len)}

    def rows_of(self, sample: Encoded) -> int:
        return len(sample["parts"])

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Chosen and rejected of each pair, one after the other."""
        rows = [part for pair in encoded for part in pair["parts"]]
        return {**self.reader.collate(rows), "labels": padded([row["labels"] for row in rows], IGNORED)}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        with torch.no_grad(), _as_it_was(model) if self.reference is None else contextlib.nullcontext():
            known = _chances(model if self.reference is None else self.reference, batch)
        gain = (_chances(model, batch) - known).view(-1, 2)
        margins = self.beta * (gain[:, 0] - gain[:, 1])
        return Score(-functional.logsigmoid(margins).sum(), len(margins), margins.detach())

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        return (float((out > 0).sum()), float(out.sum()), len(rows)) if rows else (0.0, 0.0, 0.0)

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        right, margins, pairs = counts
        return {"loss": loss, "accuracy": right / max(pairs, 1.0), "margin": margins / max(pairs, 1.0)}


def _chances(model: Any, batch: Batch) -> torch.Tensor:
    """[rows]: the logarithm of the probability of each answer as a whole."""
    logits, labels = output_of(model, batch, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
    counts = labels != IGNORED
    each = functional.cross_entropy(logits[counts].float(), labels[counts], reduction="none")
    rows = counts.nonzero()[:, 0]
    return -torch.zeros(len(labels), device=each.device).index_add(0, rows, each)


@contextlib.contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """The base alone, and nothing of it dropped."""
    trained = [module for module in model.modules() if module.training]
    with model.disable_adapter():
        model.eval()
        try:
            yield
        finally:
            for module in trained:
                module.training = True
