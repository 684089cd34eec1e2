"""One number of what is read: regression. The loss is the squared error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from llmsched.data import contents
from workloads import datasets as reading
from workloads.tasks.metrics import of_numbers
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.task import Score, Task, output_of


class Learns(Task):
    head_is_new = True

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.new_head = len(self.known_labels) > 1  # a base that tells labels apart has another last layer

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), **contents.checked("one_number", row, rows.class_names)}

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        yield {**self.input_of(row), "labels": row["label"]}

    def settings(self) -> dict[str, Any]:
        names = {"id2label": {0: "value"}, "label2id": {"value": 0}}
        return {**super().settings(), "num_labels": 1, "problem_type": "regression", **names}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        out = output_of(model, batch).logits[:, 0].float()
        return Score(functional.mse_loss(out, batch["labels"].float(), reduction="sum"), len(out), out.detach())

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        true = batch["labels"].double() if rows else torch.zeros(0)
        wrong = true - out.double() if rows else true
        sums = (true.sum(), true.square().sum(), wrong.square().sum(), wrong.abs().sum())
        return [len(rows), *map(float, sums)]

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, **of_numbers(counts)}
