"""What a gang that waits is told it lacks, where its GPUs are free and something beside them is not."""

from __future__ import annotations

import pytest
from test_walk import POLICIES, turn

from llmsched.core import render
from llmsched.core.explain import Reason
from llmsched.core.facts import NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload

GB = 10**9
ALL = (("disk", 3000),)
NODE = Resources(2000, 8000, 2 * GB, ALL)


def work(name: str, need: Resources, size: int = 1) -> Workload:
    group = Group("workers", size, (Option("A100" if need.gpus_milli else None, need),))
    return Workload(name, name, "train", (group,), min_size=size, max_size=size)


def why(waits: Workload, *run: Workload, nodes: int = 1) -> Reason:
    """What `waits` is told after those of `run` were started."""
    state = State()
    turn(state, [NodeJoined(0.0, Node(f"n{n}", NODE, "A100")) for n in range(nodes)], POLICIES)
    turn(state, [Submitted(1.0, each) for each in run], POLICIES)
    return turn(state, [Submitted(2.0, waits)], POLICIES).reasons[f"{waits.name}/0"]


HALF = Resources(500, 1000, GB)
DISKS = (("disk", 2000),)


@pytest.mark.parametrize(
    ("need", "runs", "first", "lacking", "most"),
    [
        (HALF, Resources(500, 500, 1_500_000_000), "0.5 A100", "1 GB", "500 MB"),
        (HALF, Resources(500, 7500, GB), "0.5 A100", "1 CPU", "0.5 CPUs"),
        (HALF, Resources(0, 8000, 2 * GB), "0.5 A100", "1 CPU, 1 GB", "nothing"),
        (Resources(1000, 0, 0, DISKS), Resources(1000, 0, 0, DISKS), "1 A100", "2 disk", "1 disk"),
        (Resources(0, 1000, GB), Resources(0, 1000, 2 * GB), "1 CPU", "1 GB", "nothing"),
    ],
)
def test_it_is_told_what_is_short_beside_what_is_free(
    need: Resources, runs: Resources, first: str, lacking: str, most: str
) -> None:
    """An endpoint of half a GPU waited for memory, and was told that GPUs are free on a node where it did not fit."""
    reason = why(work("waits", need), work("runs", runs))
    told = f"needs 1 x {first} with {lacking} beside each; the most that a node has left beside the first: {most}"
    assert (reason.code, render.text(reason.message)) == ("nodes", told)


def test_where_each_has_room_on_another_node_both_are_told() -> None:
    """One node has CPUs, the other has memory: neither is short by itself."""
    used = [work("cpus", Resources(0, 8000, 0, ALL)), work("memory", Resources(0, 0, 2 * GB, ALL))]
    reason = why(work("waits", Resources(1000, 4000, GB)), *used, nodes=2)
    assert render.text(reason.message).startswith("needs 1 x 1 A100 with 4 CPUs, 1 GB beside each;")


@pytest.mark.parametrize(("gpus", "code"), [(2000, "nodes.busy"), (1500, "nodes.busy")])
def test_where_gpus_are_short_it_is_told_so(gpus: int, code: str) -> None:
    reason = why(work("waits", Resources(gpus, 1000, GB)), work("runs", Resources(1000, 1000, 2 * GB)))
    assert reason.message.code == code


def test_what_helps_is_said() -> None:
    reason = why(work("waits", HALF, 2), work("runs", Resources(500, 500, GB)))
    assert render.advice(reason.message) == "1 GB are released beside 0.5 A100, for 1 more"
