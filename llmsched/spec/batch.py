"""`kind: batch`: a model, or a function of one's own, over every row of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, model_validator

from llmsched.spec.quantities import EntryPoint, Source, Storage, Text
from llmsched.spec.section import Section
from llmsched.spec.train import Role, Task
from llmsched.spec.workload import FiniteSpec


class BatchInput(Section):
    path: Source
    columns: dict[Role, Text] = {}


class BatchSection(Section):
    """Exactly one of `model` and `map`."""

    input: BatchInput
    model: Source | None = None
    task: Task = "causal-lm"
    map: EntryPoint | None = None
    args: dict[str, JsonValue] = {}
    output: Storage
    batch_size: int = Field(default=64, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _is_one_thing(self) -> BatchSection:
        if (self.model is None) == (self.map is None):
            raise ValueError('expected exactly one of "model" and "map" (your own function)')
        return self


class BatchSpec(FiniteSpec):
    kind: Literal["batch"]
    batch: BatchSection

    def sources(self) -> list[str]:
        return [each for each in (self.batch.model, self.batch.input.path) if each]
