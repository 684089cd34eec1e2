"""What a worker of a gang's own Ray does first of all: Ray calls `enter`, as a variable of its node says.

It must find its own Ray among all that run on this machine, as must what it starts: parts of Ray ask for "the Ray that
is there", and find none where there are several. And where GPUs are only pretended, Ray Train is told so.
"""

from __future__ import annotations

import os
from contextlib import suppress

import ray

from llmsched.runtime import environment, pretended_gpus
from llmsched.runtime.containment import FIRST

ENVS = {FIRST: f"{__name__}.enter"}


def enter() -> None:
    """Nobody is ended because it fails."""
    with suppress(Exception):
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        if not environment.has_accelerator():
            pretended_gpus.apply()
