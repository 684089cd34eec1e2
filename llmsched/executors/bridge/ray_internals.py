"""Every use that the bridge makes of what Ray does not promise to keep.

One file, so that a new Ray is one place to look at; `tests/executors/test_bridge_on_ray.py` fails when one of these is
not as it was. The runtime's side has a file of the same name.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import ray
from ray._private.state import available_resources_per_node, state
from ray.core.generated import gcs_pb2

__all__ = [
    "Actor", "Group", "Job", "autoscaling_coordinator", "available_resources_per_node", "cluster_id", "draining_nodes",
    "tables",
]  # fmt: skip

TASKS_AT_MOST = 10_000


class Job(NamedTuple):
    """A driver, also one that has ended. `metadata` is what its `ray.init` was given, by us too."""

    id: str
    metadata: dict[str, str]
    pid: int = 0
    address: str = ""  # of its node
    is_over: bool = False


class Actor(NamedTuple):
    """An actor that has not ended for good. Ids in hex; `owner` is the worker that made it, `worker` its own."""

    id: str
    name: str
    namespace: str
    class_name: str
    job: str
    owner: str
    worker: str
    node: str
    group: str  # the placement group it runs in
    pid: int
    envs: dict[str, str]  # of its runtime environment, inherited from what made it
    resources: dict[str, float]  # that it holds there
    is_detached: bool = False
    module: str = ""  # where its class is defined


class Group(NamedTuple):
    """A placement group that has not been removed. `creator` is the actor that made it, "" for a driver."""

    id: str
    name: str
    job: str
    creator: str
    bundles: tuple[tuple[str, dict[str, float]], ...]  # (node, resources); no node while it is not placed
    envs: dict[str, str] = {}  # of the runtime environment of what made it, also when that has gone


class Task(NamedTuple):
    """A remote function that runs."""

    job: str
    node: str
    group: str
    envs: dict[str, str]
    resources: dict[str, float]


class Tables(NamedTuple):
    jobs: list[Job]
    actors: list[Actor]
    groups: list[Group]
    tasks: tuple[Task, ...] = ()  # where they were asked for: `running_tasks`


def tables() -> Tables:
    """Who has made what, as Ray's control store has it. The public state API knows neither owners nor creators."""
    accessor = state._connect_and_get_accessor()
    jobs = [gcs_pb2.JobTableData.FromString(row) for row in accessor.get_job_table()]
    actors = [gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(None, None)]
    groups = [gcs_pb2.PlacementGroupTableData.FromString(row) for row in accessor.get_placement_group_table()]
    makers = {one.actor_id: one for one in actors}
    return Tables(
        [
            Job(one.job_id.hex(), dict(one.config.metadata), one.driver_pid, one.driver_ip_address, one.is_dead)
            for one in jobs
        ],
        [_actor(one) for one in actors if one.state != gcs_pb2.ActorTableData.DEAD],
        [
            _group(one, makers.get(one.creator_actor_id))
            for one in groups
            if one.state != gcs_pb2.PlacementGroupTableData.REMOVED
        ],
    )


def running_tasks() -> tuple[Task, ...]:
    """Remote functions that run now. Asked of Ray's dashboard, by its public state API: not for every look."""
    from ray.util.state import list_tasks

    found = list_tasks(
        ray.get_runtime_context().gcs_address,  # without it, it would ask whatever Ray it finds
        filters=[("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")],
        limit=TASKS_AT_MOST,
        timeout=5,
        detail=True,
        raise_on_missing_output=False,
    )
    return tuple(
        Task(
            job=one.job_id,
            node=one.node_id or "",
            group=one.placement_group_id or "",
            envs=_envs_of((one.runtime_env_info or {}).get("serialized_runtime_env", "")),
            resources=dict(one.required_resources or {}),
        )
        for one in found
    )


def _envs_of(runtime_env: str) -> dict[str, str]:
    try:
        envs = json.loads(runtime_env or "{}").get("env_vars") or {}
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in envs.items()}


def _actor(row: Any) -> Actor:
    # What it asks for is taken as soon as a node has given it a worker, long before it answers.
    is_placed = row.state in (gcs_pb2.ActorTableData.ALIVE, gcs_pb2.ActorTableData.PENDING_CREATION)
    node = row.address.node_id.hex() if is_placed else ""
    node = "" if node.strip("f") == "" else node
    return Actor(
        id=row.actor_id.hex(),
        name=row.name,
        namespace=row.ray_namespace,
        class_name=row.class_name,
        job=row.job_id.hex(),
        owner=row.owner_address.worker_id.hex(),
        worker=row.address.worker_id.hex(),
        node=node,
        group=row.placement_group_id.hex(),
        pid=row.pid,
        envs=_envs_of(row.serialized_runtime_env),
        resources=dict(row.required_resources) if node else {},
        is_detached=row.is_detached,
        module=row.function_descriptor.python_function_descriptor.module_name,
    )


def _group(row: Any, maker: Any) -> Group:
    return Group(
        id=row.placement_group_id.hex(),
        name=row.name,
        job=row.creator_job_id.hex(),
        creator=row.creator_actor_id.hex(),
        bundles=tuple((one.node_id.hex(), dict(one.unit_resources)) for one in row.bundles),
        envs=_envs_of(maker.serialized_runtime_env) if maker is not None else {},
    )


def draining_nodes() -> dict[str, float | None]:
    """The nodes that Ray will take away, by `ray drain-node`, its autoscaler or a notice of preemption, and when: a
    stamp in seconds, None where nobody said. The public state API has them as any other that is alive."""
    found: dict[str, int] = state.get_draining_nodes()
    return {node: milliseconds / 1000 if milliseconds else None for node, milliseconds in found.items()}


def cluster_id() -> str:
    """Of the cluster that this driver has joined, in hex."""
    return str(ray._private.worker.global_worker.node.cluster_id.hex())


def autoscaling_coordinator(requester: str) -> Any:
    """The client of the actor that merges the wishes of several requesters to Ray's autoscaler. Raises ImportError."""
    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator
    except ImportError:
        print(
            "this Ray has no AutoscalingCoordinator where 2.60 has it: llmsched cannot ask its autoscaler for nodes. "
            "Use a tested version (pip install 'ray~=2.60').",
            file=sys.stderr,
        )
        raise
    return DefaultAutoscalingCoordinator(requester_id=requester)


def deployers() -> dict[str, str]:
    """Serve application -> the job that deployed it. Asked of Serve by a worker of Ray's: what deployments are made of
    is their users', and nothing of it is unpickled here."""
    on_head = {"node:__internal_head__": 0.001}
    asked = ray.remote(num_cpus=0, resources=on_head, max_retries=0)(_deployers).remote()
    found: dict[str, str] = ray.get(asked, timeout=30)
    return found


def _deployers() -> dict[str, str]:
    from ray import serve

    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    known = ray.get(client._controller.list_deployments_internal.remote(), timeout=20)
    jobs = {str(one.app_name): info.deployer_job_id for one, (info, _) in known.items()}
    return {name: job if isinstance(job, str) else job.hex() for name, job in jobs.items()}
