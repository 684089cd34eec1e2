"""What is said in a piece of audio, letter by letter (CTC): no letter needs a place in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from llmsched.data import contents
from llmsched.data.messages import Unusable, plain_text
from workloads import datasets as reading
from workloads.tasks.answers import heard
from workloads.tasks.metrics import edits
from workloads.tasks.reads import Audio, Batch, Encoded
from workloads.tasks.task import IGNORED, Score, Task, output_of


class Learns(Task):
    reader: Audio

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return {**super().checked(row, rows), "target": plain_text(row["target"], "target").strip()}

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        tokenizer = self.reader.tokenizer
        letters = list(tokenizer(row["target"])["input_ids"])
        unknown = tokenizer.unk_token_id
        contents.writable(sum(one != unknown for one in letters), len(letters), _alphabet(tokenizer))
        if unknown is not None and unknown in letters:
            self.seen["with a letter that the model does not write: it is learnt as unknown"] += 1
        if not letters:
            raise Unusable("has a target without a letter")
        needed = len(letters) + sum(one == other for one, other in zip(letters, letters[1:], strict=False))
        if self.reader.frames(row["samples"]) < needed:
            raise Unusable(f"has a target of {len(letters)} letters, too long for {row['samples']:,} samples of audio")
        yield {**self.input_of(row), "labels": letters, "true": row["target"]}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        logits, labels = output_of(model, batch).logits, batch["labels"]
        chances = torch.log_softmax(logits.float(), -1)
        there = batch.get("attention_mask")
        whole = torch.full((len(logits),), logits.shape[1], device=logits.device)
        places = whole if there is None else model._get_feat_extract_output_lengths(there.sum(-1))
        counts = labels != IGNORED
        loss = functional.ctc_loss(
            chances.transpose(0, 1), labels[counts], places, counts.sum(-1), blank=model.config.pad_token_id,
            reduction="sum",
        )  # fmt: skip
        return Score(loss, len(labels), [row[:end] for row, end in zip(logits.argmax(-1), places, strict=True)])

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        """[wrong words, words, wrong letters, letters]"""
        counts = [0, 0, 0, 0]
        for row, best in zip(rows, out or (), strict=True):
            said, true = heard(best.tolist(), self.reader.tokenizer, model.config.pad_token_id), row["true"]
            parts = (edits(said.split(), true.split()), len(true.split()), edits(said, true), len(true))
            counts = [total + part for total, part in zip(counts, parts, strict=True)]
        return counts

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return {"loss": loss, "wer": counts[0] / max(counts[1], 1), "cer": counts[2] / max(counts[3], 1)}


def _alphabet(tokenizer: Any) -> list[str]:
    """What it writes beside its marks."""
    return [each for each in tokenizer.get_vocab() if each not in tokenizer.all_special_tokens]
