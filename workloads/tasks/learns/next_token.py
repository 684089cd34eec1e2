"""The next token: language modelling. The loss counts the tokens that the model is to say."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from workloads import datasets as reading
from workloads.tasks.dialogues import Dialogues
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import IGNORED, Score, Task, output_of, perplexity, score_of_tokens

_OPEN = 64  # packs that may still take a text


class Learns(Task):
    reader: Text
    unit = "tokens"

    def read(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[reading.Rows, reading.BadRows]:
        return reading.conversations(dataset, inputs)

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Encoded]:
        found = super().samples(datasets, inputs)
        if not self.packs:
            return found
        packed = [_together(part) for part in _fitting(found, self.reader.max_length)]
        self.notes.append(f"{len(found):,} samples are packed into {len(packed):,}")
        return packed

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

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        made = super().collate(encoded)
        return {**made, **_apart(made.pop("attention_mask"), encoded)} if "parts" in encoded[0] else made

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        every = batch["labels"][:, 1:] != IGNORED
        there = every.any(0).nonzero()[:, 0]  # the places at which some row is to say something
        logits, labels = _logits_at(there, model, batch), batch["labels"][:, 1 + there]
        score = score_of_tokens(logits, labels, smoothing)
        if self.teacher is None or not model.training:
            return score
        learnt = labels != IGNORED
        return self.teacher.mixed(score, logits[learnt], batch, score.weight, lambda known: known[:, :-1][every])

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return perplexity(loss)


def _logits_at(there: torch.Tensor, model: Any, batch: Batch) -> torch.Tensor:
    """[rows, places, vocabulary]. A vocabulary is wide: a model that can, works out those of these places alone."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
    if "logits_to_keep" in inspect.signature(whole.forward).parameters:
        logits: torch.Tensor = output_of(model, batch, use_cache=False, logits_to_keep=there).logits
        return logits
    return output_of(model, batch, use_cache=False).logits[:, there]


def _fitting(samples: Sequence[Encoded], most: int) -> list[list[Encoded]]:
    """Samples that stand together in at most `most` tokens: each goes where the first place is left, in order."""
    parts: list[list[Encoded]] = []
    room: list[int] = []
    for sample in samples:
        size = len(sample["input_ids"])
        place = next((n for n, left in enumerate(room[-_OPEN:], max(0, len(room) - _OPEN)) if left >= size), None)
        if place is None:
            place = len(room)
            parts.append([])
            room.append(most)
        parts[place].append(sample)
        room[place] -= size
    return parts


def _together(samples: Sequence[Encoded]) -> Encoded:
    ids, labels = array("i"), array("i")
    for sample in samples:
        ids += sample["input_ids"]
        labels += array("i", [IGNORED]) + sample["labels"][1:]  # nobody says the first token of another text
    return {"input_ids": ids, "labels": labels, "parts": [len(sample["input_ids"]) for sample in samples]}


def _apart(there: torch.Tensor, encoded: Sequence[Encoded]) -> Batch:
    """Positions that begin anew with each text, and who sees whom: each token its own text up to itself."""
    rows, width = there.shape
    positions, texts = torch.zeros(rows, width, dtype=torch.int64), torch.full((rows, width), -1)
    for number, row in enumerate(encoded):
        at = 0
        for text, size in enumerate(row["parts"]):
            positions[number, at : at + size], texts[number, at : at + size] = torch.arange(size), text
            at += size
    sees = (texts[:, :, None] == texts[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    hidden = torch.zeros(rows, 1, width, width).masked_fill(~sees[:, None], torch.finfo(torch.float32).min)
    return {"attention_mask": hidden, "position_ids": positions}
