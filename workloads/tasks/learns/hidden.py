"""Hidden tokens: a text of which some are masked is to be said whole (BERT's way: of 15 %, eight in ten are masked, one
is another token, one stays). Which ones is a function of (seed, step, row)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from llmsched.data.labels import Read
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import IGNORED, Score, Task, output_of, perplexity, score_of_tokens

_HIDDEN = 0.15


class Learns(Task):
    reader: Text
    unit = "tokens"
    head_is_new = True

    def look(self, read: Sequence[Read]) -> None:
        if not self.reader.tokenizer.is_fast:
            raise BadInput("masked-lm: this base model has no fast tokenizer, which cuts a long text into parts")
        if self.reader.tokenizer.mask_token_id is None:
            raise BadInput(
                "masked-lm: the tokenizer of this base model has no mask token; take a base of the BERT kind"
            )

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        """A long text in parts, each as the tokenizer frames a text."""
        for ids, special in self.reader.windows(row["text"]):
            if not all(special):
                yield {"input_ids": array("i", ids), "special": bytes(special)}

    def prepared(self, sample: Encoded, key: int) -> Encoded:
        chance, ids = random.Random(key), list(sample["input_ids"])
        open_to_it = [place for place, special in enumerate(sample["special"]) if not special]
        chosen = sorted(chance.sample(open_to_it, max(1, round(_HIDDEN * len(open_to_it)))))
        labels = [IGNORED] * len(ids)
        for place in chosen:
            labels[place], turn = ids[place], chance.random()
            if turn < 0.9:
                ids[place] = self.reader.tokenizer.mask_token_id if turn < 0.8 else chance.randrange(self._known())
        return {"input_ids": ids, "labels": labels}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        return score_of_tokens(output_of(model, batch).logits, batch["labels"], smoothing)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        if not rows:
            return 0.0, 0.0
        counts = batch["labels"] != IGNORED
        return float((out.argmax(-1) == batch["labels"])[counts].sum()), float(counts.sum())

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {**perplexity(loss), "accuracy": counts[0] / max(counts[1], 1.0)}

    def _known(self) -> int:
        return min(len(self.reader.tokenizer), self.reader.vocab_size or len(self.reader.tokenizer))
