"""The envelope: what every kind of workload has, and what every kind that ends has. Start reading at `WorkloadSpec`.

The models say what is well-formed. What does not work yet stands in `support.py`, what a cluster can hold is the
scheduler's question.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from llmsched.core.workload import split_run
from llmsched.spec import effects, own_variables
from llmsched.spec.notice import Notice, NoticeSpec
from llmsched.spec.quantities import (
    Accelerators,
    Condition,
    Cron,
    Duration,
    EnvName,
    Label,
    ModelId,
    Name,
    Range,
    RunName,
    Size,
    Stamp,
    Storage,
    Text,
    Workdir,
    at_least_one,
)
from llmsched.spec.section import Section, WrongAt


class Amounts(Section):
    """No accelerators: CPU only. Memory 0 is not counted."""

    accelerators: Accelerators = []
    cpus: float = Field(default=1.0, ge=0, le=10_000)
    memory: Size = 0
    custom: dict[Label, Annotated[float, Field(gt=0, le=1_000_000)]] = {}


class Resources(Amounts):
    """What ONE worker or replica gets. No accelerators: CPU only. Memory 0 is not counted."""

    use_spot: bool = False


class TopologySpec(Section):
    """A level of the cluster, `node`, `rack`, `zone`, or a label key, whose one domain must (should) hold the gang."""

    required: Label | None = None
    preferred: Label | None = None


class Placement(Section):
    """Which cluster or site may take it."""

    cluster: Label = "any"
    region: Label = "any"
    labels: dict[Label, Label] = {}
    near: Text | None = None


class GroupSpec(Section):
    """Unlike members of one gang."""

    name: Name
    count: int = Field(ge=1, le=100_000)
    resources: Resources = Field(default_factory=Resources)
    topology: TopologySpec | None = None


MOST_LABELS = 32


def is_wheel(requirement: str) -> bool:
    """Whether it is the path of a file, not the name of a package."""
    return requirement.endswith(".whl") and "@" not in requirement


def _check_requirement(text: str) -> str:
    """A PEP 508 requirement, or the path of a wheel in the workdir. A value that is refused may hold a password: it is
    not repeated."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if text.startswith("-"):
        raise ValueError("options are not taken; where packages come from is set in pip's configuration on the nodes")
    if is_wheel(text):
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or "\\" in text or ":" in text:
            raise ValueError("expected a path inside the workdir, such as wheels/mine-1.0-py3-none-any.whl")
        return text
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise ValueError(
            'expected a requirement, such as "einops>=0.8" or "mine @ https://host/mine.whl", or a wheel in the workdir'
        ) from None
    if canonicalize_name(requirement.name) in CLUSTERS_OWN:
        raise ValueError(f'"{requirement.name}" is the cluster\'s own; a workload cannot bring another one')
    if requirement.url is not None:
        url = urlsplit(requirement.url)
        if url.scheme not in ("https", "git+https"):
            raise ValueError("expected an address that begins with https:// or git+https://")
        if "@" in url.netloc or KEY_VALUE.search(text):
            raise ValueError(f"has credentials in its address; {_INDEX_HINT}")
    return text


CLUSTERS_OWN = ("ray", "llmsched")  # packages that talk to their like across processes
_INDEX_HINT = "a spec is stored and shown. Set them in pip's configuration on the nodes (or a .netrc there)"
Requirement = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_check_requirement)]


class Environment(Section):
    """`pip`: installed on the nodes for this workload, on top of the cluster's Python."""

    pip: list[Requirement] = Field(default=[], max_length=100)
    image: Text | None = None


class Schedule(Section):
    cron: Cron
    overlap: Literal["skip", "allow"] = "skip"


Event = Literal["no-capacity", "interruption", "error"]


class Retry(Section):
    on_events: list[Event] = ["no-capacity", "interruption", "error"]
    max_restarts: int = Field(default=5, ge=0, le=1000)


class Checkpoint(Section):
    """`resume: never` starts every attempt from the beginning."""

    uri: Storage | None = None
    every: Duration = Field(default=600.0, gt=0)
    keep: int = Field(default=3, ge=1, le=1000)
    resume: Literal["auto", "never"] = "auto"


class Preemption(Section):
    """`enabled: false`: may not be preempted (and then may not borrow). `grace` is the time to save and leave."""

    grace: Duration = 120.0
    min_runtime: Duration = 0.0
    enabled: bool = True


class Budget(Section):
    gpu_hours: float = Field(gt=0)


# What a key looks like. The value is never repeated in a message.
KEY_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abp]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,}"
    r"|llms_[A-Za-z0-9]+_[A-Za-z0-9_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\."
)
_KEY_NAME = re.compile(
    r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|SECRET_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE
)
KEY_HINT = (
    "a spec is stored and shown, so a key must not stand in it. Keep it with llmsched secret set NAME, "
    "and write secrets: [NAME]"
)


