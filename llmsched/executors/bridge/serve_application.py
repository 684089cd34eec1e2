"""A launch order as the one Ray Serve application of its replica: what it runs, where, with what."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ray import serve

from llmsched.executors.bridge.replica import LAST_S
from llmsched.executors.port import LaunchOrder, Member
from llmsched.gateway.app import DEPLOYMENT
from llmsched.runtime.containment import envs_of
from llmsched.runtime.replica import ReplicaHost

QUIET = {"enable_access_log": False}
ROOM_FOR_OUR_CALLS = 8


def application_of(order: LaunchOrder, mark: str, started_by: str = "") -> serve.Application:
    """`mark` says in the replica's environment whose it is; `started_by`: with what Ray starts its worker."""
    first = order.members[0]
    placing: dict[str, Any] = {"ray_actor_options": _actor_options(first)}
    placing["ray_actor_options"]["runtime_env"] = {"env_vars": envs_of(mark)}
    if started_by:
        placing["ray_actor_options"]["runtime_env"]["py_executable"] = started_by
    if len(order.members) > 1:  # one bundle a member; the replica sits in the first and its helpers in the others
        placing["placement_group_bundles"] = [_bundle(one) for one in order.members]
        placing["placement_group_bundle_label_selector"] = [_pin(one) for one in order.members]
        placing["ray_actor_options"].pop("label_selector")
    deployment = serve.deployment(ReplicaHost).options(
        name=DEPLOYMENT,
        num_replicas=1,
        # The gateway keeps to the spec's number; the rest is for our own calls.
        max_ongoing_requests=int(order.spec.get("max_ongoing_requests") or 32) + ROOM_FOR_OUR_CALLS,
        graceful_shutdown_timeout_s=min(float(order.spec.get("drain_timeout") or order.grace_s), LAST_S),
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=1,  # trying again is the scheduler's
        health_check_period_s=5,
        logging_config=QUIET,
        **placing,
    )
    return deployment.bind(json.dumps(asdict(order)))


def _actor_options(member: Member) -> dict[str, Any]:
    return {
        "num_gpus": member.gpus,
        "num_cpus": member.cpus,
        "memory": member.memory_bytes or None,
        "resources": dict(member.custom),
        "label_selector": _pin(member),
    }


def _bundle(member: Member) -> dict[str, float]:
    need = {"GPU": member.gpus, "CPU": member.cpus, "memory": float(member.memory_bytes), **member.custom}
    return {name: amount for name, amount in need.items() if amount} or {"CPU": 0.001}


def _pin(member: Member) -> dict[str, str]:
    return {"ray.io/node-id": member.node}
