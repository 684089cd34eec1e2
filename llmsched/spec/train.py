"""`kind: train`: fine-tune a model with our loop (`base_model`), or run a loop of one's own (`loop`).

The pass-through sections `lora` and `training_args` have PEFT's and TrainingArguments' names and defaults; they list
what our loop honours, everything else these libraries know is refused as not supported.
"""

from __future__ import annotations

import codecs
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from llmsched.core.workload import named_run
from llmsched.data import media, tasks
from llmsched.spec import effects, library_names
from llmsched.spec.quantities import EntryPoint, Label, Source, Text, parse_run_source
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.workload import FiniteSpec, Publish

Task = Literal[
    "causal-lm",
    "sequence-classification",
    "seq2seq-lm",
    "image-text-to-text",
    "token-classification",
    "masked-lm",
    "question-answering",
    "image-classification",
    "audio-classification",
    "automatic-speech-recognition",
    "image-segmentation",
    "object-detection",
    "visual-question-answering",
    "feature-extraction",
]
Objective = Literal["sft", "classify", "regress", "mlm", "ctc", "contrast", "distill", "dpo"]
Metric = Literal[
    "loss", "perplexity", "accuracy", "precision", "recall", "f1", "mse", "mae", "r2", "exact_match", "wer", "cer",
    "mean_iou", "recall_at_1", "bleu", "chrf", "margin",
]  # fmt: skip


def _objectives(task: str) -> tuple[str, ...]:
    """Those that make sense for a task; the first is the default."""
    return tuple(tasks.KINDS[task].learns) if task in tasks.KINDS else ()


class PassThrough(Section):
    """Names of another library: `known` are all it has, the fields those we honour."""

    library: ClassVar[str] = ""
    known: ClassVar[frozenset[str]] = frozenset()


