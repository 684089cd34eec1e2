"""A small world on real Ray, and in the wind tunnel: the same starts, the same eviction, the same completion times."""

from __future__ import annotations

import on_ray
import pytest
from small_worlds import World

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

EVICTS = World(
    "1x2:A100",
    "a,0,2,60,10\nb,40,2,10,80\nc,42,1,10,20\n",
    "queues: [{name: default}]\nscheduling: {preemption: {within_queue: lower_priority}}",
)
SECOND = 0.1  # seconds on Ray for one of the world


def test_who_is_evicted_on_real_ray_starts_and_ends_when_the_simulator_says() -> None:
    with on_ray.cluster(EVICTS.nodes) as ray:
        live, seen = ray.play(EVICTS, "w", SECOND)
    assert (live.evictions, [len(seen[name].attempts) for name in "abc"]) == (1, [2, 1, 1])
    assert on_ray.compared(live, seen, EVICTS, SECOND)[0] == []
