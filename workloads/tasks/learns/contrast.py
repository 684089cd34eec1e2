"""Vectors of which those of a pair lie near each other and far from the others': a search finds what belongs to a text.

The one loss that is no sum over rows: each pair is told apart from those beside it. So pairs are put into groups of
`PAIRS`, always the same, and a *sample* is a group: it stays together whatever the number of workers. The loss is that
of MultipleNegativesRanking (Henderson et al. 2017), recall_at_1 is of a group.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.answers import vectors
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import Score, Task, output_of

PAIRS = 8
_SHARPNESS = 20.0  # what a cosine is multiplied by, as sentence-transformers has it


class Learns(Task):
    reader: Text

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Encoded]:
        pairs = super().samples(datasets, inputs)
        if len(pairs) < 2:
            raise BadInput(f"data set {datasets[0]['path']}: one pair has no other to be told apart from")
        random.Random(len(pairs)).shuffle(pairs)
        starts = list(range(0, len(pairs), PAIRS))
        if len(pairs) - starts[-1] == 1:  # nobody is alone
            starts[-1] -= 1
        ends = [*starts[1:], len(pairs)]
        self.notes.append(f"{len(pairs):,} pairs in {len(starts):,} groups, which are the samples of a step")
        return [_group(pairs[start:end]) for start, end in zip(starts, ends, strict=True)]

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        yield {"pair": [self.reader.encode(row["text"]), self.reader.encode(row["text_pair"])]}

    def rows_of(self, sample: Encoded) -> int:
        return len(sample["parts"])

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """The texts of each group after each other: first those that ask, then those that answer, in the same order."""
        sizes = torch.tensor([len(group["parts"]) // 2 for group in encoded])
        return {**self.reader.collate([part for group in encoded for part in group["parts"]]), "labels": sizes}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        made = vectors(output_of(model, batch), batch, self.reader.takes_first)
        losses, hits, at = [], 0, 0
        for size in batch["labels"].tolist():
            near = made[at : at + size] @ made[at + size : at + 2 * size].T
            true = torch.arange(size, device=near.device)
            losses.append(functional.cross_entropy(near * _SHARPNESS, true, reduction="sum", label_smoothing=smoothing))
            hits += int((near.argmax(-1) == true).sum())
            at += 2 * size
        return Score(torch.stack(losses).sum(), int(batch["labels"].sum()), hits)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        return (out, int(batch["labels"].sum())) if rows else (0, 0)

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, "recall_at_1": counts[0] / max(counts[1], 1)}


def _group(pairs: Sequence[Encoded]) -> Encoded:
    parts = [pair["pair"][side] for side in (0, 1) for pair in pairs]
    return {"parts": parts, "input_ids": max((part["input_ids"] for part in parts), key=len)}
