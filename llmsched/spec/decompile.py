"""core -> cluster file: the configuration in force as its operator would write it, to be read, changed and put in force
again. `compile_configuration` of what this makes is the same configuration."""

from __future__ import annotations

import json
from typing import Any

from llmsched.core import configuration as core
from llmsched.core.resources import MILLI
from llmsched.spec.cluster import ClusterSpec
from llmsched.spec.quantities import Accelerator

_OTHERWISE = {"cohorts", "flavors", "kept", "node_types", "policies", "queues", "reservations", "scheduling", "version"}
_PLAIN = [name for name in core.Configuration.__slots__ if name not in _OTHERWISE]
_TOP = ("price_ceiling_per_hour", "storage")


def cluster_file_of(configuration: core.Configuration) -> ClusterSpec:
    """Without reservations that were made by command, which are of no file."""
    plain = {name: getattr(configuration, name) for name in _PLAIN}
    top = {name: plain.pop(name) or None for name in _TOP}
    policies, kept = configuration.policies, configuration.kept
    return ClusterSpec.model_validate(
        {
            **top,
            "flavors": [_flavor(each) for each in configuration.flavors],
            "node_types": [_node_type(each) for each in configuration.node_types],
            "cohorts": [_cohort(each) for each in configuration.cohorts],
            "queues": [_queue(each, policies) for each in configuration.queues],
            "reservations": [_reservation(each) for each in configuration.reservations if not each.by],
            "scheduling": _scheduling(configuration.scheduling),
            "policies": {**policies._asdict(), "options": _options(policies, "")},
            "limits": {**plain, "notify_hosts": [*configuration.notify_hosts]},
            "history": {"journal": kept.journal_s, "ended": kept.ended_s, "idempotency": kept.idempotency_s},
        }
    )


def _flavor(flavor: core.Flavor) -> dict[str, Any]:
    return {**flavor._asdict(), "labels": dict(flavor.labels)}


def _node_type(node_type: core.NodeType) -> dict[str, Any]:
    plain = node_type._asdict()
    memory, idle = plain.pop("memory_bytes"), plain.pop("idle_timeout_s")
    return {**plain, "memory": memory, "idle_timeout": idle}


def _cohort(cohort: core.Cohort) -> dict[str, Any]:
    quota = _quota(cohort.quotas)
    return {"name": cohort.name, "parent": cohort.parent, "quota": quota, "weight": cohort.weight}


def _queue(queue: core.Queue, policies: core.PolicyNames) -> dict[str, Any]:
    return {
        "name": queue.name,
        "cohort": queue.cohort,
        "quota": _quota(queue.quotas),
        "weight": queue.weight,
        "overquota_weight": queue.overquota_weight,
        "preemption": queue.preemption._asdict() if queue.preemption else None,
        "evictable": queue.evictable,
        "roles": {"viewer": [*queue.viewers], "submitter": [*queue.submitters], "admin": [*queue.admins]},
        "policy_options": _options(policies, queue.name),
    }


def _quota(quotas: tuple[tuple[str, core.Quota], ...]) -> dict[str, Any]:
    return {
        flavor: {
            "nominal": _gpus(quota.nominal_milli),
            "borrowing_limit": _gpus(quota.borrowing_limit_milli),
            "lending_limit": _gpus(quota.lending_limit_milli),
        }
        for flavor, quota in quotas
    }


def _gpus(milli: int | None) -> float | None:
    return None if milli is None else milli / MILLI


def _reservation(reservation: core.Reservation) -> dict[str, Any]:
    flavor = reservation.flavor
    return {
        "name": reservation.name,
        "start": reservation.start,
        "duration": reservation.duration_s,
        "queue": reservation.queue,
        "users": [*reservation.users],
        "accelerators": str(Accelerator(flavor, reservation.gpus_milli)) if flavor is not None else None,
        "nodes": [*reservation.nodes],
        "repeat": reservation.repeat,
    }


def _scheduling(scheduling: core.Scheduling) -> dict[str, Any]:
    plain = {name: getattr(scheduling, name) for name in core.Scheduling.__slots__}
    durations = {name: plain.pop(f"{name}_s") for name in ("quantum", "hold_after")}
    resources = [*scheduling.drf_resources]
    return {**plain, **durations, "drf_resources": resources, "preemption": scheduling.preemption._asdict()}


def _options(policies: core.PolicyNames, queue: str) -> dict[str, Any]:
    return {each.family: json.loads(each.values) for each in policies.options if each.queue == queue}
