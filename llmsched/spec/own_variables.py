"""The variables that llmsched gives work itself, which no spec may set: said for all workers, they would be wrong for
most, lead to a neighbour's GPUs, or let two gangs meet."""

from __future__ import annotations

import re

# By these a process knows its place, as torchrun sets them; a command beside it gets them too.
MEETING = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
    *("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    *("PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_LOCAL_ADDR"),
)
# Of the makers of accelerators that Ray knows.
DEVICES = (
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("ONEAPI_DEVICE_SELECTOR", "ASCEND_RT_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES", "NEURON_RT_VISIBLE_CORES"),
    *("TPU_VISIBLE_CHIPS", "FURIOSA_VISIBLE_DEVICES", "RBLN_DEVICES", "METAX_VISIBLE_DEVICES"),
)
_NONE = ("", "-1", "none", "void")  # hides all, which leads to nobody else's
_OURS = re.compile(r"LLMSCHED_|RAY_AUTH_|RAY_ADDRESS$|RAY_JOB_CONFIG_JSON_ENV_VAR$")


def refusal(name: str, value: str | None = None) -> str:
    """Why a spec may not set it; "" when it may. `value` None: a secret, which nobody sees."""
    if _OURS.match(name):
        return f'"{name}" is set by llmsched itself'
    if name in MEETING:
        return f'"{name}" is set by llmsched itself, another one for each process; leave it out'
    if name in DEVICES and (value is None or value.strip().lower() not in _NONE):
        return (
            f'"{name}" is set by llmsched itself: work sees the accelerators that it was given, as many as '
            "resources.accelerators says; leave it out"
        )
    return ""
