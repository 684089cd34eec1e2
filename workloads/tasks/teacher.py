"""Another model's answers as what is learnt: distillation (Hinton et al. 2015), of any task whose loss is of logits.

The teacher reads the same rows, of texts with labels by its own tokenizer. In a training step both are made softer by
the temperature and compared; an evaluation measures the student alone, by what the rows say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from workloads.tasks.reads import Batch, Encoded, Reader
from workloads.tasks.task import Score, output_of

_OWN = "teacher."  # what the teacher alone reads of a batch


class Teacher:
    """`reader` None: it reads what the student reads."""

    def __init__(self, model: Any, reader: Reader | None, temperature: float, alpha: float) -> None:
        self.model, self.reader = model, reader
        self.temperature, self.alpha = temperature, alpha

    @property
    def labels(self) -> dict[str, int]:
        return {str(name): int(number) for name, number in self.model.config.label2id.items()}

    def reads(self, *parts: Any) -> Encoded:
        """What a sample holds beside what the student reads. Raises Unusable."""
        return {"teacher": self.reader.encode(*parts)} if self.reader else {}

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """What a batch holds beside."""
        made = self.reader.collate([row["teacher"] for row in encoded]) if self.reader else {}
        return {f"{_OWN}{name}": tensor for name, tensor in made.items()}

    def mixed(self, score: Score, said: torch.Tensor, batch: Batch, weight: int, pick: Any, **settings: Any) -> Score:
        """`score` of the rows' own labels, with the teacher's part. `said`: the student's logits [..., classes] that
        count, of `weight` in all; `pick`: the same ones of the teacher's."""
        own = {name.removeprefix(_OWN): tensor for name, tensor in batch.items() if name.startswith(_OWN)}
        with torch.no_grad():
            known = pick(output_of(self.model, own or batch, **settings).logits).float()
        width = min(said.shape[-1], known.shape[-1])  # a vocabulary may be padded otherwise
        softer = [functional.log_softmax(each[..., :width] / self.temperature, -1) for each in (said.float(), known)]
        apart = functional.kl_div(*softer, reduction="sum", log_target=True) * self.temperature**2
        return Score(self.alpha * apart + (1 - self.alpha) * score.loss, weight, score.out)
