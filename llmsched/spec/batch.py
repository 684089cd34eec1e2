"""`kind: batch`: a model, or a function of one's own, over every row of a data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, WithJsonSchema, model_validator

from llmsched.data import parameters
from llmsched.data.tasks import KINDS
from llmsched.spec import effects, split
from llmsched.spec.quantities import Duration, EntryPoint, Label, Source, Storage, Text
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.serve import EngineKwargs
from llmsched.spec.train import Encoding, Role, Task
from llmsched.spec.workload import FiniteSpec

MIN_FOLLOW_S = 1.0
_REPORTED = {False: ("total_steps",), True: ("lag_s", "backlog")}  # besides what every batch does


class BatchInput(Section):
    """A file, a folder or a pattern. `columns` maps what the model reads to fields of the file. A row that cannot be
    used is set aside and named, or ends the run (`on_bad_row: refuse`)."""

    path: Source
    split: Label | None = None  # None: all files
    encoding: Encoding | None = None
    columns: dict[Role, Text] = {}
    on_bad_row: Literal["refuse", "skip"] = "skip"

    @model_validator(mode="after")
    def _fits_its_path(self) -> BatchInput:
        effects.check_encoding(self.path, self.encoding)
        return self


def _parse_format(value: Any) -> Any:
    return "jsonl" if value in ("json", "ndjson", "jsonlines") else value


Format = Annotated[
    Literal["parquet", "jsonl"],
    BeforeValidator(_parse_format),
    WithJsonSchema({"enum": ["parquet", "jsonl"]}),
]


class BatchSection(Section):
    """Exactly one of `model` and `map`. `map` is called with a list of rows, as objects, and answers with as many."""

    input: BatchInput
    model: Source | None = None
    task: Task = "causal-lm"
    engine_kwargs: EngineKwargs = Field(default_factory=EngineKwargs)
    map: EntryPoint | None = None
    args: Annotated[
        dict[str, JsonValue],
        Field(description="Of `map`: its keyword arguments. Of a language model: max_tokens, temperature, stop ..."),
    ] = {}
    output: Annotated[
        Storage | None, Field(description="Where the answers go, as part-*.FORMAT. Without it they are the result.")
    ] = None
    format: Format = "parquet"
    keep: Annotated[
        list[Text] | None, Field(description="The columns of the input that go along into the output; all without it.")
    ] = None
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    follow: Annotated[
        Duration | None,
        Field(
            ge=MIN_FOLLOW_S,
            description="Go on for ever with the files and lines that are added, answered within about this time.",
        ),
    ] = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> BatchSection:
        if (self.model is None) == (self.map is None):
            raise ValueError('expected exactly one of "model" and "map" (your own function)')
        if self.map is not None and self.input.columns:
            raise WrongAt('goes with "model"; a function gets every row as it stands', "input", "columns")
        if self.map is not None and self.task != "causal-lm":
            raise WrongAt('goes with "model"; leave it out', "task")
        if self.map is not None and self.engine_kwargs != EngineKwargs():
            raise WrongAt('goes with "model"; leave it out', "engine_kwargs")
        if self.model is not None:
            self.engine_kwargs.check_decoder(self.task)
            split.check_alone(self.engine_kwargs)
        if self.model is not None and self.args and "chat/completions" not in KINDS[self.task].answers:
            raise WrongAt(f'a {self.task} model takes none; args go with "map" or a language model', "args")
        return self

    @model_validator(mode="after")
    def _asks_what_a_model_takes(self) -> BatchSection:
        if self.model is None or not self.args:
            return self
        try:
            parameters.check_generation(self.args)
        except parameters.RequestError as error:
            raise WrongAt(error.message, "args", *([error.param] if error.param in self.args else [])) from None
        return self

    @model_validator(mode="after")
    def _follows_what_can_grow(self) -> BatchSection:
        if self.follow is None:
            return self
        if not self.input.path.startswith(("/", "file:///")):
            raise WrongAt(
                "needs an absolute input.path, on a disk that all machines share: there is looked for what is new",
                "follow",
            )
        if self.output is None:
            raise WrongAt("needs an output: a batch that follows its input does not end, so it has no result", "follow")
        return self

    @model_validator(mode="after")
    def _writes_where_all_workers_can(self) -> BatchSection:
        if self.output is not None and not self.output.startswith(("/", "s3://", "file:///")):
            message = "expected an absolute folder or s3://BUCKET/PREFIX: the workdir is gone when the run has ended"
            raise WrongAt(message, "output")
        return self


class BatchSpec(FiniteSpec):
    kind: Literal["batch"]
    batch: BatchSection

    @model_validator(mode="after")
    def _asks(self) -> BatchSpec:
        if self.batch.model is not None:
            effects.check_asking(self, "a model", "batch.map")
            effects.check_told(self, ("step", "rows_per_s", "bad_rows", *_REPORTED[self.batch.follow is not None]))
        return self

    @model_validator(mode="after")
    def _has_room_for_every_run(self) -> BatchSpec:
        if self.schedule is not None and self.batch.output is not None and self.batch.follow is None:
            message = (
                "is not empty any more when a schedule's next run begins; leave it out: the answers are the result of "
                "each run, and run://NAME is the newest"
            )
            raise WrongAt(message, "batch", "output")
        return self

    @model_validator(mode="after")
    def _ends(self) -> BatchSpec:
        for name in ("schedule", "deadline", "estimated_runtime") if self.batch.follow is not None else ():
            if getattr(self, name) is not None:
                raise WrongAt(
                    "goes with work that ends, which a batch that follows its input does not; leave it out", name
                )
        return self

    def sources(self) -> list[str]:
        return [each for each in (self.batch.model, self.batch.input.path) if each]
