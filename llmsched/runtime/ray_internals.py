"""Every use that code inside Ray makes of what Ray does not promise to keep: Train's second version, what stands behind
`ray.train` on a worker, and the tables of actors and placement groups with those who made them.

One file, so that a new Ray is one place to look at; `tests/runtime/test_ray_internals.py` fails when one of these is
not as it was. The bridge's side has a file of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray._private.state import state as global_state
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.train_fn_utils import DistributedTrainFnUtils as TrainApi
from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils as answer_with
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

__all__ = [
    "TORCH",
    "TRAIN_CONTROLLER",
    "DataParallelTrainer",
    "Trainer",
    "TrainApi",
    "TrainingFailedError",
    "Watch",
    "answer_with",
    "cause_of",
    "function_of",
    "is_death",
    "is_no_capacity",
    "kill",
    "made_by",
    "use_cpu",
]

TORCH = TrainingFramework.TORCH
TRAIN_CONTROLLER = "TrainController"  # the class of the actor that runs a fit


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's, without two processes that it starts beside each run and that an attempt has no use for: one hands
    out Ray's data sets, of which none is given here, and one frees the placement group of a controller that died, which
    `made_by` finds. Each takes seconds of a core until the first step, and 100 MB."""

    WITHOUT = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, self.WITHOUT)]


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


def cause_of(error: BaseException) -> BaseException:
    """What befell a worker, where Ray Train tells it as a failed check of its health."""
    return getattr(error, "health_check_failure", None) or error


def is_death(error: BaseException) -> bool:
    """Whether what befell a worker of Ray Train is that its process is gone: told by Ray itself, not by the work."""
    ours = (ray.exceptions.RayTaskError, ray.exceptions.UserCodeException)
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ours)


def function_of(trainer: DataParallelTrainer) -> Callable[[], Any]:
    """What a trainer would run on each of its workers, with its configuration, its arguments looked at."""
    run: Callable[[], Any] = trainer._get_train_func()
    return run


def use_cpu() -> None:
    """What `ray.train.torch` takes for the device of this process, where GPUs are only pretended."""
    from ray.air._internal import device_manager  # it imports torch, which supervisors and controllers lack

    device_manager._torch_device_manager = device_manager.CPUTorchDeviceManager()


def kill(actor_id: str) -> None:
    """End an actor of which there is no handle here; `ray.kill` wants one."""
    ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor_id)), True)


class Made(NamedTuple):
    """What a process has started through Ray Train and is there still: controllers and placement groups, ids in hex."""

    controllers: list[str]
    groups: list[str]


def made_by(worker: str) -> Made:
    """By the worker with this id in hex, whether anybody was told of it or not. Raises what Ray raises."""
    accessor = global_state._connect_and_get_accessor()
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    rows = [gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(job, None)]
    mine = [one for one in rows if one.class_name == TRAIN_CONTROLLER and one.owner_address.worker_id.hex() == worker]
    makers = {one.actor_id for one in mine}
    groups = [gcs_pb2.PlacementGroupTableData.FromString(row) for row in accessor.get_placement_group_table()]
    return Made(
        [one.actor_id.hex() for one in mine if one.state != gcs_pb2.ActorTableData.DEAD],
        [
            one.placement_group_id.hex()
            for one in groups
            if one.creator_actor_id in makers and one.state != gcs_pb2.PlacementGroupTableData.REMOVED
        ],
    )