class Lora(PassThrough):
    library: ClassVar[str] = "peft.LoraConfig"
    known: ClassVar[frozenset[str]] = library_names.LORA_CONFIG

    r: int = Field(default=8, ge=1, le=4096)
    lora_alpha: int = Field(default=8, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | Annotated[list[Text], Field(min_length=1)] = "all-linear"


class Dpo(Section):
    """Direct preference optimization (Rafailov et al. 2023). `beta`: how dear it is to leave the reference, which is
    the base model."""

    beta: float = Field(default=0.1, gt=0, le=100)


class Distill(Section):
    """`alpha`: the teacher's share of the loss, what the rows say has the rest. `temperature`: by which both are made
    softer before they are compared."""

    temperature: float = Field(default=2.0, gt=0, le=100)
    alpha: float = Field(default=0.5, gt=0, le=1)


class Prune(Section):
    """`amount`: the part of the weights of each linear layer, the smallest ones, that become zero and stay so."""

    amount: float = Field(gt=0, lt=1)


class SpecAugment(Section):
    """By transformers' names: the share of places in time, and of features, that a model of audio does not hear in a
    step, in spans of so many."""

    mask_time_prob: float = Field(default=0.05, ge=0, lt=1)
    mask_time_length: int = Field(default=10, ge=1)
    mask_feature_prob: float = Field(default=0.0, ge=0, lt=1)
    mask_feature_length: int = Field(default=10, ge=1)


class Quantize(Section):
    """Of the result: weights of linear layers as whole numbers of so many bits, with a scale for each row."""

    bits: Literal[8] = 8


def _parse_trackers(value: Any) -> Any:
    """transformers takes one name, too, and "none"."""
    named = [value] if isinstance(value, str) else value
    return [] if named == ["none"] else named


Tracker = Literal["tensorboard", "mlflow", "wandb"]
Trackers = Annotated[list[Tracker], BeforeValidator(_parse_trackers)]


class TrainingArgs(PassThrough):
    """Learning-rate schedules by transformers' names. `max_steps` above 0 wins over `num_train_epochs`, `warmup_steps`
    over `warmup_ratio`; `max_steps: 0` trains nothing, for whoever compresses a model as it is. Logged every 10 steps,
    not every 500 as there: progress is looked at."""

    library: ClassVar[str] = "transformers.TrainingArguments"
    known: ClassVar[frozenset[str]] = library_names.TRAINING_ARGUMENTS

    learning_rate: float = Field(default=5e-5, gt=0)
    num_train_epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(default=1.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    label_smoothing_factor: float = Field(default=0.0, ge=0, lt=1)
    logging_steps: int = Field(default=10, ge=1)
    seed: int = Field(default=42, ge=0, lt=2**32)
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    report_to: Trackers = []

    @model_validator(mode="after")
    def _one_half_precision(self) -> TrainingArgs:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        effects.check_schedule(self)
        return self


Role = Literal[
    "text",
    "text_pair",
    "label",
    "target",
    "messages",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "chosen",
    "rejected",
    "image",
    "audio",
    "series",
]


def _check_encoding(text: str) -> str:
    try:
        codecs.lookup(text).name.encode()
        "".encode(text)
    except (LookupError, ValueError, UnicodeError):
        raise ValueError('expected an encoding that Python knows, such as "cp1252", "gb18030" or "utf-16"') from None
    return text


Encoding = Annotated[Text, AfterValidator(_check_encoding)]


class Dataset(Section):
    """A file, a folder, a pattern, or `hf://ORG/NAME` with its `subset`. `columns` maps roles to fields of the file;
    without it a field named like its role is taken. `format` says what the columns mean, where `auto` would not see it.
    `encoding` is of texts; None: UTF-8, or what the file shows. `task`: what its rows teach, if not the training's
    own: both share a model but for the last layer. A row that cannot be used ends the run, or is left out
    and counted (`on_bad_row`). `weight`: how often its rows come in an epoch; 0.5: half of them, always the same."""

    path: Source
    split: Label = "train"
    subset: Text | None = None
    format: Literal["auto", "chat", "sharegpt", "alpaca", "prompt", "preference", "text"] = "auto"
    encoding: Encoding | None = None
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    columns: dict[Role, Text] = {}
    weight: float = Field(default=1.0, gt=0, le=1000)
    task: Task | None = None  # None: that of `train`

    @model_validator(mode="after")
    def _fits_its_path(self) -> Dataset:
        if self.subset is not None and not self.path.startswith("hf://"):
            raise WrongAt('goes with a data set of a hub, "path: hf://ORG/NAME"', "subset")
        if self.encoding is not None and self.path.startswith("hf://"):
            raise WrongAt("a data set of a hub says itself how it is encoded; leave it out", "encoding")
        effects.check_encoding(self.path, self.encoding)
        return self


class Evaluation(Section):
    """`every` is in steps; without it once at the end. `before`: also before the first step, to tell what the training
    was good for. `on` is a `split` of `datasets` ("test" where nothing is said);
    `fraction` holds out that part of the training rows instead. `best`: the result is the model of the evaluation that
    was best by this metric, not the last one; `patience`: the training ends after so many evaluations in a row that
    brought nothing better."""

    on: Label | None = None  # filled in, where there is no `fraction`
    fraction: float | None = Field(default=None, gt=0, lt=1)
    best: Metric | None = None
    patience: int | None = Field(default=None, ge=1)
    metrics: list[Metric] = Field(default=["loss"], min_length=1)
    every: int | None = Field(default=None, ge=1)
    before: bool = True

    @model_validator(mode="before")
    @classmethod
    def _is_on_a_split(cls, value: Any) -> Any:
        """What was written and what is filled in must be told apart by the values alone: a spec travels filled in."""
        if isinstance(value, dict) and value.get("on") is None and value.get("fraction") is None:
            return {**value, "on": "test"}
        return value


def _parse_micro_batch_size(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError('expected "auto" or a whole number of at least 1')


MicroBatchSize = Annotated[Literal["auto"] | int, BeforeValidator(_parse_micro_batch_size)]
_LOOP_KEYS = ("loop", "config")


class TrainSection(Section):
    """Exactly one of `base_model` and `loop`. `max_length`, in tokens, cuts longer examples; None: the model's own."""

    base_model: Source | None = None
    init: Literal["pretrained", "random"] = "pretrained"  # random: config and processor of the base, weights of chance
    task: Task = "causal-lm"
    objective: Objective | None = None  # None: the task's usual one, filled in
    teacher: Source | None = None
    distill: Distill | None = None  # with "objective: distill"
    dpo: Dpo | None = None  # with "objective: dpo"
    method: Literal["full", "lora", "qlora"] = "full"  # lora when there is a `lora` section
    lora: Lora | None = None
    merge: bool = False  # the result is a whole model, with the adapter in it
    prune: Prune | None = None
    quantize: Quantize | None = None
    spec_augment: SpecAugment | None = None  # of tasks that hear
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    datasets: list[Dataset] = Field(default=[], max_length=256)
    packing: bool = False  # short samples of a language model share a row, up to max_length; none sees another
    max_length: int | None = Field(default=None, ge=1, le=10_000_000)
    global_batch_size: int = Field(default=16, ge=1, le=10_000_000)
    micro_batch_size: MicroBatchSize = "auto"
    training_args: TrainingArgs = Field(default_factory=TrainingArgs)
    evaluation: Evaluation | None = None
    loop: EntryPoint | None = None
    config: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("loop") is not None:
            return value
        filled = dict(value)
        if isinstance(filled.get("lora"), dict):
            filled.setdefault("method", "lora")
        elif filled.get("method") in ("lora", "qlora") and filled.get("lora") is None:
            filled["lora"] = {}
        task = filled.get("task", "causal-lm")
        if filled.get("objective") is None and isinstance(task, str) and _objectives(task):
            filled["objective"] = _objectives(task)[0]
        if filled.get("objective") in (tasks.DISTILL, "dpo") and filled.get(filled["objective"]) is None:
            filled[filled["objective"]] = {}
        return filled

    @model_validator(mode="after")
    def _is_one_thing(self) -> TrainSection:
        if (self.base_model is None) == (self.loop is None):
            raise ValueError('expected exactly one of "base_model" (our loop trains it) and "loop" (your own code)')
        if self.loop is not None:
            if extra := sorted(self._off_default() - set(_LOOP_KEYS)):
                raise WrongAt('goes with "base_model"; a loop gets everything it needs in "config"', extra[0])
            return self
        if self.config:
            raise WrongAt('goes with "loop"; our own loop takes "training_args"', "config")
        if self.objective not in _objectives(self.task):
            fitting = ", ".join(_objectives(self.task)) or "none: this task is for serving"
            raise WrongAt(f'"{self.objective}" does not fit task "{self.task}"; fitting: {fitting}', "objective")
        if (self.lora is not None) != (self.method in ("lora", "qlora")):
            raise WrongAt('goes with "method: lora" or "method: qlora"', "lora")
        if self.lora is not None and self.task in tasks.KINDS and tasks.KINDS[self.task].lora is None:
            raise WrongAt(f'"{self.task}" is trained whole: use "method: full"', "method")
        if self.spec_augment is not None and "audio" not in tasks.KINDS[self.task].reads:
            raise WrongAt("is for tasks that read audio", "spec_augment")
        if self.packing and self.task != "causal-lm":
            raise WrongAt('is for "task: causal-lm"', "packing")
        if self.lora is not None and self.init == "random":
            raise WrongAt('an adapter of random weights is of no use: use "method: full"', "init")
        if self.merge and self.lora is None:
            raise WrongAt('goes with "method: lora"; method "full" makes a whole model anyway', "merge")
        return self._changes_fit()._data_fits()._tasks_fit()

    def _changes_fit(self) -> TrainSection:
        """How weights change beside the usual steps."""
        if (self.teacher is not None) != (self.objective == tasks.DISTILL):
            raise WrongAt('"objective: distill" and a "teacher" need each other', "teacher")
        for name in (tasks.DISTILL, "dpo"):
            if getattr(self, name) is not None and self.objective != name:
                raise WrongAt(f'goes with "objective: {name}"', name)
        if self.objective == "dpo" and self.packing:
            raise WrongAt("pairs of answers are not packed; leave it out", "packing")
        if self.init == "random" and self.objective == "dpo":
            raise WrongAt("random weights have no preferences to begin from", "init")
        if self.method == "qlora" and self.task != "causal-lm":
            raise WrongAt('"qlora" is for "task: causal-lm"; use "method: lora"', "method")
        if self.prune is not None and self.lora is not None:
            raise WrongAt('an adapter fills the zeros again: use "method: full"', "prune")
        if self.quantize is not None and self.lora is not None and not self.merge:
            raise WrongAt('an adapter is not quantized; "merge: true" makes a whole model', "quantize")
        if self.training_args.max_steps == 0 and self.prune is None and self.quantize is None:
            message = '0 trains nothing: it goes with "prune" or "quantize"'
            raise WrongAt(message, "training_args", "max_steps")
        if self.training_args.max_steps == 0 and (self.lora is not None or self.init == "random"):
            raise WrongAt('0 compresses a model as it is: use "method: full"', "training_args", "max_steps")
        return self

    def _data_fits(self) -> TrainSection:
        splits = {each.split for each in self.datasets}
        if "train" not in splits and self.training_args.max_steps != 0:
            raise WrongAt('expected at least one data set with "split: train"', "datasets")
        if self.evaluation:
            self._evaluation_fits(self.evaluation)
        if self.max_length is not None and not {*tasks.KINDS[self.task].roles} - media.ROLES:
            raise WrongAt(f"counts tokens of texts, and {self.task} reads none; leave it out", "max_length")
        if self.evaluation and self.evaluation.fraction is None and self.evaluation.on not in splits:
            raise WrongAt(f'no data set has "split: {self.evaluation.on}"', "evaluation", "on")
        self._every_split_is_read()
        measured = tasks.metrics_of(self.task, self.objective)
        for index, metric in enumerate(self.evaluation.metrics if self.evaluation else ()):
            if measured and metric not in measured:
                message = f'"{metric}" says nothing of {self.task}; fitting: {", ".join(measured)}'
                raise WrongAt(message, "evaluation", "metrics", index)
        for index, each in enumerate(self.datasets):
            if each.format != "auto" and self.task != "causal-lm":
                raise WrongAt(f'"{each.format}" is for language models; leave it out', "datasets", index, "format")
            if each.format not in ("auto", "preference") and self.objective == "dpo":
                message = f'"{each.format}" has no pairs of answers; "objective: dpo" learns from "preference"'
                raise WrongAt(message, "datasets", index, "format")
        if self.training_args.label_smoothing_factor and (
            self.objective in ("regress", "ctc", "dpo") or self.task == "object-detection"
        ):
            message = f'says nothing of {self.task} with "objective: {self.objective}"; leave it out'
            raise WrongAt(message, "training_args", "label_smoothing_factor")
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.global_batch_size:
            raise WrongAt('larger than "global_batch_size"', "micro_batch_size")
        return self

    def _every_split_is_read(self) -> None:
        """What is accepted has effect: rows that nobody would read are refused."""
        on = self.evaluation.on if self.evaluation else None
        for index, each in enumerate(self.datasets):
            if each.split == "train":
                continue
            if each.split != on:
                if self.evaluation is None:
                    hint = f"there is no evaluation, such as {{on: {each.split}}}"
                elif on is None:
                    hint = '"evaluation.fraction" evaluates on a part of the training rows'
                else:
                    hint = f'"evaluation.on" is "{on}"'
                message = f'nobody would read the rows of "split: {each.split}": {hint}, or leave the data set out'
                raise WrongAt(message, "datasets", index, "split")
            if each.weight != 1:
                raise WrongAt(
                    "how often rows are learnt from; these are evaluated, each once", "datasets", index, "weight"
                )

    def _tasks_fit(self) -> TrainSection:
        """Of data sets that teach another task than the training's."""
        others = [(index, each) for index, each in enumerate(self.datasets) if each.task not in (None, self.task)]
        for index, each in others:
            at = ("datasets", index, "task")
            for task in (self.task, each.task):
                if task not in tasks.TOGETHER:
                    message = f'"{task}" is learnt alone; these may be learnt together: {", ".join(tasks.TOGETHER)}'
                    raise WrongAt(message, *at)
            if each.split != "train":
                raise WrongAt(f'only rows of "{self.task}" are evaluated; leave it out or say "split: train"', *at)
            if self.objective not in ("classify", "regress", "mlm"):
                raise WrongAt(f'"objective: {self.objective}" learns one task; leave it out', *at)
            if self.method != "full":
                raise WrongAt('several tasks are learnt by the whole model: use "method: full"', *at)
        if others and all(each.task not in (None, self.task) for each in self.datasets if each.split == "train"):
            raise WrongAt(f'expected one with "split: train" of the task itself, "{self.task}"', "datasets")
        if others and self.evaluation and self.evaluation.fraction is not None:
            message = "rows of several tasks: name a data set to evaluate on by its split"
            raise WrongAt(message, "evaluation", "fraction")
        return self

    def _evaluation_fits(self, evaluation: Evaluation) -> None:
        measured = tasks.metrics_of(self.task, self.objective)
        if evaluation.best is not None and measured and evaluation.best not in measured:
            message = f'"{evaluation.best}" says nothing of {self.task}; fitting: {", ".join(measured)}'
            raise WrongAt(message, "evaluation", "best")
        if evaluation.patience is not None and evaluation.best is None:
            raise WrongAt('needs "best": by which metric', "evaluation", "patience")
        if (evaluation.patience is not None or evaluation.best is not None) and evaluation.every is None:
            raise WrongAt('needs "every": how many steps lie between two evaluations', "evaluation")
        if evaluation.fraction is not None and evaluation.on is not None:
            raise WrongAt('"on" names a split and "fraction" makes one; leave one out', "evaluation", "fraction")
        if evaluation.fraction is not None and self.training_args.max_steps == 0:
            raise WrongAt('"max_steps: 0" learns from no rows: name a split by "on"', "evaluation", "fraction")
        effects.check_evaluation(evaluation, self.training_args.max_steps)

    def _off_default(self) -> set[str]:
        """Names of the fields that differ from their default."""
        plain = type(self).model_construct()
        return {name for name in type(self).model_fields if getattr(self, name) != getattr(plain, name)}


# What our loop reports besides, of some trainings: how fast it is, and what slows it.
_BESIDE = ("_per_s", "data_wait", "rank_step_s", "slowest_rank", "total_steps", "sparsity")


class TrainSpec(FiniteSpec):
    kind: Literal["train"]
    train: TrainSection
    publish: Publish | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        if self.train.base_model is not None and self.train.global_batch_size < self.workers.max:
            message = f"too small for {self.workers.max} workers: each needs at least one sample a step"
            raise WrongAt(message, "train", "global_batch_size")
        if self.train.base_model is not None:
            effects.check_asking(self, "our own loop", "train.loop")
            effects.check_training(self)
            effects.check_publish(self)
            effects.check_told(self, effects.reported(self.train), _BESIDE)
        if self.publish and self.publish.as_ == "adapter" and self.train.loop is None and self.train.method == "full":
            raise WrongAt('an adapter needs "train.method: lora"; method "full" makes a whole model', "publish", "as")
        if self.publish and self.publish.as_ == "adapter" and self.train.merge:
            raise WrongAt('"train.merge" makes a whole model; leave it out, or publish as "model"', "publish", "as")
        if self.publish and self.publish.as_ == "model" and self.train.lora is not None and not self.train.merge:
            message = f'method "{self.train.method}" makes an adapter; a model needs "train.merge: true" or "full"'
            raise WrongAt(message, "publish", "as")
        return self

    def sources(self) -> list[str]:
        read = [self.train.base_model, self.train.teacher, *(each.path for each in self.train.datasets)]
        return [each for each in read if each]


def runs_read(sources: list[str]) -> list[str]:
    """The workloads (`name` or `name@N`) whose results are read, each once."""
    named = [run for run in map(parse_run_source, sources) if run]
    return list(dict.fromkeys(run.name if run.run is None else named_run(run.name, run.run) for run in named))
