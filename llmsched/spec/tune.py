"""`kind: tune`: a search over the fields of a training, or a task once for each point of a grid.

Everything that says what work needs (`resources`, `workers`, `envs`, `retry` ...) is each trial's; `budget`,
`deadline`, `max_runtime` and `schedule` are the search's as a whole. Trials are workloads of their own, NAME.t1 ...
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from math import isfinite, prod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from llmsched.spec import effects, validation
from llmsched.spec.document import from_json
from llmsched.spec.quantities import Label
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.task import TaskSection, TaskSpec
from llmsched.spec.train import TrainSection, TrainSpec
from llmsched.spec.workload import FiniteSpec, WorkloadSpec

MOST_TRIALS = 10_000
MOST_AT_ONCE = 64  # what one workload may have asked for and not ended
LISTED_AT_MOST = 1_000  # values of all lists of a space
AT_ONCE = {"random": MOST_AT_ONCE, "optuna": 8}  # where `concurrent` is not said: who learns looks at a few at a time
_OF_THE_SEARCH = (
    "kind", "name", "queue", "priority", "after", "budget", "labels", "notify", "max_runtime", "deadline", "schedule",
    "asks", "tune",
)  # fmt: skip
_FIXED = (*_OF_THE_SEARCH, "calls", "secrets", "workdir")  # of all trials alike: no field of a space
_SHORT = ("", "train.", "train.training_args.", "train.lora.", "train.config.")  # where a path may begin

Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]
Listed = Annotated[list[JsonValue], Field(min_length=1, max_length=LISTED_AT_MOST)]


class Domain(Section):
    """Ray Tune's words; exactly one of them. `randint` leaves its upper bound out; of a `grid` every value is tried."""

    uniform: Bounds | None = None
    loguniform: Bounds | None = None
    randint: WholeBounds | None = None
    choice: Listed | None = None
    grid: Listed | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Domain:
        given = (self.uniform, self.loguniform, self.randint, self.choice, self.grid)
        if sum(value is not None for value in given) != 1:
            raise ValueError("expected exactly one of uniform, loguniform, randint, choice, grid")
        for each in (*(self.grid or ()), *(self.choice or ())):
            if isinstance(each, dict) and len(each) == 1 and {*each} <= {*type(self).model_fields}:
                raise ValueError(
                    f"{json.dumps(each)[:60]} stands in a list, where values stand: no domain has others in it"
                )
        bounds = self.uniform or self.loguniform or self.randint
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError("expected the lower bound first")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs bounds above 0")
        if self.uniform and not isfinite(self.uniform[1] - self.uniform[0]):
            raise ValueError("the bounds are too far apart for a number between them")
        return self

    def extremes(self) -> list[Any]:
        """The values that show whether all are well-formed: every one of a list, of a range its ends."""
        if self.randint:
            return [self.randint[0], self.randint[1] - 1]
        return [*(self.grid or self.choice or self.uniform or self.loguniform or ())]


class SchedulerArgs(Section):
    """Ray Tune's words. `time_attr`: by which reported number trials are compared. `max_t`: where a trial ends, without
    it the `max_steps` of a training. `perturbation_interval`: of pbt."""

    time_attr: Label = "step"
    max_t: int | None = Field(default=None, ge=1)
    grace_period: int | None = Field(default=None, ge=1)
    reduction_factor: float | None = Field(default=None, gt=1)
    min_samples_required: int | None = Field(default=None, ge=1)
    perturbation_interval: int | None = Field(default=None, ge=1)
    quantile_fraction: float | None = Field(default=None, gt=0, le=0.5)

    OF: ClassVar[dict[str, tuple[str, ...]]] = {
        "fifo": (),
        "asha": ("max_t", "grace_period", "reduction_factor"),
        "median": ("grace_period", "min_samples_required"),
        "pbt": ("perturbation_interval", "quantile_fraction"),
    }


