"""Who has room wherever anybody ends is outranked by the order alone, and is held for later; smaller work ends that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger import cluster
from test_starvation import HOLD_S, LASTS_S, gang_of, start_of, work

from llmsched.core.lane import PART
from llmsched.core.workload import Group, Option, Resources, Workload


@pytest.mark.parametrize("lasts_s", [100.0, 300.0])
def test_a_long_single_is_held_for_after_ten_times_its_run_time(lasts_s: float) -> None:
    """It fits wherever anybody ends: until then the order decides, and shorter ones go first."""
    given = cluster("1 node x 7").policies(ordering="shortest_remaining")
    told = {"estimated_runtime_s": LASTS_S}
    started = start_of(given, work("long", 1, estimated_runtime_s=lasts_s), told)
    patience = max(HOLD_S, lasts_s / PART)
    assert started is not None and 500.0 + patience <= started <= 500.0 + patience + LASTS_S + 1.0


@pytest.mark.parametrize(
    ("nodes", "group", "size"),
    [
        ("1 node x 14", Group("workers", 1, (Option(None, Resources(1000)),)), 2),
        ("7 nodes x 4", Group("workers", 1, (Option(None, Resources(4000, 60_000)),)), 1),
        ("7 nodes x 2", Group("workers", 1, (Option(None, Resources(1000, 20_000)),)), 2),
        ("1 node x 4 A, 1 node x 3 B", gang_of("A", "B"), 1),
    ],
)
def test_so_is_one_of_many_gangs_alike(nodes: str, group: Group, size: int) -> None:
    """Held for after the same time as who finds no room, all of them would begin as they came."""
    given = cluster(nodes).policies(ordering="shortest_remaining")
    short = Workload("s", "s", "task", (group,), min_size=size, max_size=size, estimated_runtime_s=LASTS_S)
    started = start_of(given, replace(short, id="long", name="long", estimated_runtime_s=300.0), short)
    assert started is not None and 3500.0 <= started <= 3500.0 + LASTS_S + 1.0


@pytest.mark.parametrize("smaller", [work("s", 1), Workload("s", "s", "task", (gang_of(None, gpus=2),)), work("s", 3)])
def test_a_gang_is_held_for_after_the_usual_time_while_smaller_ones_stream_by(smaller: Workload) -> None:
    """Whatever is known of its own run time."""
    given = cluster("1 node x 8").policies(ordering="shortest_remaining")
    started = start_of(given, work("long", 8, estimated_runtime_s=600.0), replace(smaller, estimated_runtime_s=LASTS_S))
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0
