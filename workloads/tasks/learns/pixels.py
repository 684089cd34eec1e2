"""A label of each pixel, learnt from regions: {"image": ..., "objects": [{"label": "cat", "box": [left, top, right,
bottom]}]}, boxes in pixels of the image as it is. What lies in none is background; where two lie, the later counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmsched.data import contents
from llmsched.data.contents import BACKGROUND
from llmsched.data.labels import Labels, Read
from workloads import datasets as reading
from workloads.tasks.metrics import of_labels, tally
from workloads.tasks.reads import Batch, Encoded, Image
from workloads.tasks.task import Score, Task, output_of, score_of_tokens


class Learns(Task):
    head_is_new = True
    reader: Image

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        made = {**super().checked(row, rows), **contents.checked("pixels", row, rows.class_names)}
        contents.inside(made["label"], made["size"])
        return made

    def look(self, read: Sequence[Read]) -> None:
        counts = contents.classes("pixels", (row for _, rows, _ in read for row in rows)) or Counter()
        path = read[0][0]["path"]
        self.notes += self.labels.take_in(counts, path, read)
        self.new_head = self.labels.is_new

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        yield {**self.input_of(row), "regions": row["label"]}

    def prepared(self, sample: Encoded, key: int) -> Encoded:
        made = super().prepared(sample, key)
        (height, width), (wide, high) = made["pixel_values"].shape[-2:], made["size"]
        map_of = torch.full((height, width), self.labels[BACKGROUND])
        for region in made["regions"]:
            left, top, right, bottom = region["box"]
            columns = slice(round(left * width / wide), max(1, round(right * width / wide)))
            rows = slice(round(top * height / high), max(1, round(bottom * height / high)))
            map_of[rows, columns] = self.labels[region["label"]]
        return {**made, "labels": map_of}

    def settings(self) -> dict[str, Any]:
        return self.labels.settings()

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        return {**self.reader.collate(encoded), "labels": torch.stack([row["labels"] for row in encoded])}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        labels = batch["labels"]
        logits = torch.nn.functional.interpolate(
            output_of(model, batch).logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False
        )
        return score_of_tokens(logits.permute(0, 2, 3, 1), labels, smoothing)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        return tally(out.argmax(-1) if rows else [], batch["labels"] if rows else [], len(self.labels.numbers))

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, **of_labels(counts)}
