"""An elastic gang that may have either of two flavors leaves to others what they have been counted for."""

from __future__ import annotations

from typing import Any

import pytest
from ledger import Given, Launch, cluster

from llmsched.core import facts
from llmsched.core.configuration import Queue, Quota
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Workload


def either(name: str, low: int, high: int, *flavors: str, **more: Any) -> Workload:
    group = Group("workers", 1, tuple(Option(flavor, Resources(1000)) for flavor in flavors))
    return Workload(name, name, "train", (group,), min_size=low, max_size=high, **more)


def submitted(given: Given, *workloads: Workload) -> Given:
    """All in the same second, in this order."""
    given.now += 1.0
    for workload in workloads:
        given.state.apply(facts.Submitted(given.now, workload))
    return given


@pytest.mark.parametrize("flavors", [("A", "B"), ("B", "A")])
def test_it_starts_beside_work_of_fixed_size_that_needs_one_of_its_flavors(flavors: tuple[str, str]) -> None:
    """It stood on the flavor with more free GPUs, all that its share let it, and the other one waited for a quantum."""
    given = submitted(cluster("1 node x 8 A, 1 node x 2 B"), either("e", 1, 8, *flavors), either("fixed", 4, 4, "A"))
    assert sorted(given.turn().decisions, key=str) == [Launch("e", 4), Launch("fixed", 4)]


@pytest.mark.parametrize(("low", "high", "starts"), [(4, 4, 4), (1, 2, 1)])
def test_it_takes_nothing_that_its_queue_would_borrow_from_one_that_starts(low: int, high: int, starts: int) -> None:
    """It took all of A, of which another queue owns six, and nobody takes back there what was lent."""
    given = cluster("1 node x 8 A, 1 node x 2 B")
    given.queues.append(Queue("borrows", cohort="all", quotas=(("A", Quota(2000)), ("B", Quota(2000)))))
    given.queues.append(Queue("owns", cohort="all", quotas=(("A", Quota(6000)),)))
    submitted(given, either("e", 1, 8, "A", "B", queue="borrows"), either("owner", low, high, "A", queue="owns"))
    assert sorted(given.turn().decisions, key=str) == [Launch("e", 8 - starts), Launch("owner", starts)]


def test_what_was_asked_before_it_and_does_not_start_keeps_nothing_from_it() -> None:
    """Nobody stands on few GPUs of one flavor beside idle ones of the other, for one that waits for something else."""
    given = cluster("1 node x 8 A, 1 node x 2 B").rules().reserve(100.0, 1000.0, "ann", gpus=6)
    long = either("fixed", 4, 4, "A", max_runtime_s=10000.0)
    submitted(given, long, either("e", 1, 8, "A", "B", user="ann"))
    assert given.turn().decisions == [Launch("e", 8)]


def test_one_that_cannot_start_beside_others_at_any_size_starts_where_it_comes_first() -> None:
    given = submitted(cluster("1 node x 4 A, 1 node x 1 B"), either("e", 2, 4, "A", "B"), either("fixed", 4, 4, "A"))
    assert given.turn().decisions == [Launch("e", 2)]
