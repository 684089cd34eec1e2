"""What users wrote -> what the core decides on: the only bridge between the two worlds. Pure; the models are valid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llmsched.core import configuration as core
from llmsched.core import workload as nouns
from llmsched.core.resources import Resources, parse_gpus_milli
from llmsched.spec import policy_options
from llmsched.spec.cluster import ClusterSpec, QueueSpec, QuotaSpec, ReservationSpec, Rules
from llmsched.spec.parcel import parcel_of
from llmsched.spec.quantities import Range, parse_accelerator
from llmsched.spec.serve import FIRST_GROUP, ServeSpec
from llmsched.spec.train import TrainSpec, runs_read
from llmsched.spec.tune import TuneSpec
from llmsched.spec.workload import Amounts, FiniteSpec, Placement, Publish, TopologySpec, WorkloadSpec
from llmsched.spec.workload import Resources as ResourcesSpec

SEARCH_CPUS = 0.1  # of the member that asks for trials: a hundred of them hold up nobody


class Compiled(NamedTuple):
    """A spec, and what the core decides on. Made once, where the spec comes in."""

    spec: WorkloadSpec
    workload: nouns.Workload


def compile_specs(specs: Iterable[WorkloadSpec]) -> tuple[Compiled, ...]:
    return tuple(Compiled(spec, compile_workload(spec)) for spec in specs)


def compile_workload(spec: WorkloadSpec) -> nouns.Workload:
    """Run 1 of a spec, nobody's yet. What it reads with run:// is added to `after`. There "name" still means the newest
    run and "name@1" the first: control, which knows runs and users, makes ids of them."""
    written = spec
    if isinstance(spec, TuneSpec):
        spec = _search(spec)
    serve = spec if isinstance(spec, ServeSpec) else None
    finite = spec if isinstance(spec, FiniteSpec) else None
    groups = [nouns.Group(FIRST_GROUP, finite.workers.min if finite else 1, _options(spec.resources))]
    for each in finite.groups if finite else ():
        groups.append(nouns.Group(each.name, each.count, _options(each.resources), _topology(each.topology)))
    for name, deployment in serve.serve.deployments.items() if serve else ():
        groups.append(nouns.Group(name, deployment.replicas, _options(deployment)))
    return nouns.Workload(
        id=spec.name,
        name=spec.name,
        kind=spec.kind,
        groups=tuple(groups),
        queue=spec.queue,
        model=_model(spec),
        steps=_steps(spec),
        priority=spec.priority,
        min_size=finite.workers.min if finite else 1,
        max_size=finite.workers.max if finite else 1,
        step=finite.workers.step if finite else 1,
        min_replicas=serve.replicas.min if serve else 1,
        max_replicas=serve.replicas.max if serve else 1,
        max_surge=serve.rollout.max_surge if serve else 1,
        packs=serve is not None and serve.replica_placement == "pack",
        autoscaling=_autoscaling(serve) if serve else None,
        slo=nouns.Slo(serve.slo.ttft_p95, serve.slo.tpot_p95, serve.slo.latency_p95) if serve and serve.slo else None,
        topology=_topology(spec.topology) or nouns.Topology(),
        labels=tuple(sorted(spec.labels.items())),
        node_labels=tuple(sorted(spec.placement.labels.items())),
        use_spot=spec.resources.use_spot,
        preemptible=spec.preemption.enabled,
        grace_s=serve.drain_timeout if serve else spec.preemption.grace,
        min_runtime_s=spec.preemption.min_runtime,
        max_runtime_s=finite.max_runtime if finite else None,
        estimated_runtime_s=finite.estimated_runtime if finite else None,
        saves_every_s=_saves_every_s(spec),
        deadline=finite.deadline if finite else None,
        after=tuple(_waits_for(spec)),
        schedule=finite.schedule.cron if finite and finite.schedule else None,
        overlap=finite.schedule.overlap if finite and finite.schedule else "skip",
        retry=nouns.Retry(tuple(spec.retry.on_events), spec.retry.max_restarts),
        budget_gpu_s=spec.budget.gpu_hours * 3600 if spec.budget else None,
        publish=_publish(spec.publish, spec.name) if isinstance(spec, TrainSpec) and spec.publish else None,
        parcel=parcel_of(written),
    )


def _search(spec: TuneSpec) -> TuneSpec:
    """With the needs of the one member that asks for the trials: it runs wherever there is a bit of a CPU."""
    needs: dict[str, Any] = {
        "resources": ResourcesSpec(cpus=SEARCH_CPUS),
        "workers": Range(min=1, max=1),
        "topology": TopologySpec(),
        "placement": Placement(),
        "groups": [],
        "estimated_runtime": None,
    }
    return spec.model_copy(update=needs)


def _model(spec: WorkloadSpec) -> str:
    """What makes run times alike: the model that is trained, else the workload by name, which may be run again."""
    return (spec.train.base_model if isinstance(spec, TrainSpec) else None) or spec.name


def _saves_every_s(spec: WorkloadSpec) -> float | None:
    """Where the loop is ours, so that it does so."""
    if not isinstance(spec, TrainSpec) or spec.train.base_model is None or spec.checkpoint.resume == "never":
        return None
    return spec.checkpoint.every


def _steps(spec: WorkloadSpec) -> float | None:
    """How many steps it makes, where it says so. Epochs become steps only when the data is read."""
    if not isinstance(spec, TrainSpec) or spec.train.base_model is None or spec.train.training_args.max_steps <= 0:
        return None
    return float(spec.train.training_args.max_steps)


def _options(wanted: Amounts) -> tuple[nouns.Option, ...]:
    """One option an accelerator, in order of preference; without any, one that fits on every node."""
    rest = Resources(
        cpus_milli=round(wanted.cpus * 1000),
        memory_bytes=wanted.memory,
        custom=tuple(sorted((name, round(amount * 1000)) for name, amount in wanted.custom.items())),
    )
    accelerators = [parse_accelerator(text) for text in wanted.accelerators]
    if not accelerators:
        if rest == Resources():  # a node without CPUs, as the head of a local Ray, runs nothing
            rest = rest._replace(cpus_milli=1)
        return (nouns.Option(None, rest),)
    return tuple(nouns.Option(each.flavor, rest._replace(gpus_milli=each.gpus_milli)) for each in accelerators)


def _topology(wish: TopologySpec | None) -> nouns.Topology | None:
    return nouns.Topology(wish.required, wish.preferred) if wish else None


def _autoscaling(spec: ServeSpec) -> nouns.Autoscaling | None:
    if spec.replicas.min == spec.replicas.max:
        return None
    wish = spec.autoscaling
    return nouns.Autoscaling(
        target_ongoing_requests=wish.target_ongoing_requests,
        upscale_delay_s=wish.upscale_delay_s,
        downscale_delay_s=wish.downscale_delay_s,
        downscale_to_zero_delay_s=wish.downscale_to_zero_delay_s,
        bounds=tuple((each.cron, each.min, each.max) for each in wish.bounds),
        most_ongoing=spec.max_ongoing_requests,
        forecast=wish.forecast,
        hold_s=spec.hold_timeout,
    )


def _publish(wish: Publish, name: str) -> nouns.Publish:
    return nouns.Publish(to=wish.to, kind=wish.as_, name=wish.name or name, when=wish.when)


def _waits_for(spec: WorkloadSpec) -> list[str]:
    sources = spec.sources()
    return list(dict.fromkeys([*spec.after, *(runs_read(sources) if sources else ())]))


def compile_configuration(spec: ClusterSpec, version: int) -> core.Configuration:
    """Version `version` of the configuration. Queue "default" always exists."""
    queues = [_queue(each) for each in spec.queues]
    if all(each.name != "default" for each in queues):
        queues.append(core.Queue("default"))
    knobs = spec.scheduling.model_dump(exclude={"preemption", "quantum", "hold_after", "drf_resources"})
    return core.Configuration(
        version=version,
        queues=tuple(queues),
        cohorts=tuple(core.Cohort(each.name, each.parent, _quotas(each.quota), each.weight) for each in spec.cohorts),
        reservations=tuple(compile_reservation(each) for each in spec.reservations),
        flavors=tuple(
            core.Flavor(each.name, tuple(sorted(each.labels.items())), each.price_per_gpu_hour) for each in spec.flavors
        ),
        node_types=tuple(
            core.NodeType(
                each.name, each.flavor, each.gpus, each.cpus, each.memory, each.min, each.max, each.idle_timeout
            )
            for each in spec.node_types
        ),
        scheduling=core.Scheduling(
            preemption=_rules(spec.scheduling.preemption),
            quantum_s=spec.scheduling.quantum,
            hold_after_s=spec.scheduling.hold_after,
            drf_resources=tuple(spec.scheduling.drf_resources),
            **knobs,
        ),
        policies=core.PolicyNames(
            **spec.policies.model_dump(exclude={"options"}), options=policy_options.compiled(spec)
        ),
        price_ceiling_per_hour=spec.price_ceiling_per_hour,
        **{**spec.limits.model_dump(), "notify_hosts": tuple(spec.limits.notify_hosts)},
        storage=spec.storage or "",
        kept=core.Kept(spec.history.journal, spec.history.ended, spec.history.idempotency),
    )


def compile_reservation(spec: ReservationSpec, by: str = "") -> core.Reservation:
    """`by`: who makes it by command."""
    gpus = parse_accelerator(spec.accelerators) if spec.accelerators else None
    return core.Reservation(
        name=spec.name,
        start=spec.start,
        duration_s=spec.duration,
        queue=spec.queue,
        users=tuple(spec.users),
        flavor=gpus.flavor if gpus else None,
        gpus_milli=gpus.gpus_milli if gpus else 0,
        nodes=tuple(spec.nodes),
        repeat=spec.repeat,
        by=by,
    )


def _queue(spec: QueueSpec) -> core.Queue:
    return core.Queue(
        name=spec.name,
        cohort=spec.cohort,
        quotas=_quotas(spec.quota),
        weight=spec.weight,
        overquota_weight=spec.overquota_weight,
        preemption=_rules(spec.preemption) if spec.preemption else None,
        evictable=spec.evictable,
        submitters=tuple(spec.roles.submitter),
        admins=tuple(spec.roles.admin),
        viewers=tuple(spec.roles.viewer),
    )


def _quotas(quotas: Mapping[str, QuotaSpec]) -> tuple[tuple[str, core.Quota], ...]:
    def milli(amount: float | None) -> int | None:
        return None if amount is None else parse_gpus_milli(amount)

    return tuple(
        (flavor, core.Quota(parse_gpus_milli(each.nominal), milli(each.borrowing_limit), milli(each.lending_limit)))
        for flavor, each in sorted(quotas.items())
    )


def _rules(rules: Rules) -> core.PreemptionRules:
    return core.PreemptionRules(**rules.model_dump())
