"""One label of what is read: classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from llmsched.data import contents
from llmsched.data.labels import Labels, Read, told
from workloads import datasets as reading
from workloads.tasks.metrics import of_labels, tally
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.task import IGNORED, Score, Task, output_of, score_of_tokens


class Learns(Task):
    head_is_new = True

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), **contents.checked("one_label", row, rows.class_names)}

    def look(self, read: Sequence[Read]) -> None:
        counts = contents.classes("one_label", (row for _, rows, _ in read for row in rows)) or Counter()
        path = read[0][0]["path"]
        if self.teacher and not self.labels.numbers:
            self.notes += self.labels.of_teacher(self.teacher.labels, counts, path)
        self.notes += self.labels.take_in(counts, path, read)
        self.new_head = self.labels.is_new
        self.notes.append(told(counts, path))

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        labels = self.labels[row["label"]] if "label" in row else IGNORED
        beside = self.teacher.reads(*(row[role] for role in self.kind.roles if role in row)) if self.teacher else {}
        yield {**self.input_of(row), "labels": labels, **beside}

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            **self.labels.settings(),
            "problem_type": "single_label_classification",
        }

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        logits = output_of(model, batch).logits
        score = score_of_tokens(logits, batch["labels"], smoothing)
        if self.teacher is None or not model.training:
            return score
        return self.teacher.mixed(score, logits, batch, len(logits), lambda known: known)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        if not rows:
            return tally([], [], len(self.labels.numbers))
        there = batch["labels"] != IGNORED
        return tally(out.argmax(-1)[there], batch["labels"][there], len(self.labels.numbers))

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, **of_labels(counts)}
