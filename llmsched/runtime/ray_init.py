"""`ray.init` in the programs of a gang: one that says how large a new Ray is to be meets the gang's own, as it is.

Ray refuses such words once RAY_ADDRESS leads it to a Ray that is there, so a program that runs by hand would fail here.
They would also be of no effect: the spec says what the gang has. `in_programs/sitecustomize.py` calls `listen` where
Python starts. Knows no Ray until a program imports it. Start at `listen`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llmsched.runtime.after_import import after_import

ADDRESS = "RAY_ADDRESS"
_FOLDER = Path(__file__).parent / "in_programs"
_ANY = (None, "auto", "local")  # "local" would start one beside the gang's, of all that the machine has
# What Ray refuses where it joins (`tests/runtime/test_runtime_ray_init.py` asks it).
OF_A_NEW_RAY = (
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "_system_config",
    "_enable_object_reconstruction",
)  # fmt: skip


def in_programs(envs: Mapping[str, str]) -> dict[str, str]:
    """The same variables, with which Python programs hear of this file."""
    path = [str(_FOLDER), *filter(None, [envs.get("PYTHONPATH")])]
    return {**envs, "PYTHONPATH": os.pathsep.join(path)}


def listen() -> None:
    """Here, from now on, where the gang has a Ray."""
    if os.environ.get(ADDRESS):
        after_import("ray", _meet)


def _meet(ray: ModuleType) -> None:
    init = ray.init

    @functools.wraps(init)
    def meets(address: str | None = None, **given: Any) -> Any:
        if os.environ.get(ADDRESS) and address in _ANY:
            left_out = [f"{name}={value!r}" for name in OF_A_NEW_RAY if (value := given.pop(name, None)) is not None]
            if address == "local":
                address, left_out = None, ['address="local"', *left_out]
            if left_out:
                told = "this Ray has what resources of the spec give its gang"
                print(f"[llmsched] ray.init: {', '.join(left_out)} has no effect: {told}", file=sys.stderr, flush=True)
        return init(address, **given)

    ray.init = meets  # type: ignore[attr-defined]
