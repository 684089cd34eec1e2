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

from llmsched.data.messages import Unusable, plain_text
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.labels import Labels, name_of
from workloads.tasks.metrics import chunks, of_found
from workloads.tasks.reads import Batch, Encoded, Text
from workloads.tasks.task import IGNORED, Read, Score, Task, output_of, score_of_tokens

_OUTSIDE = "O"


class Learns(Task):
    reader: Text
    unit = "tokens"
    head_is_new = True

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.labels = Labels(self.known_labels)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        text, labels = row["text"], row["label"]
        if isinstance(text, str):
            return {"text": plain_text(text, "text"), "label": _spans(labels, text)}
        names = rows.class_names.get("label")
        if not isinstance(text, list) or not isinstance(labels, list) or len(text) != len(labels):
            raise Unusable("has words and tags that are not two lists of one length")
        return {"text": [plain_text(word, "text") for word in text], "label": [name_of(tag, names) for tag in labels]}

    def look(self, read: Sequence[Read]) -> None:
        if not self.reader.tokenizer.is_fast:
            raise BadInput("token-classification: this base model has no fast tokenizer, which knows where words lie")
        counts: Counter[str] = Counter()
        for _, rows, _ in read:
            for row in rows:
                if isinstance(row["text"], str):
                    counts += Counter({_OUTSIDE: 1})
                    counts.update(f"{mark}-{each['label']}" for each in row["label"] for mark in "BI")
                else:
                    counts.update(row["label"])
        path = read[0][0]["path"]
        self.notes += self.labels.take_in(counts, path, read)
        self.new_head = self.labels.is_new

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


def _spans(given: Any, text: str) -> list[dict[str, Any]]:
    """Entities, in order. Raises Unusable."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise Unusable('has entities that are no list of {"start", "end", "label"}')
    found = []
    for each in given:
        start, end, label = each.get("start"), each.get("end"), each.get("label", each.get("type"))
        if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text) and isinstance(label, str)):
            raise Unusable(f"has the entity {each!r}; expected start, end (characters of the text) and a label")
        found.append({"start": start, "end": end, "label": label.strip()})
    return sorted(found, key=lambda each: each["start"])


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
            yield _OUTSIDE
        else:
            yield f"{'I' if at == begun else 'B'}-{spans[at]['label']}"
            begun = at
