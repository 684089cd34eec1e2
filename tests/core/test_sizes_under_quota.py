"""Elastic gangs beside work that holds parts of GPUs have all whole ones that are left to their queue."""

from __future__ import annotations

import pytest
from ledger import Resize, cluster

from llmsched.core import facts
from llmsched.core.configuration import Queue, Quota
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Workload


def test_beside_a_part_of_a_gpu_it_grows_by_every_whole_one() -> None:
    given = cluster("1 node x 4").queue("q", 4)
    given.running("half", 0.5, queue="q").running("grows", 1, elastic=(1, 4), queue="q")
    assert given.after(3600.0).decide().decisions == [Resize("grows", 3)]


@pytest.mark.parametrize("elasticity", ["goodput", "even", "marginal_throughput"])
@pytest.mark.parametrize(("gpus", "held", "part", "size"), [(2, 0.5, 0.5, 3), (2, 0.6, 0.5, 2), (4, 0.1, 0.3, 12)])
@pytest.mark.parametrize("has_quota", [False, True])
def test_one_that_asks_for_parts_grows_by_what_others_leave_of_theirs(
    elasticity: str, gpus: int, held: float, part: float, size: int, has_quota: bool
) -> None:
    """Whole GPUs alone were shared: the other half of one of which somebody had a half was idle for good."""
    given = cluster(f"1 node x {gpus}").policies(elasticity=elasticity)
    if has_quota:
        given.queue("default", gpus)
    given.running("other", held)
    parts = Group("workers", 1, (Option(None, Resources(round(1000 * part))),))
    given.turn(facts.Submitted(given.now, Workload("e", "e", "train", (parts,), min_size=1, max_size=16)))
    given.after(1.0, facts.Bound(given.now, "e/0", 1)).settle()
    assert given.after(3600.0).settle().state.gangs["e/0"].size == size


def test_what_two_queues_hold_in_parts_of_one_gpu_leaves_no_other_idle() -> None:
    given = cluster("1 node x 6").queue("q", 3, cohort="c").queue("r", 3, cohort="c")
    given.running("half", 0.5, queue="q").running("other", 0.5, queue="r")
    given.running("grows", 1, elastic=(1, 6), queue="q").running("too", 1, elastic=(1, 6), queue="r")
    given.after(3600.0).settle()
    assert sorted(given.state.gangs[f"{name}/0"].size for name in ("grows", "too")) == [2, 3]


def test_one_that_names_no_flavor_grows_by_what_its_queue_may_have_of_any() -> None:
    given = cluster("1 node x 4 A100, 1 node x 4 V100")
    quotas = (("A100", Quota(1000)), ("V100", Quota(2000)))
    given.queues.append(Queue("q", cohort="c", quotas=quotas))
    given.queues.append(Queue("r", cohort="c", quotas=(("A100", Quota(3000)), ("V100", Quota(2000)))))
    given.running("grows", 1, elastic=(1, 8), queue="q")
    assert given.after(3600.0).decide().decisions == [Resize("grows", 4)], "r lends what it does not use"
