"""Several tasks in one training: one body, a last layer for each. What the body learns of one helps the others; the
result is the model of the main task, and the other last layers go with the training.

A sample of each task has the same say: its loss is divided by what a sample of that task weighs on average (one that
is a text with hidden tokens has several losses), so a sum over workers stays a sum. `weight` of a data set moves that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workloads import datasets as reading
from workloads.sources import BadInput
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.table import task_of
from workloads.tasks.task import IGNORED, Score, Task

_WHOSE = "together.task"  # of a sample and of a batch: the number of its task; no model reads what has a dot
_LAST_LAYERS = "last_layers.safetensors"


def with_others(main: Task, train: Mapping[str, Any], config: Any) -> Task:
    """`main`, or all tasks that the data sets name. Raises BadInput."""
    named = dict.fromkeys(each.get("task") or main.name for each in train.get("datasets") or ())
    others = [task_of(name, None, main.reader, config) for name in named if name != main.name]
    return Together(main, others) if others else main


class Together(Task):
    """`main` and others that learn beside it. Only rows of `main` are evaluated."""

    def __init__(self, main: Task, others: Sequence[Task]) -> None:
        super().__init__(main.name, main.reader)
        self.tasks, self.per_sample = [main, *others], [1.0] * (1 + len(others))
        self.beside = torch.nn.ModuleDict({each.name: torch.nn.Identity() for each in others})
        self.head_is_new = main.head_is_new

    @property
    def main(self) -> Task:
        return self.tasks[0]

    @property
    def new_head(self) -> bool:  # type: ignore[override]
        return self.main.new_head

    @property
    def at_once(self) -> int:
        return min(each.at_once for each in self.tasks)

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Encoded]:
        found: list[Encoded] = []
        for number, task in enumerate(self.tasks):
            of_it = [each for each in datasets if (each.get("task") or self.name) == task.name]
            made = task.samples(of_it, inputs) if of_it else []
            self.notes, task.notes = [*self.notes, *task.notes], []
            if made and of_it[0].get("split", "train") == "train":
                self.per_sample[number] = sum(_weight_of(task, each) for each in made) / len(made)
            found += [{**each, _WHOSE: number} for each in made]
        return found

    def encoded(self, row: reading.Row) -> Iterator[Encoded]:
        return self.main.encoded(row)

    def prepared(self, sample: Encoded, key: int) -> Encoded:
        number = sample[_WHOSE]
        return {**self.tasks[number].prepared(_alone(sample), key), _WHOSE: number}

    def part_of(self, sample: Encoded) -> int:
        return int(sample[_WHOSE])

    def settings(self) -> dict[str, Any]:
        return self.main.settings()

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        number = encoded[0][_WHOSE]
        return {**self.tasks[number].collate([_alone(each) for each in encoded]), _WHOSE: torch.tensor(number)}

    def score(self, model: Any, batch: Batch, smoothing: float = 0.0) -> Score:
        number = int(batch[_WHOSE])
        task, its_own = self.tasks[number], {name: each for name, each in batch.items() if name != _WHOSE}
        if not number and not model.training:  # an evaluation tells the loss of the main task as it is
            return task.score(model, its_own, smoothing)
        asked = model if not number else self.beside[task.name].train(model.training)
        score = task.score(asked, its_own, smoothing)
        return Score(score.loss / self.per_sample[number], len(batch["labels"]), score.out)

    def count(self, model: Any, out: Any, batch: Batch, rows: Sequence[Encoded]) -> Sequence[float]:
        return self.main.count(model, out, batch, [_alone(row) for row in rows])

    def measure(self, loss: float, counts: Sequence[float]) -> dict[str, float]:
        return self.main.measure(loss, counts)

    def stand_on(
        self, body: torch.nn.Module, models: Mapping[str, Any], resumed: Path | None, device: torch.device
    ) -> dict[str, torch.nn.Parameter]:
        """Take the last layers of `models` (by task), each from now on over `body`, and of a checkpoint what it has.
        Their parameters by name. Raises BadInput."""
        there = {name for name, _ in body.named_parameters()}
        for name, model in models.items():
            own = getattr(model, model.base_model_prefix)
            if lacking := sorted({each for each, _ in own.named_parameters()} - there):
                raise BadInput(
                    f"{name} reads {lacking[0]}, which a model of this base for {self.name} lacks: make {name} the "
                    f"task of the training, and {self.name} that of a data set"
                )
            setattr(model, model.base_model_prefix, body)
            model.tie_weights()  # the words that a last layer says are those that the body reads
            self.beside[name] = model.to(device)
        own_ones = self._own_parameters(body)
        if resumed:
            kept = load_file(resumed / _LAST_LAYERS)
            for name, param in own_ones.items():
                param.data.copy_(kept[name])
        return own_ones

    def _own_parameters(self, body: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
        shared = {id(param) for param in body.parameters()}
        return {name: param for name, param in self.beside.named_parameters() if id(param) not in shared}

    def save(self, body: torch.nn.Module, folder: Path) -> None:
        kept = {name: param.detach().cpu().contiguous() for name, param in self._own_parameters(body).items()}
        save_file(kept, folder / _LAST_LAYERS)


def _alone(sample: Encoded) -> Encoded:
    return {name: each for name, each in sample.items() if name != _WHOSE}


def _weight_of(task: Task, sample: Encoded) -> float:
    """What it adds to the weight of a step; which tokens are hidden does not change how many."""
    if task.unit == "samples":
        return 1.0
    return float(sum(label != IGNORED for label in task.prepared(sample, 0)["labels"]))
