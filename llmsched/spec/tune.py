"""`kind: tune`: a search over training arguments; every trial is a gang under the same quota."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from llmsched.spec.quantities import Label
from llmsched.spec.section import Section
from llmsched.spec.train import TrainSection
from llmsched.spec.workload import FiniteSpec

Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class Domain(Section):
    """Ray Tune's words; exactly one of them."""

    uniform: Bounds | None = None
    loguniform: Bounds | None = None
    randint: WholeBounds | None = None
    choice: Annotated[list[JsonValue], Field(min_length=1, max_length=1000)] | None = None
    grid: Annotated[list[JsonValue], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Domain:
        if (
            sum(value is not None for value in (self.uniform, self.loguniform, self.randint, self.choice, self.grid))
            != 1
        ):
            raise ValueError("expected exactly one of uniform, loguniform, randint, choice, grid")
        bounds = self.uniform or self.loguniform or self.randint
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError("expected the lower bound first")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs bounds above 0")
        return self


class TuneSection(Section):
    train: TrainSection
    space: dict[Label, Domain] = Field(min_length=1, max_length=64)
    trials: int = Field(ge=1, le=100_000)
    concurrent: int = Field(default=1, ge=1, le=10_000)
    metric: Label
    mode: Literal["min", "max"] = "min"
    scheduler: Literal["fifo", "asha", "pbt", "median"] = "fifo"


class TuneSpec(FiniteSpec):
    kind: Literal["tune"]
    tune: TuneSection

    def sources(self) -> list[str]:
        read = [self.tune.train.base_model, *(each.path for each in self.tune.train.datasets)]
        return [each for each in read if each]
