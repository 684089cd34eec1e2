"""A small world on real Ray, and in the wind tunnel: the same starts, the same eviction, the same completion times.

`python tests/sim/on_ray.py` plays ten.
"""

from __future__ import annotations

import pytest
from ray_home import PREEMPTION, SharedHome
from sim import on_ray
from small_worlds import FIFO, ONE, World

pytestmark = pytest.mark.ray

EVICTS = World(
    "a,0,2,60,10\nb,35,2,10,80\n",
    f"{ONE}\nscheduling: {{preemption: {{within_queue: lower_priority}}}}\n{FIFO}",
    nodes="1x2:A100",
)
SECOND = 0.1  # seconds on Ray for one of the world


def test_who_is_evicted_on_real_ray_starts_and_ends_when_the_simulator_says(shared: SharedHome) -> None:
    with shared.client() as client, on_ray.folder_of_work() as folder:
        live, seen = on_ray.Cluster(client, folder).play(EVICTS, "w", SECOND)
        client.configure(PREEMPTION / "cluster.yaml")
    assert (live.evictions, [name for name, _ in live.starts]) == (1, ["a", "b", "a"])
    assert on_ray.compared(live, seen, EVICTS, SECOND)[0] == []
