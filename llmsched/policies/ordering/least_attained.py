"""Least attained service first (Tiresias), in levels, so that equals do not take turns: whoever has held fewer
GPU-hours goes first; inside a level age decides. Needs no run times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmsched.core.policy import GangView, Knobs, View

LEVELS_GPU_S = (3_600.0, 36_000.0, 360_000.0)  # ends of the first three levels; the last one is open


class LeastAttained:
    static = True  # a gang that waits attains nothing

    @dataclass(frozen=True)
    class Options:
        levels_gpu_s: tuple[float, ...] = LEVELS_GPU_S

        def __post_init__(self) -> None:
            if list(self.levels_gpu_s) != sorted(self.levels_gpu_s):
                raise ValueError("levels_gpu_s must rise")

    def __init__(self, options: Knobs[Options] | None = None) -> None:
        self._options = options or Knobs(self.Options())

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        attained = view.attained_gpu_s(gang)
        return (sum(attained >= end for end in self._options.of(gang.spec.queue).levels_gpu_s),)
