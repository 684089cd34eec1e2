"""Answers about the trials of a search."""

from __future__ import annotations

from typing import Any

from llmsched.spec.http_models import ENDED, Phase, Reply


class TrialView(Reply):
    """A trial of a search. `value`: of the metric, the last one; `values`: what it has at each path of the space. Of a
    population: `goes_on_from` which trial's checkpoint it began, at step `goes_on_at`."""

    name: str  # t1, t2 ... in the order in which they were tried
    id: str
    phase: Phase
    values: dict[str, Any] = {}
    value: float | None = None
    step: float | None = None
    gpu_hours: float = 0.0
    message: str = ""
    goes_on_from: str | None = None
    goes_on_at: int | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED


class TrialTable(Reply):
    """Of a search: the best trial first; without a metric in the order of the points. `best`: the one whose result is
    that of the search, once there is one."""

    id: str
    phase: Phase
    metric: str | None = None
    mode: str = "min"
    total: int
    paths: list[str] = []
    best: str | None = None
    trials: list[TrialView] = []
