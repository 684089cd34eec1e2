"""A label of each word: entities and parts of speech.

    words and tags      {"tokens": ["Ada", "sang"], "ner_tags": ["B-PER", "O"]}, also tags by number
    text and entities   {"text": "Ada sang", "entities": [{"start": 0, "end": 3, "label": "PER"}]}: learnt as BIO tags

The first token of a word has its label, the others do not count. Entities are measured whole, as seqeval does.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from llmsched.data import contents
from llmsched.data.contents import OUTSIDE
from llmsched.data.labels import Labels, Read
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.metrics import chunks, of_found
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import IGNORED, Score, Task, output_of, score_of_tokens


class Learns(Task):
    reader: Text
    unit = "tokens"
    head_is_new = True

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        return contents.checked("label_each", row, rows.class_names)

    def look(self, read: Sequence[Read]) -> None:
        if not self.reader.tokenizer.is_fast:
            raise BadInput("token-classification: this base model has no fast tokenizer, which knows where words lie")
        counts = contents.classes("label_each", (row for _, rows, _ in read for row in rows)) or Counter()
        path = read[0][0]["path"]
        self.notes += self.labels.take_in(counts, path, read)
        self.new_head = self.labels.is_new
        if not any(name.startswith(("B-", "I-")) for name in counts):
            self.notes.append(f"{path}: no tag begins with B- or I-: every tag but O counts as an entity")

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        text, most = row["text"], self.reader.max_length
        words = [] if isinstance(text, str) else list(_places(text))
        coded = self.reader.tokenized(text if isinstance(text, str) else " ".join(text), return_offsets_mapping=True)
        places = coded["offset_mapping"]
        tags = _of_words(places, words, row["label"]) if words else _of_spans(places, row["label"])
        numbers = [IGNORED if tag is None else self.labels[tag] for tag in tags]
        if len(numbers) > most:
            self.seen[f"of {self.rows:,} texts are cut off at max_length {most}"] += 1
        if any(number != IGNORED for number in numbers[:most]):
            yield {"input_ids": array("i", coded["input_ids"][:most]), "labels": array("i", numbers[:most])}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.labels.settings()}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        return score_of_tokens(output_of(model, batch).logits, batch["labels"], smoothing)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        """[found rightly, found, true, tokens with the right label, tokens]"""
        counts, names = [0] * 5, {number: name for name, number in self.labels.numbers.items()}
        for row, best in zip(rows, out.argmax(-1).tolist() if rows else (), strict=True):
            numbers = [pair for pair in zip(best, row["labels"], strict=False) if pair[1] != IGNORED]
            said, true = ([names[pair[side]] for pair in numbers] for side in (0, 1))
            found, there = chunks(said), chunks(true)
            right = sum(map(str.__eq__, said, true))
            for place, number in enumerate((len(found & there), len(found), len(there), right, len(true))):
                counts[place] += number
        return counts

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        found, said, true, right, tokens = counts
        return {"loss": loss, "accuracy": right / max(tokens, 1.0), **of_found(found, said, true)}


def _places(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each word stands once they are joined by spaces."""
    at = 0
    for word in words:
        yield at, at + len(word)
        at += len(word) + 1


def _of_words(
    places: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]], tags: Sequence[str]
) -> Iterator[str | None]:
    """The tag of each token: that of a word for the first token that touches it, None for the others."""
    begun = -1
    for start, end in places:
        at = next((n for n, word in enumerate(words) if n > begun and word[0] < end and start < word[1]), None)
        yield None if at is None else tags[at]
        begun = begun if at is None else at


def _of_spans(places: Sequence[tuple[int, int]], spans: Sequence[dict[str, Any]]) -> Iterator[str | None]:
    """The tag of each token; None: one that stands for no text. The first that touches an entity begins it."""
    begun = -1
    for start, end in places:
        at = next((n for n, span in enumerate(spans) if span["start"] < end and start < span["end"]), None)
        if start == end:
            yield None
        elif at is None:
            yield OUTSIDE
        else:
            yield f"{'I' if at == begun else 'B'}-{spans[at]['label']}"
            begun = at
