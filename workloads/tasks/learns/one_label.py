"""One label of what is read: classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from workloads import datasets as reading
from workloads.tasks.labels import SHOWN, Labels, name_of
from workloads.tasks.metrics import of_labels, tally
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.task import Read, Score, Task, output_of, score_of_tokens


class Learns(Task):
    head_is_new = True

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), "label": name_of(row["label"], rows.class_names.get("label"))}

    def look(self, read: Sequence[Read]) -> None:
        counts = Counter(row["label"] for _, rows, _ in read for row in rows)
        path = read[0][0]["path"]
        self.notes += self.labels.take_in(counts, path)
        self.new_head = self.labels.is_new
        many = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN))
        self.notes.append(f"{path}: {len(counts)} labels: {shown}{many}")

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        yield {**self.input_of(row), "labels": self.labels[row["label"]]}

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            **self.labels.settings(),
            "problem_type": "single_label_classification",
        }

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        return score_of_tokens(output_of(model, batch).logits, batch["labels"], smoothing)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        return tally(out.argmax(-1) if rows else [], batch["labels"] if rows else [], len(self.labels.numbers))

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, **of_labels(counts)}
