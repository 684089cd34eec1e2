"""The next token: language modelling. The loss counts the tokens that the model is to say."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workloads import datasets as reading
from workloads.tasks.dialogues import Dialogues
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import IGNORED, Score, Task, output_of, perplexity, score_of_tokens


class Learns(Task):
    reader: Text
    unit = "tokens"

    def read(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[reading.Rows, reading.BadRows]:
        return reading.conversations(dataset, inputs)

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        dialogues, most = Dialogues(self.reader.tokenizer, self.seen), self.reader.max_length
        for ids, labels in dialogues.pieces(row["text"], most) if set(row) == {"text"} else [dialogues.whole(row)]:
            self.reader.know(ids)
            cut, left_out = labels[:most], labels[most:]
            if not any(label != IGNORED for label in cut[1:]):
                self.seen[f"left out: the prompt alone fills max_length {most}, nothing of the answer is left"] += 1
                continue
            if any(label != IGNORED for label in left_out):
                self.seen[f"with an answer that is cut off at max_length {most}"] += 1
            yield {"input_ids": array("i", ids[:most]), "labels": array("i", cut)}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        logits = output_of(model, batch, use_cache=False).logits[:, :-1]
        return score_of_tokens(logits, batch["labels"][:, 1:], smoothing)

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return perplexity(loss)
