"""Where in a passage the answer to a question stands: SQuAD's form, {"question", "context", "answers": {"text": [...],
"answer_start": [...]}}; an answer as a text is looked for. No answer at all: the first token is to be said."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmsched.data import contents
from llmsched.data.labels import Read
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.answers import best_span
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import Score, Task, output_of


class Learns(Task):
    reader: Text
    head_is_new = True

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return contents.checked("span", row, rows.class_names)

    def look(self, read: Sequence[Read]) -> None:
        if not self.reader.tokenizer.is_fast:
            raise BadInput("question-answering: this base model has no fast tokenizer, which knows where words lie")

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        made = self.reader.passage(row["text"], row["text_pair"])
        places, labels = made["places"], [0, 0]
        if row["label"]:
            text, start = row["label"][0]
            end = start + len(text)
            inside = [n for n, place in enumerate(places) if place and place[0] < end and start < place[1]]
            if not inside or places[inside[-1]][1] < end:
                self.seen[f"left out: the answer is cut off at max_length {self.reader.max_length}"] += 1
                return
            labels = [inside[0], inside[-1]]
        yield {**made, "labels": labels, "answers": [text for text, _ in row["label"]]}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        out, is_there = output_of(model, batch), batch["attention_mask"].bool()
        ends = (out.start_logits.float(), out.end_logits.float())
        loss = torch.zeros((), device=ends[0].device)
        for side, logits in enumerate(ends):
            # Fillers are no place: what they would get depends on the other rows of the batch.
            chances = torch.log_softmax(logits.masked_fill(~is_there, -torch.inf), -1)
            right = chances.gather(1, batch["labels"][:, side : side + 1]).sum()
            every = (chances.masked_fill(~is_there, 0.0).sum(-1) / is_there.sum(-1)).sum()
            loss = loss - ((1 - smoothing) * right + smoothing * every) / 2
        return Score(loss, len(batch["labels"]), tuple(each.detach() for each in ends))

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        exact = overlap = 0.0
        for number, row in enumerate(rows):
            said = best_span(out[0][number], out[1][number], row)[0]
            exact += max(is_exact(said, true) for true in row["answers"] or [""])
            overlap += max(overlap_of(said, true) for true in row["answers"] or [""])
        return exact, overlap, len(rows)

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        exact, overlap, rows = counts
        return {"loss": loss, "exact_match": exact / max(rows, 1), "f1": overlap / max(rows, 1)}


def is_exact(said: str, true: str) -> bool:
    return _plain(said) == _plain(true)


def overlap_of(said: str, true: str) -> float:
    """F1 of the words, as SQuAD's own script has it."""
    mine, theirs = _plain(said).split(), _plain(true).split()
    if not mine or not theirs:
        return float(mine == theirs)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / (len(mine) + len(theirs))


def _plain(text: str) -> str:
    """Without capitals, punctuation and articles."""
    text = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
