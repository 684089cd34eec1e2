"""Sequence classification: a text, or a pair of texts, and one label, given as a name or a whole number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from workloads import datasets as reading
from workloads.finetune.task import Score, padded
from workloads.sources import BadInput


class Classification:
    """The labels come from the training rows (`labels` is filled by the first call of `samples`), in sorted order,
    unless the base model has a mapping that knows them all."""

    unit = "samples"
    head_is_new = True
    metrics: tuple[str, ...] = ("loss", "accuracy")

    def __init__(self, tokenizer: Any, max_length: int, known_labels: Mapping[str, int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.known_labels = dict(known_labels or {})
        self.labels: dict[str, int] = {}

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[reading.Row]:
        rows = []
        for dataset in datasets:
            found = reading.load(dataset["path"], ("text", "label"), ("text_pair",), dataset.get("columns"), inputs)
            for number, row in enumerate(found, 1):
                row["label"] = _name_of(row["label"], f"data set {dataset['path']}: row {number}")
            rows += found
        names = {row["label"] for row in rows}
        if not self.labels:
            self.labels = self.known_labels if names <= set(self.known_labels) else _numbered(names)
            if len(self.labels) < 2:
                raise BadInput(f"data set {datasets[0]['path']}: every label is {names.pop()!r}; expected at least two")
        if strange := sorted(names - set(self.labels)):
            raise BadInput(
                f"data set {datasets[0]['path']}: label {strange[0]!r} does not occur in the training data "
                f"(there: {', '.join(list(self.labels)[:20])})"
            )
        return rows

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "label2id": self.labels,
            "id2label": {number: name for name, number in self.labels.items()},
            "problem_type": "single_label_classification",
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def encode(self, sample: reading.Row) -> dict[str, list[int]]:
        texts = [str(sample[role]) for role in ("text", "text_pair") if sample.get(role) is not None]
        encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        return {**encoded, "labels": [self.labels[sample["label"]]]}

    def collate(self, encoded: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        fillers = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "labels": 0}
        side = self.tokenizer.padding_side
        return {
            name: padded([row[name] for row in encoded], filler, side)
            for name, filler in fillers.items()
            if name in encoded[0]
        }

    def score(self, model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> Score:
        labels = batch["labels"][:, 0]
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return Score(loss, len(labels), int((logits.argmax(-1) == labels).sum()), len(labels))


def _name_of(label: Any, place: str) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, (int, str)):
        return str(label)
    raise BadInput(f"{place}: label {label!r}; expected a name or a whole number")


def _numbered(names: set[str]) -> dict[str, int]:
    """Names to 0..n-1; whole numbers sort as numbers."""
    return {name: index for index, name in enumerate(sorted(names, key=lambda n: (not n.isdigit(), n.zfill(12), n)))}
