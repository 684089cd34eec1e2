"""What the operator decided: queues, cohorts, quotas, reservations, flavors, knobs. Records only.

`spec/cluster.py` reads them from `llmsched.yaml`; the fact `Configured` brings a new version into the state.
An absent limit (None) is unlimited for `borrowing_limit`/`lending_limit`; an absent switch is "never", off or 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Quota(NamedTuple):
    """Of one flavor, in thousandths of a GPU. Kueue's senses of the words."""

    nominal_milli: int = 0
    borrowing_limit_milli: int | None = None
    lending_limit_milli: int | None = None


class PreemptionRules(NamedTuple):
    """Three independent settings, and their guards."""

    within_queue: str = "never"  # never | lower_priority | lower_or_newer_equal_priority | by_rank
    reclaim: str = "never"  # never | lower_priority | equal_or_lower_priority | any
    while_borrowing: str = "never"  # never | lower_priority
    while_borrowing_max_victim_priority: int | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    cohort: str | None = None
    quotas: tuple[
        tuple[str, Quota], ...
    ] = ()  # (flavor, quota); "*" stands for every flavor; () : no quota, all may be used
    weight: float = 1.0
    overquota_weight: float | None = None
    preemption: PreemptionRules | None = None  # None: the cluster's
    evictable: str = "yes"  # yes | prefer_not | no
    submitters: tuple[str, ...] = ()  # users, "*": everyone; what each role is worth: authorization.py
    admins: tuple[str, ...] = ()
    viewers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cohort:
    name: str
    parent: str | None = None
    quotas: tuple[tuple[str, Quota], ...] = ()
    weight: float = 1.0  # beside its siblings, where shares are compared


@dataclass(frozen=True, slots=True)
class Reservation:
    """GPUs of a flavor (or whole nodes) for a window [start, start + duration_s), for a queue, users or maintenance."""

    name: str
    start: float
    duration_s: float
    queue: str | None = None
    users: tuple[str, ...] = ()
    flavor: str | None = None
    gpus_milli: int = 0
    nodes: tuple[str, ...] = ()
    repeat: str | None = None  # cron
    by: str = ""  # who made it by command; "": it stands in the cluster file


class Taken(NamedTuple):
    """The GPUs that a reservation of so many takes: see reserved.py."""

    gpus_milli: int  # that it asks for,
    flavor: str | None  # and of which flavor
    parts: tuple[tuple[str, int], ...]  # (node, whole GPUs of it)
    closed: tuple[str, ...] = ()  # nodes that it takes wholly, as it finds too little: what stays there of others

    def is_for(self, reservation: Reservation) -> bool:
        return (self.gpus_milli, self.flavor) == (reservation.gpus_milli, reservation.flavor)


class Flavor(NamedTuple):
    name: str
    labels: tuple[tuple[str, str], ...] = ()
    price_per_gpu_hour: float = 0.0


class NodeType(NamedTuple):
    name: str
    flavor: str | None = None
    gpus: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    min: int = 0
    max: int = 0
    idle_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Knobs; the words of scenarios.yaml's `policy`."""

    order: str = "priority"  # priority | strict_fifo | best_effort
    fifo_scope: str = "per_queue"  # per_queue | per_flavor
    backfill: str = "off"  # off | easy | conservative
    hold_after_s: float = 1800.0  # who has waited so long is planned for: nobody may delay it any more. 0: off. Who
    # has room at each end waits for ten times its run time, if that is known and more, as the order decides there.
    # By rank: who has waited twice as long comes first for a part of the GPUs, see lane.py
    quantum_s: float = 0.0
    preemption: PreemptionRules = PreemptionRules()
    preemption_delay_s: float = 0.0
    reclaim_min_runtime_s: float = 0.0
    stale_gang_grace_s: float = 0.0  # 0: off
    fair_share: str | None = None  # weighted_drf_over_borrowed | drf_total | guarantee_then_weight
    fair_preempt_rule: str | None = None
    preempt_to_fair_share: bool = False
    protected_fraction: float = 0.0
    drf_resources: tuple[str, ...] = ("gpu",)
    usage_half_life_s: float = 0.0
    usage_k: float = 0.0
    usage_window_s: float = 0.0
    elastic: bool = True
    consolidation: bool = False
    migration: bool = True  # running work may move to a faster flavor that is free
    time_resolution_s: float = 1.0
    restart_cost_s: float = 30.0  # what a start or a resize is thought to cost


class PolicyOptions(NamedTuple):
    """Options of the chosen policy of a family, as canonical JSON: the policy's own schema says what they mean."""

    family: str
    values: str
    queue: str = ""  # of the work in that queue alone; "": of all


class PolicyNames(NamedTuple):
    ordering: str = "finish_time_fair"  # priority first, then the tiers measured best: tests/benchmarks/quality.py
    placement: str = "pack"
    preemption: str = "cheapest"
    elasticity: str = "goodput"
    autoscaling: str = "ongoing_requests"
    options: tuple[PolicyOptions, ...] = ()


class Kept(NamedTuple):
    """How long what is over is kept, in seconds; None: for ever."""

    journal_s: float | None = 90 * 86_400.0
    ended_s: float | None = None  # workloads
    idempotency_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """One version of the whole file. The default: one queue `default` that may use everything."""

    version: int = 0
    queues: tuple[Queue, ...] = (Queue("default"),)
    cohorts: tuple[Cohort, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    flavors: tuple[Flavor, ...] = ()
    node_types: tuple[NodeType, ...] = ()
    scheduling: Scheduling = Scheduling()
    policies: PolicyNames = PolicyNames()
    price_ceiling_per_hour: float | None = None
    max_pending_per_queue: int = 10_000
    max_workers: int = 4_096  # of one gang
    max_replicas: int = 1_000  # of one workload
    max_gangs_per_user: int = 5_000  # in workloads that have not ended: less than a queue holds
    max_spec_bytes_per_user: int = 64 << 20  # of those workloads: the controller keeps them in memory
    requests_per_s: float = 50.0  # of one token, by the API
    requests_burst: int = 200
    excess: str = "end"  # warn | end: what an attempt takes beyond its gang, told at once, ended after
    excess_after_s: float = 30.0
    over_memory: str = "end"  # off | warn | end: an attempt that uses more memory than it asked for
    notify_hosts: tuple[str, ...] = ()  # on private addresses, to which webhooks may go all the same
    storage: str = ""
    kept: Kept = Kept()