class TuneSection(Section):
    """Exactly one of `train` and `task`. `space`: paths of fields of a trial, such as `train.lora.r` or `envs.SEED`; an
    argument of `train.training_args` or of one's own `train.config` by its name alone. Each point of the grids is tried
    `samples` times. Without a `metric` nothing is compared: a task for each point of a grid."""

    train: TrainSection | None = None
    task: TaskSection | None = None
    space: dict[Label, Domain] = Field(min_length=1, max_length=64)
    samples: int = Field(default=1, ge=1, le=MOST_TRIALS)
    concurrent: int | None = Field(default=None, ge=1, le=MOST_AT_ONCE)
    metric: Label | None = None
    mode: Literal["min", "max"] = "min"
    searcher: Literal["random", "optuna"] = "random"
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "fifo"
    scheduler_args: SchedulerArgs = Field(default_factory=SchedulerArgs)
    seed: int = Field(default=42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _is_one_thing(self) -> TuneSection:
        if (self.train is None) == (self.task is None):
            raise ValueError('expected exactly one of "train" and "task": what a trial does')
        if self.total > MOST_TRIALS:
            raise WrongAt(f"these are {self.total} trials; a search has at most {MOST_TRIALS}", "samples")
        if sum(len(each.grid or each.choice or ()) for each in self.space.values()) > LISTED_AT_MOST:
            raise WrongAt(f"lists more than {LISTED_AT_MOST} values", "space")
        if self.metric is None:
            if self.mode != "min":
                raise WrongAt('says which end of a "metric" is the better one, and there is none', "mode")
            for key, plain in (("searcher", "random"), ("scheduler", "fifo")):
                if getattr(self, key) != plain:
                    raise WrongAt(f'"{getattr(self, key)}" compares trials: by which "metric"?', key)
        for path, domain in self.space.items():
            effects.check_grid(path, domain.grid or [])
        effects.check_paths([*self.space])
        if self.searcher == "optuna" and (grid := next((path for path, one in self.space.items() if one.grid), None)):
            raise WrongAt('"optuna" chooses itself what to try: use "choice"', "space", grid, "grid")
        return self._is_scheduled()

    def _is_scheduled(self) -> TuneSection:
        of, args = SchedulerArgs.OF, self.scheduler_args
        for key in sorted({key for keys in of.values() for key in keys} - set(of[self.scheduler])):
            if getattr(args, key) is not None:
                takers = " or ".join(name for name, keys in of.items() if key in keys)
                raise WrongAt(f'goes with "scheduler: {takers}"; leave it out', "scheduler_args", key)
        if self.scheduler == "fifo" and args.time_attr != "step":
            raise WrongAt("goes with a scheduler that compares trials; leave it out", "scheduler_args", "time_attr")
        if self.scheduler == "asha" and self.max_t is None:
            raise WrongAt('"asha" must know where a trial ends: write the number of steps', "scheduler_args", "max_t")
        if self.scheduler == "pbt" and args.perturbation_interval is None:
            raise WrongAt('"pbt" needs it: after how many steps trials are compared', "scheduler_args",
                          "perturbation_interval")  # fmt: skip
        effects.check_search(self)
        return self

    @property
    def max_t(self) -> int | None:
        steps = self.train.training_args.max_steps if self.train is not None and self.train.base_model else -1
        return self.scheduler_args.max_t or (steps if steps > 0 else None)

    @property
    def total(self) -> int:
        return self.samples * prod(len(each.grid) for each in self.space.values() if each.grid)

    @property
    def at_once(self) -> int:
        return min(self.concurrent or AT_ONCE[self.searcher], self.total)


class TuneSpec(FiniteSpec):
    kind: Literal["tune"]
    tune: TuneSection

    @model_validator(mode="before")
    @classmethod
    def _name_fields_in_full(cls, value: Any) -> Any:
        """`learning_rate` becomes `train.training_args.learning_rate`; what names no field is left for the check."""
        tune = value.get("tune") if isinstance(value, dict) else None
        if not isinstance(tune, dict) or not isinstance(tune.get("space"), dict):
            return value
        space: dict[Any, Any] = {}
        for path, domain in tune["space"].items():
            full = _in_full(path, tune) if isinstance(path, str) else path
            if full in space:
                raise WrongAt(f'names "{full}", which has stood there before', "tune", "space", path)
            space[full] = domain
        return {**value, "tune": {**tune, "space": space}}

    @model_validator(mode="after")
    def _every_trial_is_well_formed(self) -> TuneSpec:
        if self.asks:
            raise WrongAt("a search asks for its trials anyway, and a trial may ask for nothing; leave it out", "asks")
        data, model = self.dump(), _model(self.tune.model_dump(exclude_none=True))
        for path, domain in self.tune.space.items():
            where = "tune", "space", path
            if path.partition(".")[0] in _FIXED:
                raise WrongAt("is the same for all trials; no field of a space", *where)
            if not _is_field(path, model):
                if (whole := _list_in(path)) and _is_field(whole, model):
                    raise WrongAt(f'names one of a list: vary the whole of it, "{whole}"', *where)
                near = _nearest(path, model)
                raise WrongAt("is no field of a trial" + (f'. Did you mean "{near}"?' if near else ""), *where)
            if path.startswith("envs.") and None in domain.extremes():
                raise WrongAt('null is no value of a variable; write "" for an empty one', *where)
        for values in points(self.tune.space):
            if problem := _problem(trial(data, "t1", values), model):
                self._blame(data, values, model, problem)
        self._has_its_metric()
        return self

    def _blame(self, data: dict[str, Any], values: Mapping[str, Any], model: type[WorkloadSpec], problem: str) -> None:
        """Raises WrongAt for the fewest values because of which a trial is none."""
        for count in (1, 2):
            for some in itertools.combinations(values, count):
                alone = _problem(trial(data, "t1", {path: values[path] for path in some}), model)
                if alone == problem:
                    *others, last = (f"{str(values[path])[:60]!r}" for path in some)
                    beside = "".join(f" beside {each} of {path}" for each, path in zip(others, some, strict=False))
                    raise WrongAt(f"{last}{beside} does not fit: {problem}", "tune", "space", some[-1])
        raise WrongAt(f"a trial with {json.dumps(values)[:200]} does not fit: {problem}", "tune", "space")

    def _has_its_metric(self) -> None:
        train, metric = self.tune.train, self.tune.metric
        if train is None or train.base_model is None or metric is None:
            return
        known = ["loss", *effects.measured(train)]
        if metric not in known:
            near = validation.nearest(metric, known)
            hint = f'did you mean "{near}"?' if near else f"it reports {', '.join(known)}"
            raise WrongAt(f'no trial would report "{metric}"; {hint}', "tune", "metric")
        effects.check_mode(self.tune)
        every = train.evaluation.every if train.evaluation else None
        if metric.startswith("eval.") and self.tune.scheduler != "fifo" and every is None:
            raise WrongAt(
                f'"{self.tune.scheduler}" compares trials while they run, and "{metric}" is known at their end alone: '
                'write train.evaluation.every', "tune", "scheduler",
            )  # fmt: skip

    def sources(self) -> list[str]:
        train = self.tune.train
        read = [train.base_model, train.teacher, *(each.path for each in train.datasets)] if train is not None else []
        return [each for each in read if each]


MOST_READ = 1_000  # points of a space that are looked through for what trials read
MOST_POINTS = 512  # of two values side by side that are looked at before a search begins


def points(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """Values at every path that show whether trials are well-formed: each value once, and the extremes of each two
    paths side by side, as rules over fields are of two; at the other paths stands the first."""
    first = {path: domain.extremes()[0] for path, domain in space.items()}
    yield first
    for path, domain in space.items():
        for value in domain.extremes()[1:]:
            yield {**first, path: value}
    yield from itertools.islice(_in_twos(space, first), MOST_POINTS)


def _in_twos(space: Mapping[str, Domain], first: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for one, other in itertools.combinations(space, 2):
        for value in _corners(space[one].extremes()):
            for beside in _corners(space[other].extremes()):
                if value != first[one] and beside != first[other]:
                    yield {**first, one: value, other: beside}


def _corners(values: list[Any]) -> list[Any]:
    """Of numbers the least and the greatest: a rule that both keep, the others keep."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sorted({min(values), max(values)})
    return values


_READ = (
    "base_model",
    "teacher",
    "task",
    "objective",
    "init",
    "datasets",
    "evaluation",
)  # what data and models must fit


class Reading(NamedTuple):
    """A trial that reads something else than others: its values, which of them it is because of, its `train` section as
    data."""

    values: dict[str, Any]
    why: str
    train: dict[str, Any]


def readings(search: Mapping[str, Any], space: Mapping[str, Domain]) -> list[Reading]:
    """One trial for each thing that trials read. `search` is the spec as data."""
    found: list[Reading] = []
    seen: list[dict[str, Any]] = []
    for values in itertools.islice(points(space), MOST_READ) if search["tune"].get("train") else ():
        train = trial(search, "t1", values)["train"]
        read = {name: train.get(name) for name in _READ}
        if read not in seen:
            seen.append(read)
            of_it = [path for path in values if path.removeprefix("train.").partition(".")[0] in _READ]
            why = ", ".join(f"{path} {json.dumps(values[path])[:100]}" for path in of_it)
            found.append(Reading(values, why, train))
    return found


GOES_ON_FROM = "llmsched/goes-on-from"  # a label of a trial of a population: TRIAL/STEP


def trial(data: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of one trial; `data` is that of the search, as data. `values`: what is at each path."""
    kind = "task" if data["tune"].get("task") else "train"
    made = deepcopy({key: value for key, value in data.items() if key not in _OF_THE_SEARCH})
    made |= {"name": name, "kind": kind, kind: deepcopy(data["tune"][kind])}
    for path, value in values.items():
        *parents, last = path.split(".")
        section = made
        for key in parents:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[last] = _text(value) if parents == ["envs"] else value
    return made


def values_of(search: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial (as data) has at each path of the space."""
    found: dict[str, Any] = {}
    for path, domain in search["tune"]["space"].items():
        value: Any = made
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found[path] = _meant(value, domain) if path.startswith("envs.") and isinstance(value, str) else value
    return found


def _text(value: Any) -> str:
    """As an environment variable has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _meant(text: str, domain: Mapping[str, Any]) -> Any:
    """The value of the domain that became this variable."""
    listed = domain.get("grid") or domain.get("choice")
    if listed:
        return next((value for value in listed if _text(value) == text), text)
    return int(text) if domain.get("randint") else float(text)


def _model(tune: Mapping[str, Any]) -> type[WorkloadSpec]:
    return TaskSpec if tune.get("task") else TrainSpec


def _in_full(path: str, tune: Mapping[str, Any]) -> str:
    model = _model(tune)
    for prefix in _SHORT:
        if prefix == "train.config." and not (isinstance(tune.get("train"), dict) and tune["train"].get("loop")):
            continue
        if _is_field(prefix + path, model):
            return prefix + path
    return path


def _is_field(path: str, model: type[BaseModel]) -> bool:
    """Whether it leads to a field, or to a key of one that takes any."""
    annotation: Any = model
    for key in path.split("."):
        sections = validation.sections_in(annotation)
        if sections:
            keys = validation.keys_of(sections[0])
            if key not in keys:
                return False
            annotation = keys[key]
        elif "dict[" not in str(annotation):
            return False
        else:
            annotation = Any  # of a mapping
    return True


def _list_in(path: str) -> str:
    """What stands before the number of an element; ""."""
    keys = path.split(".")
    return next((".".join(keys[:place]) for place, key in enumerate(keys) if key.isdigit()), "")


def _nearest(path: str, model: type[BaseModel]) -> str | None:
    """As a whole, by its last word, or by its first one where any word may follow."""
    fields = {*_all_fields(model)}
    if near := validation.nearest(path, fields):
        return near
    if near := validation.nearest(path.rpartition(".")[2], {each.rpartition(".")[2] for each in fields}):
        return near
    first, _, rest = path.partition(".")
    near = validation.nearest(first, {each for each in fields if "." not in each})
    return f"{near}.{rest}" if near and _is_field(f"{near}.{rest}", model) else None


def _all_fields(model: type[BaseModel], before: str = "", levels: int = 3) -> Iterator[str]:
    for key, annotation in validation.keys_of(model).items():
        if not before and key in _FIXED:
            continue
        yield before + key
        for section in validation.sections_in(annotation) if levels > 1 else ():
            yield from _all_fields(section, f"{before}{key}.", levels - 1)


def _problem(data: dict[str, Any], model: type[WorkloadSpec]) -> str:
    """What is wrong with a trial; "" when nothing is."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        found = validation.explain(error, model, f"a {data['kind']} workload", from_json(data, "")[0])
        return found[0].message
    return ""
