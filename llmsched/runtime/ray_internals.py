"""Every use that code inside Ray makes of what Ray does not promise to keep: Train's second version,
and the tables of actors and placement groups with those who made them.

One file, so that a new Ray is one place to look at; `tests/runtime/test_ray_internals.py` fails when one of these is
not as it was. The bridge's side has a file of the same name.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state as global_state
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from llmsched.runtime.ownership import Actor, Group, Tables

__all__ = [
    "TORCH",
    "TRAIN_CONTROLLER",
    "DataParallelTrainer",
    "TrainingFailedError",
    "Watch",
    "is_death",
    "is_no_capacity",
    "kill",
    "tables",
]

TORCH = TrainingFramework.TORCH
TRAIN_CONTROLLER = "TrainController"  # the class of the actor that runs a fit


class Watch(ControllerCallback):  # type: ignore[misc]
    """Tells the supervisor who controls the run: Ray Train says it to nobody else. Runs in Train's controller."""

    def __init__(self, supervisor: str, namespace: str) -> None:
        self._name, self._namespace = supervisor, namespace

    def after_controller_start(self, train_run_context: Any) -> None:
        here = ray.get_runtime_context().current_actor
        supervisor = ray.get_actor(self._name, namespace=self._namespace)
        ray.get(supervisor.controlled_by.remote(here))


def is_no_capacity(error: BaseException) -> bool:
    """Whether Ray Train gave up because Ray did not place its workers."""
    return type(error).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError")


def is_death(error: BaseException) -> bool:
    """Whether what befell a worker of Ray Train is that its process is gone."""
    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, ray.exceptions.RayActorError) or "died" in type(cause).__name__.lower()


def kill(actor_id: str) -> None:
    """End an actor of which there is no handle here; `ray.kill` wants one."""
    ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor_id)), True)


def tables() -> Tables:
    """What Ray knows of actors and placement groups, from whatever process is joined to it. Raises what Ray raises."""
    accessor = global_state._connect_and_get_accessor()
    groups = []
    for data in accessor.get_placement_group_table():
        found = gcs_pb2.PlacementGroupTableData.FromString(data)
        if found.state != gcs_pb2.PlacementGroupTableData.REMOVED:
            groups.append(Group(found.placement_group_id.hex(), found.creator_actor_id.hex(), found.is_detached))
    dead = (gcs_pb2.ActorTableData.DEAD,)
    actors = {}
    for data in accessor.get_actor_table(None, None):
        one = gcs_pb2.ActorTableData.FromString(data)
        actor = Actor(
            id=one.actor_id.hex(),
            worker=one.address.worker_id.hex(),
            owner=one.owner_address.worker_id.hex(),
            name=one.name,
            namespace=one.ray_namespace,
            class_name=one.class_name,
            is_alive=one.state not in dead,
        )
        actors[actor.id] = actor
    return Tables(actors, tuple(groups))
