"""Sequence classification: a text, or a pair of texts, and one label, given as a name or a whole number."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from llmsched.data.messages import Unusable, plain_text
from llmsched.data.rows import DataError
from workloads import datasets as reading
from workloads.finetune.task import Score, filler_of, padded
from workloads.sources import BadInput

_SHOWN = 20  # labels that a message names


class Classification:
    """The labels come from the training rows (`labels` is filled by the first call of `samples`), in sorted order,
    unless the base model is a classifier whose labels they are: then its numbers stay, as its last layer does.

    `new_head` says, from then on, that the base's last layer has another meaning and is made anew."""

    unit = "samples"
    head_is_new = True
    metrics: tuple[str, ...] = ("loss", "accuracy")

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        known_labels: Mapping[str, int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.known_labels = {str(name): number for name, number in (known_labels or {}).items()}
        self.labels: dict[str, int] = {}
        self.names: dict[str, str] = {}  # as the data has them -> as `labels` has them
        self.new_head = False
        self.notes: list[str] = []

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Any]:
        read = [(dataset, *self._read(dataset, inputs)) for dataset in datasets]
        counts = Counter(row["label"] for _, rows, _ in read for row in rows)
        path = datasets[0]["path"]
        if not self.labels:
            self._number(counts, path)
        if strange := sorted(set(counts) - set(self.names)):
            raise BadInput(
                f"data set {path}: label {strange[0]!r} does not occur in the training data "
                f"(there: {', '.join(list(self.labels)[:_SHOWN])})"
            )
        many = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_SHOWN))
        self.notes.append(f"{path}: {len(counts)} labels: {shown}{many}")
        found: list[Any] = []
        for dataset, rows, bad in read:
            cut = 0
            for row, place in zip(rows, rows.places, strict=True):
                try:
                    sample, is_cut = self._encoded(row)
                    found.append(sample)
                    cut += is_cut
                except Unusable as error:
                    bad.add(place, str(error))
            try:
                self.notes += bad.settle(len(rows) - bad.count)
            except DataError as error:
                raise BadInput(str(error)) from error
            if cut:
                self.notes.append(
                    f"{dataset['path']}: {cut:,} of {len(rows):,} texts are cut off at max_length {self.max_length}"
                )
        return found

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "label2id": self.labels,
            "id2label": {number: name for name, number in self.labels.items()},
            "problem_type": "single_label_classification",
            "pad_token_id": filler_of(self.tokenizer, self.vocab_size),
        }

    def encode(self, sample: Any) -> dict[str, Any]:
        return dict(sample) if "input_ids" in sample else self._encoded(sample)[0]

    def collate(self, encoded: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        filler = filler_of(self.tokenizer, self.vocab_size)
        fillers = {"input_ids": filler, "attention_mask": 0, "token_type_ids": 0, "labels": 0}
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

    def _read(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[reading.Rows, reading.BadRows]:
        rows = reading.roles(dataset, ("text", "label"), ("text_pair",), inputs)
        self.notes += rows.notes
        bad = reading.BadRows(dataset["path"], dataset.get("on_bad_row") or "refuse")
        good = reading.Rows()
        names = rows.class_names.get("label")
        for row, place in zip(rows, rows.places, strict=True):
            try:
                texts = {
                    role: plain_text(row[role], role) for role in ("text", "text_pair") if row.get(role) is not None
                }
                good.add({**texts, "label": _name_of(row["label"], names)}, place)
            except Unusable as error:
                bad.add(place, str(error))
        try:
            self.notes += bad.settle(len(good))
        except DataError as error:
            raise BadInput(str(error)) from error
        return good, bad

    def _encoded(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """A sample, and whether its texts were cut. Raises Unusable."""
        texts = [row[role] for role in ("text", "text_pair") if row.get(role) is not None]
        try:
            encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
            is_cut = len(encoded["input_ids"]) >= self.max_length and self.max_length < len(
                self.tokenizer(*texts)["input_ids"]
            )
        except Exception as error:  # a tokenizer fails in many ways
            raise Unusable(f"is refused by the tokenizer of the model: {error}") from error
        if self.vocab_size is not None and max(encoded["input_ids"], default=0) >= self.vocab_size:
            raise Unusable(
                f"has the token {max(encoded['input_ids'])}, and the model knows {self.vocab_size}: "
                "its tokenizer is of another model"
            )
        return {
            **{name: array("i", numbers) for name, numbers in encoded.items()},
            "labels": [self.labels[self.names[row["label"]]]],
        }, is_cut

    def _number(self, counts: Mapping[str, int], path: str) -> None:
        """Which label has which number; fills `labels`, `names` and `new_head`."""
        names = set(counts)
        known = {name.strip().casefold(): name for name in self.known_labels}  # without those that capitals tell apart
        placeholder = {str(number): name for name, number in self.known_labels.items() if name == f"LABEL_{number}"}
        if self.known_labels and len(known) == len(self.known_labels):
            for meaning in (
                {name: known.get(name.casefold()) for name in names},
                {n: placeholder.get(n) for n in names},
            ):
                found = {name: base for name, base in meaning.items() if base is not None}
                if len(found) == len(names) == len(set(found.values())):
                    self.names, self.labels = found, self.known_labels
                    renamed = [f"{name} is {base}" for name, base in sorted(found.items()) if name != base]
                    said = f" ({', '.join(renamed[:_SHOWN])})" if renamed else ""
                    self.notes.append(f"{path}: the labels are those of the base model, with its numbers{said}")
                    return
        if len(names) < 2:
            raise BadInput(f"data set {path}: every label is {next(iter(names))!r}; expected at least two")
        self.labels = _numbered(names)
        self.names = {name: name for name in names}
        if folded := [name for name in names if sum(name.casefold() == each.casefold() for each in names) > 1]:
            self.notes.append(
                f"{path}: labels that differ in capitals only count as different: {', '.join(sorted(folded))}"
            )
        if self.known_labels:
            self.new_head = True
            self.notes.append(
                f"{path}: the base model's labels ({', '.join(list(self.known_labels)[:_SHOWN])}) are others: "
                "its last layer is made anew"
            )


def _name_of(label: Any, class_names: Sequence[str] | None) -> str:
    """As a name; a number is one of `class_names` where the file keeps those. Raises Unusable."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int):
        if class_names is None:
            return str(label)
        if not 0 <= label < len(class_names):
            raise Unusable(
                f"has the label {label}, and the file names {len(class_names)} ({', '.join(class_names[:5])} ...)"
            )
        return class_names[label]
    if isinstance(label, str):
        return label.strip()
    raise Unusable(f"has the label {label!r}; expected a name or a whole number")


def _numbered(names: set[str]) -> dict[str, int]:
    """Names to 0..n-1; whole numbers sort as numbers."""
    return {
        name: index
        for index, name in enumerate(sorted(names, key=lambda n: (not n.isdigit(), n.zfill(12) if n.isdigit() else n)))
    }
