"""What we use of Ray without its promise is still as it was. Fails when Ray changes, before a cluster does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import llmsched

ALLOWED = {
    "runtime/ray_internals.py",
    "executors/bridge/ray_internals.py",
}
INTERNAL = re.compile(r"(?:from|import)\s+ray\.\S*(?:\._|\bv2\b)|ray\._private|ray\._raylet|global_worker")


def test_nothing_else_uses_what_ray_does_not_promise() -> None:
    root = Path(llmsched.__file__).parent
    users = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if INTERNAL.search(path.read_text(encoding="utf-8"))
    }
    assert users <= ALLOWED, users - ALLOWED


def test_ray_train_calls_back_before_and_after_its_workers_start() -> None:
    from ray.train.v2._internal.execution import callback
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState

    from llmsched.runtime.ray_internals import TORCH, Watch

    started = inspect.signature(callback.ControllerCallback.after_controller_start).parameters
    assert list(started) == ["self", "train_run_context"]
    assert list(inspect.signature(callback.WorkerGroupCallback.after_worker_group_start).parameters)[1:] == [
        "worker_group"
    ]
    assert Watch.after_controller_start is not callback.ControllerCallback.after_controller_start
    assert "placement_group_handle" in WorkerGroupState.__annotations__
    assert TORCH.value == "torch"


@pytest.mark.parametrize("name", ["WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"])
def test_ray_train_names_want_of_room_as_we_know_it(name: str) -> None:
    from ray.train.v2._internal import exceptions

    from llmsched.runtime.ray_internals import is_no_capacity

    error = getattr(exceptions, name)
    assert issubclass(error, Exception)
    assert is_no_capacity(error.__new__(error))
