"""Tells the supervisor what Ray Train says to nobody else: who controls the run, which placement group it holds.

The only user of that internal seam of Ray Train, its controller and worker-group callbacks. Runs in Train's controller.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback


class Watch(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    def __init__(self, supervisor: str, namespace: str) -> None:
        self._name, self._namespace = supervisor, namespace

    def after_controller_start(self, train_run_context: Any) -> None:
        here = ray.get_runtime_context().current_actor
        ray.get(self._supervisor().controlled_by.remote(here))

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._supervisor().holds.remote(group.id.hex()))

    def _supervisor(self) -> Any:
        return ray.get_actor(self._name, namespace=self._namespace)
