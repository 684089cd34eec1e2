"""Least attained service first (Tiresias), in levels, so that equals do not take turns: whoever has held fewer
GPU-hours goes first; inside a level age decides. Needs no run times."""

from __future__ import annotations

from typing import Any

from llmsched.core.policy import View
from llmsched.core.records import GangState

LEVELS_GPU_S = (3_600.0, 36_000.0, 360_000.0)  # ends of the first three levels; the last one is open


class LeastAttained:
    static = True  # a gang that waits attains nothing

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]:
        attained = view.attained_gpu_s(gang)
        return (sum(attained >= end for end in LEVELS_GPU_S),)
