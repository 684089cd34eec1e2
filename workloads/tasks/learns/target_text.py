"""A text that answers another: translation, summaries. An encoder reads the text, a decoder says the target."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from llmsched.data.messages import plain_text
from workloads import datasets as reading
from workloads.tasks import translation
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import Score, Task, output_of, perplexity, score_of_tokens


class Learns(Task):
    reader: Text
    unit = "tokens"

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), "target": plain_text(row["target"], "target")}

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        most = self.reader.max_length
        ids = list(self.reader.tokenized(text_target=row["target"])["input_ids"])
        if len(ids) > most:
            self.seen[f"with a target that is cut off at max_length {most}"] += 1
        yield {**self.input_of(row), "labels": array("i", ids[:most]), "true": row["target"]}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        before = model.prepare_decoder_input_ids_from_labels(batch["labels"])  # what is said before each token
        out = output_of(model, batch, decoder_input_ids=before, use_cache=False)
        return score_of_tokens(out.logits, batch["labels"], smoothing)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        """Of what the model says by itself, the likeliest token each time. Only where it is asked for."""
        counts = [0.0] * translation.COUNTS
        if rows and self.asked & {"bleu", "chrf"}:
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            most = {"max_new_tokens": self.reader.max_length, "do_sample": False, "num_beams": 1}
            texts = self.reader.tokenizer.batch_decode(model.generate(**given, **most), skip_special_tokens=True)
            for said, row in zip(texts, rows, strict=True):
                part = translation.counts_of(said, row["true"])
                counts = [total + number for total, number in zip(counts, part, strict=True)]
        return counts

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {**perplexity(loss), **translation.measure(counts)}
