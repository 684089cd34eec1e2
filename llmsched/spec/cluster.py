"""`cluster/llmsched.yaml`: queues, cohorts, flavors, reservations, chosen policies. Keys are Kueue's and the core's.

Names that must exist (a queue's cohort, a reservation's queue) are checked here, inside the file; what the cluster
really has is the scheduler's question.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmsched.core.configuration import Configuration, PolicyNames
from llmsched.errors import Problem, SpecError
from llmsched.spec import document as documents
from llmsched.spec import policy_options, support, validation
from llmsched.spec.document import Document
from llmsched.spec.quantities import (
    Cron,
    Duration,
    FlavorName,
    Label,
    Name,
    Size,
    Stamp,
    Storage,
    Text,
    parse_accelerator,
)
from llmsched.spec.section import Section, WrongAt

_CORE = Configuration()
HostName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.:-]{0,252}$")]
_Amount = Annotated[float, Field(ge=0, le=1_000_000)]


class FlavorSpec(Section):
    name: FlavorName
    labels: dict[Label, Label] = {}
    price_per_gpu_hour: float = Field(default=0.0, ge=0)


class NodeTypeSpec(Section):
    name: Name
    flavor: FlavorName | None = None
    gpus: int = Field(default=0, ge=0, le=1000)
    cpus: int = Field(default=0, ge=0, le=10_000)
    memory: Size = 0
    min: int = Field(default=0, ge=0, le=100_000)
    max: int = Field(default=0, ge=0, le=100_000)
    idle_timeout: Duration = 600.0

    @model_validator(mode="after")
    def _is_a_range(self) -> NodeTypeSpec:
        if self.max < self.min:
            raise WrongAt(f"below min ({self.min})", "max")
        return self


class QuotaSpec(Section):
    """In GPUs; a limit that is absent is none."""

    nominal: _Amount = 0.0
    borrowing_limit: _Amount | None = None
    lending_limit: _Amount | None = None

    @model_validator(mode="after")
    def _lends_what_it_has(self) -> QuotaSpec:
        if self.lending_limit is not None and self.lending_limit > self.nominal:
            raise WrongAt(f"above nominal ({self.nominal:g})", "lending_limit")
        return self


class CohortSpec(Section):
    name: Name
    parent: Name | None = None
    quota: dict[FlavorName, QuotaSpec] = {}
    weight: float = Field(default=1.0, ge=0)


class Rules(Section):
    within_queue: Literal["never", "lower_priority", "lower_or_newer_equal_priority", "by_rank"] = "never"
    reclaim: Literal["never", "lower_priority", "equal_or_lower_priority", "any"] = "never"
    while_borrowing: Literal["never", "lower_priority"] = "never"
    while_borrowing_max_victim_priority: int | None = Field(default=None, ge=0, le=100)


class Roles(Section):
    """Users, or "*" for everyone. Nobody named at all: whoever may submit may submit here; else only who is named."""

    viewer: list[Text] = []
    submitter: list[Text] = []
    admin: list[Text] = []


_Knob = bool | int | float | Text
_Knobs = dict[Label, _Knob | list[_Knob]]


class PolicyOptionsSpec(Section):
    """What the chosen policy of a family lets one say; each has a schema of its own (policy_options.py)."""

    ordering: _Knobs = {}
    placement: _Knobs = {}
    preemption: _Knobs = {}
    elasticity: _Knobs = {}
    autoscaling: _Knobs = {}


class QueueSpec(Section):
    name: Name
    cohort: Name | None = None
    quota: dict[FlavorName, QuotaSpec] = {}
    weight: float = Field(default=1.0, ge=0)
    overquota_weight: float | None = Field(default=None, ge=0)
    preemption: Rules | None = None
    evictable: Literal["yes", "prefer_not", "no"] = "yes"
    roles: Roles = Field(default_factory=Roles)
    policy_options: PolicyOptionsSpec = Field(default_factory=PolicyOptionsSpec)  # over those of `policies.options`


class ReservationSpec(Section):
    """GPUs of a flavor, or whole nodes, for a queue, for users, or (with neither) for maintenance."""

    name: Name
    start: Stamp
    duration: Annotated[Duration, Field(gt=0)]
    queue: Name | None = None
    users: list[Text] = []
    accelerators: str | None = None
    nodes: list[Text] = []
    repeat: Cron | None = None

    @model_validator(mode="after")
    def _reserves_something(self) -> ReservationSpec:
        if bool(self.accelerators) == bool(self.nodes):
            raise ValueError('expected exactly one of "accelerators" and "nodes"')
        if self.accelerators:
            try:
                parse_accelerator(self.accelerators)
            except ValueError as error:
                raise WrongAt(str(error), "accelerators") from None
        return self


class SchedulingSpec(Section):
    order: Literal["priority", "strict_fifo", "best_effort"] = "priority"
    fifo_scope: Literal["per_queue", "per_flavor"] = "per_queue"
    backfill: Literal["off", "easy", "conservative"] = "off"
    hold_after: Duration = _CORE.scheduling.hold_after_s
    quantum: Duration = 0.0
    preemption: Rules = Field(default_factory=Rules)
    preemption_delay_s: float = Field(default=0.0, ge=0)
    reclaim_min_runtime_s: float = Field(default=0.0, ge=0)
    stale_gang_grace_s: float = Field(default=0.0, ge=0)
    fair_share: Literal["weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"] | None = None
    fair_preempt_rule: Literal["preemptor_final_le_victim_final", "preemptor_final_lt_victim_initial"] | None = None
    preempt_to_fair_share: bool = False
    protected_fraction: float = Field(default=0.0, ge=0, le=1)
    drf_resources: list[Label] = list(_CORE.scheduling.drf_resources)
    # past use is counted once a half-life, a long one 16 times, and stands still between: core/past_use.py
    usage_half_life_s: float = Field(default=0.0, ge=0)
    usage_k: float = Field(default=0.0, ge=0)
    usage_window_s: float = Field(default=0.0, ge=0)
    elastic: bool = True
    consolidation: bool = False
    migration: bool = True
    time_resolution_s: float = Field(default=1.0, gt=0)
    restart_cost_s: float = Field(default=_CORE.scheduling.restart_cost_s, ge=0)


_POLICY = PolicyNames()


class PoliciesSpec(Section):
    """Names of plugins; the registry knows which there are."""

    ordering: Label = _POLICY.ordering
    placement: Label = _POLICY.placement
    preemption: Label = _POLICY.preemption
    elasticity: Label = _POLICY.elasticity
    autoscaling: Label = _POLICY.autoscaling
    options: PolicyOptionsSpec = Field(default_factory=PolicyOptionsSpec)


class Limits(Section):
    max_pending_per_queue: int = Field(default=_CORE.max_pending_per_queue, ge=1, le=1_000_000)
    max_workers: int = Field(default=_CORE.max_workers, ge=1, le=100_000)
    max_replicas: int = Field(default=_CORE.max_replicas, ge=1, le=100_000)
    max_gangs_per_user: int = Field(default=_CORE.max_gangs_per_user, ge=1, le=1_000_000)
    max_spec_bytes_per_user: int = Field(default=_CORE.max_spec_bytes_per_user, ge=1 << 20, le=1 << 40)
    requests_per_s: float = Field(default=_CORE.requests_per_s, ge=1, le=100_000)
    requests_burst: int = Field(default=_CORE.requests_burst, ge=1, le=1_000_000)
    excess: Literal["warn", "end"] = "end"
    excess_after_s: float = Field(default=_CORE.excess_after_s, ge=0, le=86_400)
    over_memory: Literal["off", "warn", "end"] = "end"
    notify_hosts: list[HostName] = Field(default=[], max_length=1000)


_KEPT = _CORE.kept
_LONG = Annotated[Duration, Field(ge=3600)]


class HistorySpec(Section):
    """How long what is over is kept; null: for ever. Without its journal what ended is known, but has no story."""

    journal: _LONG | None = _KEPT.journal_s
    ended: _LONG | None = _KEPT.ended_s
    idempotency: _LONG = _KEPT.idempotency_s


class ClusterSpec(Section):
    storage: Storage | None = None
    flavors: list[FlavorSpec] = Field(default=[], max_length=1000)
    node_types: list[NodeTypeSpec] = Field(default=[], max_length=1000)
    price_ceiling_per_hour: float | None = Field(default=None, ge=0)
    cohorts: list[CohortSpec] = Field(default=[], max_length=10_000)
    queues: list[QueueSpec] = Field(default=[], max_length=10_000)
    reservations: list[ReservationSpec] = Field(default=[], max_length=10_000)
    scheduling: SchedulingSpec = Field(default_factory=SchedulingSpec)
    policies: PoliciesSpec = Field(default_factory=PoliciesSpec)
    limits: Limits = Field(default_factory=Limits)
    history: HistorySpec = Field(default_factory=HistorySpec)

    @model_validator(mode="after")
    def _holds_together(self) -> ClusterSpec:
        for section in ("flavors", "node_types", "cohorts", "queues", "reservations"):
            seen: set[str] = set()
            for index, each in enumerate(getattr(self, section)):
                if each.name in seen:
                    raise WrongAt(f'the name "{each.name}" stands here twice', section, index, "name")
                seen.add(each.name)
        cohorts = {each.name: each.parent for each in self.cohorts}
        for index, cohort in enumerate(self.cohorts):
            self._known("cohort", cohort.parent, list(cohorts), "cohorts", index, "parent")
        for index, cohort in enumerate(self.cohorts):
            above: str | None = cohort.parent
            for _ in self.cohorts:
                above = cohorts.get(above) if above else None
            if above:
                raise WrongAt("the cohorts form a ring", "cohorts", index, "parent")
        for index, queue in enumerate(self.queues):
            self._known("cohort", queue.cohort, list(cohorts), "queues", index, "cohort")
        queues = [*(each.name for each in self.queues), "default"]
        for index, reservation in enumerate(self.reservations):
            self._known("queue", reservation.queue, queues, "reservations", index, "queue")
        flavors = [each.name for each in self.flavors]
        for index, node_type in enumerate(self.node_types):
            self._known("flavor", node_type.flavor, flavors, "node_types", index, "flavor")
        return self

    @staticmethod
    def _known(noun: str, name: str | None, names: list[str], *path: str | int) -> None:
        if name is not None and name not in names:
            close = validation.nearest(name, names)
            raise WrongAt(f'there is no {noun} "{name}"' + (f'; did you mean "{close}"?' if close else ""), *path)


def load(text: str | bytes, filename: str = "llmsched.yaml") -> ClusterSpec:
    """The cluster file. An empty one is the default configuration. Raises SpecError with every problem."""
    parsed, problems = documents.parse(text, filename)
    if len(parsed) > 1:
        problems.append(Problem(parsed[1].where(()), "a cluster file has one document", "Delete the others."))
    if not parsed and not problems:
        return ClusterSpec()
    return _checked(parsed[0] if parsed else Document({}, filename), problems)


def load_json(data: Any, where: str = "$") -> ClusterSpec:
    """The same from JSON data, such as `spec.dump()`."""
    document, problems = documents.from_json(data, where)
    return _checked(document, problems)


def load_reservation(data: Any, where: str = "$") -> ReservationSpec:
    """One entry of `reservations`, as JSON data. Whether its queue exists is not looked at."""
    document, problems = documents.from_json(data, where)
    if problems:
        raise SpecError.of(problems)
    spec, problems = validation.validate(ReservationSpec, "a reservation", document)
    table = {"nodes": support.CLUSTER["reservations.*.nodes"]}
    problems = validation.in_order(problems, support.not_yet("", document, table))
    if problems:
        raise SpecError.of(problems)
    assert isinstance(spec, ReservationSpec)
    return spec


def _checked(document: Document, problems: list[Problem]) -> ClusterSpec:
    if problems:
        raise SpecError.of(problems)
    spec, problems = validation.validate(ClusterSpec, "a cluster file", document)
    problems = validation.in_order(problems, support.not_yet("", document, support.CLUSTER))
    if not problems:
        problems = policy_options.check(spec, document)
    if problems:
        raise SpecError.of(problems)
    assert isinstance(spec, ClusterSpec)
    return spec
