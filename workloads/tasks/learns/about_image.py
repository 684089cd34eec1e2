"""What to answer to a question about an image, in words: the answer and the token that ends it count."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import torch

from llmsched.data.messages import Unusable, plain_text
from workloads import datasets as reading
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.seeing import Seeing
from workloads.tasks.task import IGNORED, Score, Task, output_of, perplexity, score_of_tokens


class Learns(Task):
    reader: Seeing
    unit = "tokens"

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), "target": plain_text(row["target"], "target").strip()}

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        tokenizer = self.reader.tokenizer
        answer = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        sample = self.reader.encode(row["text"], row["image"])
        size = self.reader.size(self.reader.load(sample)) + len(answer)
        if size > self.reader.max_length:
            raise Unusable(
                f"has {size} tokens, its image and its answer included; max_length is {self.reader.max_length}"
            )
        yield {**sample, "answer": array("i", answer)}

    def prepared(self, sample: Encoded, key: int) -> Encoded:
        made = super().prepared(sample, key)
        answer, asked = made["answer"].tolist(), made["input_ids"]
        longer = {  # a mask, or which tokens are of an image: as long as the tokens
            name: torch.cat([each, torch.full((1, len(answer)), int(name == "attention_mask"))], 1)
            for name, each in made.items()
            if isinstance(each, torch.Tensor) and each.shape == (1, len(asked))
        }
        return {**made, **longer, "input_ids": [*asked, *answer], "labels": [*[IGNORED] * len(asked), *answer]}

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        return {**self.reader.collate(encoded), "labels": torch.tensor([encoded[0]["labels"]])}

    def score(self, model: torch.nn.Module, batch: Batch, smoothing: float = 0.0) -> Score:
        logits = output_of(model, batch, use_cache=False).logits[:, :-1]
        return score_of_tokens(logits, batch["labels"][:, 1:], smoothing)

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return perplexity(loss)
