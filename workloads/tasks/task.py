"""What the training loop asks of a task: samples to tensors, tensors to a loss that can be summed over workers.

A task never averages. It gives sums and the weight they stand for (samples, or tokens that count), and the loop divides
once, by the weight of the whole step: that is why the number of workers does not show in the result. Metrics are
functions of summed counts for the same reason.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from llmsched.data.labels import Read
from llmsched.data.messages import Unusable
from llmsched.data.rows import DataError
from llmsched.data.tasks import KINDS
from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.reads import Batch, Encoded, Reader, padded

if TYPE_CHECKING:
    from workloads.tasks.teacher import Teacher

IGNORED = -100  # label of what does not count


class Score(NamedTuple):
    """Sums over the samples of one batch. `loss` carries the gradient; `out` is what the model says of each."""

    loss: torch.Tensor
    weight: int  # what `loss` is divided by in the end
    out: Any


class Task(ABC):
    """One kind of fine-tuning. `known_labels` are the base model's own; None: it has no last layer for this task."""

    unit = "samples"  # what `weight` counts, for people: "samples" | "tokens"
    head_is_new = False  # the base model may lack the last layer
    packs = False  # several short samples in the place of one
    teacher: Teacher | None = None  # whose answers are learnt too
    new_head = False  # known once samples are read: the base's last layer means something else

    def __init__(self, name: str, reader: Reader, known_labels: Mapping[str, int] | None = None) -> None:
        self.name, self.reader = name, reader
        self.kind = KINDS[name]
        self.known_labels = {str(label): number for label, number in (known_labels or {}).items()}
        self.asked: set[str] = set()  # metrics; what costs much is counted for these alone
        self.notes: list[str] = []  # what was noticed in the data, for people
        self.seen: Counter[str] = Counter()  # the same of the data set at hand: how many of what
        self.rows = 0  # in the data set at hand

    @property
    def at_once(self) -> int:
        """Tokens of a micro-batch whose size nobody sets; a language model's logits are as wide as its vocabulary."""
        return 4096 if self.unit == "tokens" else 8192

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Encoded]:
        """Read, check and encode the data sets of one split. Raises BadInput."""
        read = [(dataset, *self.read(dataset, inputs)) for dataset in datasets]
        self.notes += [note for _, rows, _ in read for note in rows.notes]
        try:
            self.look(read)
        except DataError as error:
            raise BadInput(str(error)) from error
        found: list[Encoded] = []
        for dataset, rows, bad in read:
            self.seen, self.rows, before = Counter(), len(rows), len(found)
            for row, place in zip(rows, rows.places, strict=True):
                try:
                    found += list(self.encoded(row))  # all of a row, or nothing
                except Unusable as error:
                    bad.add(place, str(error))
            try:
                self.notes += bad.settle(len(rows) - bad.count)
            except DataError as error:
                raise BadInput(str(error)) from error
            if len(found) == before:
                raise BadInput(
                    f"data set {dataset['path']}: no token to learn within max_length {self.reader.max_length}; "
                    "make it larger"
                )
            self.notes += [f"{dataset['path']}: {count:,} {what}" for what, count in self.seen.items()]
            found[before:] = _weighted(found[before:], float(dataset.get("weight") or 1.0))
        return found

    def read(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[reading.Rows, reading.BadRows]:
        """The rows of a data set as {role: value}, each checked, and those that are bad. Raises BadInput."""
        learns = dataset.get("split", "train") == "train"
        kind = self.kind.unlabelled if self.teacher and learns else self.kind
        return reading.roles(dataset, kind, inputs, self.checked)

    def checked(self, row: reading.Row, rows: reading.Rows) -> reading.Row:
        """A row as it is learnt: plain values. Raises Unusable."""
        return self.reader.check(row, self.kind.roles)

    def look(self, read: Sequence[Read]) -> None:  # noqa: B027  most tasks have nothing to see
        """At all rows of a split together, before any is encoded. Raises BadInput."""

    @abstractmethod
    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        """The samples of a row: what goes into the model, and labels. Raises Unusable."""

    def input_of(self, row: reading.Row) -> Encoded:
        """What the model reads of a row; counts those that are cut. Raises Unusable."""
        texts = [row[role] for role in self.kind.roles if role in row]
        made = self.reader.encode(*texts)
        if self.reader.is_cut(made, *texts):
            self.seen[f"of {self.rows:,} texts are cut off at max_length {self.reader.max_length}"] += 1
        return made

    def prepared(self, sample: Encoded, key: int) -> Encoded:
        """A sample as a step takes it: what need not lie in memory meanwhile is read here; `key` decides all chance."""
        return self.reader.load(sample)

    def rows_of(self, sample: Encoded) -> int:
        """Rows of a batch that a sample becomes."""
        return 1

    def part_of(self, sample: Encoded) -> int:
        """Samples of different parts share no batch."""
        return 0

    def settings(self) -> dict[str, Any]:
        """What goes into the model's config."""
        return self.reader.settings()

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """One padded batch, on the CPU."""
        labels = [row["labels"] for row in encoded]
        is_one = isinstance(labels[0], (int, float))
        beside = self.teacher.collate(encoded) if self.teacher else {}
        labelled = {"labels": torch.tensor(labels) if is_one else padded(labels, IGNORED)}
        return {**self.reader.collate(encoded), **labelled, **beside}

    @abstractmethod
    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score: ...

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        """What `measure` needs of these rows; as many numbers whatever the rows, and for none."""
        return ()

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        """Every metric of this task, of the mean loss and the sum of the counts of all samples."""
        return {"loss": loss}


def _weighted(samples: list[Encoded], weight: float) -> list[Encoded]:
    """Each as often as its data set weighs; of the fraction that is left, some, always the same."""
    whole, part = divmod(weight, 1)
    some = max(round(part * len(samples)), 0 if whole else 1)
    order = random.Random(len(samples)).sample(range(len(samples)), some)
    return samples * int(whole) + [samples[number] for number in sorted(order)]


def output_of(model: Any, batch: Batch, **settings: Any) -> Any:
    """Of what `model` reads; a teacher's part has a dot in its name."""
    return model(**{name: each for name, each in batch.items() if name != "labels" and "." not in name}, **settings)


def perplexity(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(min(loss, 100.0))}


def score_of_tokens(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> Score:
    """`logits` [..., classes], `labels` [...]. Those that count are gathered first: a vocabulary is wide, and most
    tokens of a prompt do not count."""
    counts = labels != IGNORED
    chosen = logits[counts].float()
    loss = functional.cross_entropy(chosen, labels[counts], reduction="sum", label_smoothing=smoothing)
    return Score(loss, int(counts.sum()), logits.detach())
