"""Every use that code inside Ray makes of what Ray does not promise to keep: Ray Train's second version.

One file, so that a new Ray is one place to look at; `tests/runtime/test_ray_internals.py` fails when one of these is
not as it was. The bridge's side has a file of the same name.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

__all__ = ["TORCH", "DataParallelTrainer", "TrainingFailedError", "Watch", "is_no_capacity"]

TORCH = TrainingFramework.TORCH


class Watch(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Tells the supervisor what Ray Train says to nobody else: who controls the run, which placement group it holds.

    Runs in Train's controller."""

    def __init__(self, supervisor: str, namespace: str) -> None:
        self._name, self._namespace = supervisor, namespace

    def after_controller_start(self, train_run_context: Any) -> None:
        here = ray.get_runtime_context().current_actor
        ray.get(self._supervisor().controlled_by.remote(here))

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._supervisor().took.remote(group.id.hex()))

    def _supervisor(self) -> Any:
        return ray.get_actor(self._name, namespace=self._namespace)


def is_no_capacity(error: BaseException) -> bool:
    """Whether Ray Train gave up because Ray did not place its workers."""
    return type(error).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError")
