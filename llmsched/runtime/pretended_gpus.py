"""Ray programs on machines whose GPUs are only pretended: Ray Train computes on CPUs, and its workers meet by gloo.

Ray believes in the GPUs, so `ScalingConfig(use_gpu=True)` would ask for NCCL and CUDA there, and fail. `TorchTrainer`
names NCCL in the program's own process, so that nobody can tell here whether the program did; it can work for neither.
Who names another backend has it. What this changes of Ray Train is not promised:
`tests/runtime/test_ray_internals.py` fails when it is not as it was.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

from llmsched.runtime.after_import import after_import

_TRAIN, _DEVICES = "ray.train.torch.config", "ray.air._internal.device_manager"


def apply() -> None:
    """In a worker of such a node. Imports nothing: most workers never train."""
    after_import(_TRAIN, _meet_by_gloo)
    after_import(_DEVICES, _compute_on_cpus)


def _meet_by_gloo(train: ModuleType) -> None:
    on_start = train._TorchBackend.on_start

    def start(self: Any, worker_group: Any, backend_config: Any) -> None:
        if backend_config.backend in (None, "nccl"):
            backend_config = replace(backend_config, backend="gloo")
        on_start(self, worker_group, backend_config)

    train._TorchBackend.on_start = start


def _compute_on_cpus(devices: ModuleType) -> None:
    devices._torch_device_manager = devices.CPUTorchDeviceManager()  # type: ignore[attr-defined]
