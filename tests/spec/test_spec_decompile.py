"""core -> cluster file: nothing of what was written is lost on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.core.configuration import Configuration, Reservation
from llmsched.spec import cluster
from llmsched.spec.compile import compile_configuration
from llmsched.spec.decompile import cluster_file_of

ROOT = Path(__file__).parents[2]
EVERYTHING = """
storage: s3://team/llmsched
price_ceiling_per_hour: 60
flavors: [{name: A100, labels: {ray.io/accelerator-type: A100}, price_per_gpu_hour: 1.1}]
node_types: [{name: p4d, flavor: A100, gpus: 8, cpus: 96, memory: 1TB, min: 1, max: 4, idle_timeout: 5m}]
cohorts:
  - {name: company}
  - {name: team, parent: company, weight: 2, quota: {A100: {nominal: 4, borrowing_limit: 1, lending_limit: 2.5}}}
queues:
  - name: lab
    cohort: team
    quota: {A100: {nominal: 1.5, borrowing_limit: 8, lending_limit: 0}, "*": {nominal: 2}}
    weight: 3
    overquota_weight: 0.5
    preemption:
      {within_queue: by_rank, reclaim: any, while_borrowing: lower_priority, while_borrowing_max_victim_priority: 7}
    evictable: prefer_not
    roles: {viewer: ["*"], submitter: [ann], admin: [bob]}
    policy_options: {ordering: {half_life: 3600}}
reservations:
  - name: week
    start: 2030-01-31T08:00Z
    duration: 5d
    queue: lab
    users: [ann]
    accelerators: "A100:16"
    repeat: "0 8 * * 1"
scheduling:
  order: best_effort
  fifo_scope: per_flavor
  backfill: easy
  hold_after: 10m
  quantum: 120s
  preemption:
    within_queue: lower_priority
    reclaim: any
    while_borrowing: lower_priority
    while_borrowing_max_victim_priority: 3
  preemption_delay_s: 1
  reclaim_min_runtime_s: 2
  stale_gang_grace_s: 3
  fair_share: drf_total
  fair_preempt_rule: preemptor_final_le_victim_final
  preempt_to_fair_share: true
  protected_fraction: 0.5
  drf_resources: [gpu, cpu]
  usage_half_life_s: 4
  usage_k: 5
  usage_window_s: 6
  elastic: false
  consolidation: true
  migration: false
  time_resolution_s: 7
  restart_cost_s: 8
policies: {ordering: fair_share, placement: spread, preemption: newest, elasticity: equal, autoscaling: none}
limits:
  max_pending_per_queue: 1
  max_workers: 2
  max_replicas: 3
  max_gangs_per_user: 4
  max_spec_bytes_per_user: 2000000
  requests_per_s: 5
  requests_burst: 6
  excess: warn
  excess_after_s: 7
  over_memory: warn
  notify_hosts: [chat.internal]
history: {journal: 2h, ended: 3h, idempotency: 4h}
"""


def left_as_they_are(spec: Any, way: str = "") -> Iterator[str]:
    """Fields of the sections of a spec that have their defaults, each section counted where it stands first."""
    for name, field in type(spec).model_fields.items():
        value, at = getattr(spec, name), f"{way}{name}"
        first = value[-1] if isinstance(value, list) and value else value
        first = next(iter(first.values())) if isinstance(first, dict) and first else first
        if hasattr(type(first), "model_fields"):
            yield from left_as_they_are(first, f"{at}.")
        elif not field.is_required() and value == field.get_default(call_default_factory=True):
            yield at


@pytest.mark.parametrize("file", ["tests/spec/promised_cluster.yaml", "cluster/llmsched.yaml"])
def test_a_file_comes_back_as_the_configuration_that_it_is(file: str) -> None:
    wanted = compile_configuration(cluster.load((ROOT / file).read_text()), 3)
    assert compile_configuration(cluster_file_of(wanted), 3) == wanted


def test_every_field_comes_back() -> None:
    """A field that is new stands in EVERYTHING with another value than its default, or this fails."""
    spec = cluster.ClusterSpec.model_validate(yaml.safe_load(EVERYTHING))
    unsaid = set(left_as_they_are(spec))
    assert unsaid <= {"reservations.nodes"} | {one for one in unsaid if "options." in one}
    wanted = compile_configuration(spec, 3)
    assert compile_configuration(cluster_file_of(wanted), 3) == wanted


def test_the_default_is_the_default_and_reservations_by_command_are_of_no_file() -> None:
    assert compile_configuration(cluster_file_of(Configuration()), 0) == Configuration()
    made = Reservation("now", 1.0, 2.0, flavor="A100", gpus_milli=1000, by="ann")
    assert cluster_file_of(replace(Configuration(), reservations=(made,))).reservations == []