def _parse_env_value(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("expected text; put quotes around it")
    if "\0" in value:
        raise ValueError("has a NUL character in it")
    return value


def _check_envs(envs: dict[str, str]) -> dict[str, str]:
    for name, value in envs.items():
        if why := own_variables.refusal(name, value):
            raise ValueError(why)
        if KEY_VALUE.search(value) or (_KEY_NAME.search(name) and value):
            raise ValueError(f'"{name}" looks like a key; {KEY_HINT}')
    return envs


def _check_secrets(names: list[str]) -> list[str]:
    for name in names:
        if why := own_variables.refusal(name):
            raise ValueError(why)
    if len(set(names)) < len(names):
        raise ValueError("has a name twice")
    return names


def _none_twice(notices: list[NoticeSpec]) -> list[NoticeSpec]:
    for place, each in enumerate(notices):
        if each in notices[:place]:
            raise WrongAt("stands there twice: each is told once", place)
    return notices


def _once_each(names: list[str]) -> list[str]:
    for place, each in enumerate(names):
        if each in names[:place]:
            raise WrongAt(f'"{each}" stands there twice', place)
    return names


def _check_argv(argv: list[str]) -> list[str]:
    if any("\0" in word for word in argv):
        raise ValueError("has a NUL character in it")
    if argv and not argv[0]:
        raise ValueError("names no program: its first word is empty")
    if len(argv) == 1 and len(argv[0].split()) > 1:
        words = json.dumps(argv[0].split())
        raise ValueError(
            f"is one word with spaces in it; write {words}, or for a shell {json.dumps(['bash', '-c', *argv])}"
        )
    if any(KEY_VALUE.search(word) for word in argv):
        raise ValueError(f"has a word that looks like a key; {KEY_HINT}")
    return argv


def _refuse_command_line(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('expected a list of words, such as ["python", "script.py"]; for a shell ["bash", "-c", "..."]')
    return value


Argv = Annotated[
    list[Annotated[str, Field(max_length=131_072)]],
    BeforeValidator(_refuse_command_line),
    AfterValidator(_check_argv),
    Field(max_length=1000),
]
EnvValue = Annotated[
    str,
    BeforeValidator(_parse_env_value),
    Field(max_length=32_768),
    WithJsonSchema({"type": ["string", "integer"], "maxLength": 32_768}),
]
Envs = Annotated[dict[EnvName, EnvValue], AfterValidator(_check_envs), Field(max_length=256)]


class WorkloadSpec(Section):
    """One document of a spec file. The kinds are its subclasses: train, serve, batch, tune, task, ray."""

    name: Name
    kind: str
    queue: Name = "default"
    priority: int = Field(default=50, ge=0, le=100)
    resources: Resources = Field(default_factory=Resources)
    topology: TopologySpec = Field(default_factory=TopologySpec)
    placement: Placement = Field(default_factory=Placement)
    environment: Environment = Field(default_factory=Environment)
    after: Annotated[list[RunName], AfterValidator(_once_each)] = Field(default=[], max_length=100)
    retry: Retry = Field(default_factory=Retry)
    preemption: Preemption = Field(default_factory=Preemption)
    budget: Budget | None = None
    labels: Annotated[
        dict[Label, Label],
        Field(
            max_length=MOST_LABELS,
            description="Of your own, to find it by: status --label team=nlp, cancel --label ...",
        ),
    ] = {}
    notify: Annotated[list[Notice], AfterValidator(_none_twice)] = Field(default=[], max_length=16)
    calls: Annotated[
        list[Name],
        AfterValidator(_once_each),
        Field(max_length=64, description="Endpoints that it may ask, by the names of their workloads."),
    ] = []
    envs: Envs = {}
    secrets: Annotated[list[EnvName], AfterValidator(_check_secrets)] = Field(default=[], max_length=256)
    workdir: Workdir | None = None

    @model_validator(mode="after")
    def _waits_for_others_only(self) -> WorkloadSpec:
        if any(split_run(each)[0] == self.name for each in self.after):
            raise WrongAt("names the workload itself", "after")
        return self

    @model_validator(mode="after")
    def _has_its_wheels(self) -> WorkloadSpec:
        wheels = [index for index, one in enumerate(self.environment.pip) if is_wheel(one)]
        if wheels and self.workdir is None:
            raise WrongAt(
                "is a file of the workdir, and there is none; write workdir: .", "environment", "pip", wheels[0]
            )
        return self

    @model_validator(mode="after")
    def _has_what_its_budget_counts(self) -> WorkloadSpec:
        effects.check_budget(self)
        return self

    @model_validator(mode="after")
    def _names_each_variable_once(self) -> WorkloadSpec:
        if both := [name for name in self.secrets if name in self.envs]:
            raise WrongAt(f'"{both[0]}" stands in envs too; it can have one value only', "secrets")
        return self

    def sources(self) -> list[str]:
        """Every model or data source it reads, as written."""
        return []


class FiniteSpec(WorkloadSpec):
    """A workload that ends: one gang of `workers`."""

    workers: Annotated[Range, AfterValidator(at_least_one)] = Field(default_factory=lambda: Range(min=1, max=1))
    groups: list[GroupSpec] = Field(default=[], max_length=64)
    max_runtime: Annotated[Duration, Field(gt=0)] | None = None
    estimated_runtime: Annotated[Duration, Field(gt=0)] | None = None
    deadline: Stamp | None = None
    schedule: Schedule | None = None
    asks: Annotated[
        bool, Field(description="Its code may ask for workloads of its own (llmsched.runtime.ask), which end with it.")
    ] = False
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)


class Publish(Section):
    """On success, make the result live in serve workload `to`, without a new rollout of anything else."""

    to: Name
    as_: Literal["adapter", "model"] = Field(default="adapter", alias="as")
    name: ModelId | None = None  # None: the workload's own
    when: Condition | None = None
