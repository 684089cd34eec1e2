"""Objects and their boxes by the model's own loss (DETR's way, which matches what is said to what is there). It is of
one image at a time, as of several it would divide by what the others hold. For pretrained models: from nothing such a
model learns little; image-segmentation does. Rows are those of image-segmentation."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmsched.data import contents
from llmsched.data.labels import Labels, Read
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.answers import objects
from workloads.tasks.metrics import of_found, overlap
from workloads.tasks.reads import Batch, Encoded, Image
from workloads.tasks.task import Score, Task, output_of

_SAME = 0.5  # of what two boxes cover together, how much both must for them to be one


class Learns(Task):
    head_is_new = True
    reader: Image

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels, least=1)
        self.reader.batches = False

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        made = {**super().checked(row, rows), **contents.checked("own_loss", row, rows.class_names)}
        contents.inside(made["label"], made["size"])
        return made

    def look(self, read: Sequence[Read]) -> None:
        if importlib.util.find_spec("scipy") is None:
            raise BadInput("object-detection: matching boxes needs `pip install 'llmsched[media]'` on every node")
        counts = contents.classes("own_loss", (row for _, rows, _ in read for row in rows)) or Counter()
        path = read[0][0]["path"]
        if not self.labels.numbers:
            if not counts:
                raise BadInput(f"data set {path}: no row has an object")
            self.notes += self.labels.of_training(counts, path)
            self.new_head = self.labels.is_new
        self.labels.check(counts, path, read)

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        yield {**self.input_of(row), "regions": row["label"]}

    def settings(self) -> dict[str, Any]:
        return self.labels.settings()

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Of one image; boxes as middle and size, in shares of it."""
        (row,) = encoded
        wide, high = row["size"]
        edges = torch.tensor([region["box"] for region in row["regions"]], dtype=torch.float32).view(-1, 4)
        edges = edges / torch.tensor([wide, high, wide, high])
        boxes = torch.cat([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], dim=1)
        numbers = torch.tensor([self.labels[region["label"]] for region in row["regions"]], dtype=torch.int64)
        return {**self.reader.collate(encoded), "class_labels": numbers, "boxes": boxes}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        there = {"class_labels": batch["class_labels"], "boxes": batch["boxes"]}
        out = output_of(model, {"pixel_values": batch["pixel_values"]}, labels=[there])
        return Score(out.loss, 1, out)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        """[found rightly, found, there]"""
        if not rows:
            return 0, 0, 0
        (said,), left = objects(out, rows, self.reader.processor, model.config.id2label), [*rows[0]["regions"]]
        right = 0
        for each in sorted(said, key=lambda each: -each["score"]):
            near = [
                region
                for region in left
                if self.labels.names[region["label"]] == each["label"]
                and overlap(region["box"], each["at"]["box"]) >= _SAME
            ]
            if near:
                left.remove(max(near, key=lambda region: overlap(region["box"], each["at"]["box"])))
                right += 1
        return right, len(said), len(rows[0]["regions"])

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, **of_found(*counts)}
