"""Whose GPU-hours they were: own and borrowed as they change hands, days, prices, starting, and work done twice.

That the books add up to what the journal says, whatever happens, is test_properties.py's to show.
"""

from __future__ import annotations

from dataclasses import replace

from llmsched.core.configuration import Configuration, Flavor, NodeType, PolicyNames, Queue, Quota
from llmsched.core.facts import (
    Archived,
    Bound,
    CheckpointPublished,
    Configured,
    Finished,
    Lost,
    NodeJoined,
    Submitted,
    Tick,
)
from llmsched.core.nodes import Node
from llmsched.core.prices import price_per_gpu_hour
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State
from llmsched.core.usage import DAY_MS, MICROS, Amounts
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())
LAB = Configuration(1, (Queue("lab", quotas=(("*", Quota(2000)),)), Queue("rest", quotas=(("*", Quota(6000)),))))


def work(name: str, gpus: float = 1, **more: object) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(round(gpus * 1000))),))
    return Workload(name, name, "task", (group,), queue="lab", user="ann", **more)  # type: ignore[arg-type]


def world(configuration: Configuration = LAB) -> State:
    state = State()
    state.apply(Configured(0.0, configuration))
    state.apply(NodeJoined(0.0, Node("n", Resources(8000, 80_000), "A100", (("spot", "yes"),))))
    return state


def used(state: State, name: str) -> Amounts:
    total = Amounts()
    for amounts in state.ledgers.meter.until(state.now)[name].values():
        total = total.plus(amounts)
    return total


def starts(state: State, at: float, *workloads: Workload) -> None:
    turn(state, [Submitted(at, one) for one in workloads], POLICIES)
    for one in workloads:
        state.apply(Bound(at, f"{one.id}/0", 1))


def seconds(amount: int) -> float:
    return amount / MICROS


def test_who_took_last_borrows_and_owns_it_once_the_queue_gives_something_back() -> None:
    state = world()
    starts(state, 0.0, work("a"), work("b", 0.5))
    starts(state, 10.0, work("c", 1.5))  # half of what it takes is beyond the queue's two
    state.apply(Finished(20.0, "b/0", 1, "succeeded"))
    state.apply(Tick(30.0))
    a, b, c = (used(state, name) for name in "abc")
    assert [seconds(one) for one in (a.own, a.borrowed, b.own, b.borrowed)] == [30, 0, 10, 0]
    assert (seconds(c.own), seconds(c.borrowed)) == (0.5 * 10 + 1.0 * 10 + 0.0, 1.0 * 10 + 0.5 * 10)


def test_another_quota_changes_who_borrows_from_then_on() -> None:
    state = world()
    starts(state, 0.0, work("a"), work("b"))
    rest = LAB.queues[1]
    less = replace(LAB, version=2, queues=(replace(LAB.queues[0], quotas=(("*", Quota(1000)),)), rest))
    state.apply(Configured(10.0, less))
    state.apply(Configured(15.0, replace(LAB, version=3, queues=(replace(LAB.queues[0], quotas=()), rest))))
    state.apply(Tick(20.0))
    assert [seconds(used(state, "a").borrowed), seconds(used(state, "b").borrowed)] == [5, 10]
    assert [seconds(used(state, "a").held), seconds(used(state, "b").held)] == [20, 20]


def test_where_no_queue_has_a_quota_nothing_is_borrowed() -> None:
    state = world(Configuration(1, (Queue("lab"),)))
    starts(state, 0.0, work("a", 4), work("b", 4))
    state.apply(Tick(10.0))
    assert used(state, "b") == Amounts(own=40 * MICROS)


def test_each_day_has_its_own_row() -> None:
    state = world()
    day = DAY_MS / 1000
    starts(state, day - 10, work("a"))
    state.apply(Tick(2 * day + 5))
    book = state.ledgers.meter.until(state.now)["a"]
    assert {key[0]: seconds(amounts.own) for key, amounts in book.items()} == {0: 10, 1: day, 2: 5}
    assert {key[1:] for key in book} == {("lab", "A100")}


def test_what_was_not_saved_before_an_attempt_was_lost_is_lost_and_what_a_failure_ends_for_good_is_not() -> None:
    state = world()
    turn(state, [Submitted(0.0, work("a"))], POLICIES)
    state.apply(Bound(5.0, "a/0", 1))
    state.apply(CheckpointPublished(25.0, "a/0", 1, 7))
    state.apply(Lost(40.0, "a/0", 1))
    assert used(state, "a") == Amounts(40 * MICROS, 0, 5 * MICROS, 15 * MICROS)
    turn(state, [Tick(100.0)], POLICIES)
    state.apply(Bound(100.0, "a/0", 2))
    state.apply(Finished(130.0, "a/0", 2, "failed", event="input"))
    assert seconds(used(state, "a").lost) == 15


def test_it_costs_what_the_flavor_costs_while_it_is_held() -> None:
    spot = Flavor("spot", (("ray.io/accelerator-type", "A100"), ("spot", "yes")), 3.6)
    state = world(replace(LAB, flavors=(Flavor("A100", (), 7.2), spot)))
    starts(state, 0.0, work("a", 2))
    state.apply(Configured(1000.0, replace(LAB, version=2, flavors=(spot._replace(price_per_gpu_hour=36.0),))))
    state.apply(Tick(2000.0))
    assert used(state, "a").cost == (2 + 20) * MICROS
    rented = Node("x", Resources(1000), "A100", node_type="big")
    assert price_per_gpu_hour(replace(LAB, flavors=(spot,), node_types=(NodeType("big", "spot", 1),)), rented) == 3.6
    assert price_per_gpu_hour(replace(LAB, flavors=(spot,)), rented) == 0.0  # it says not that it is spot


def test_a_book_goes_with_its_workload_and_its_sum_stays() -> None:
    state = world()
    starts(state, 0.0, work("a", 2), work("b"))
    state.apply(Finished(10.0, "a/0", 1, "succeeded"))
    before = used(state, "a")
    again = thaw(freeze(state))
    assert again.digest() == state.digest()
    for one in (state, again):
        one.apply(Archived(11.0, ("a",)))
        (row,) = one.find("a").usage  # type: ignore[union-attr]
        assert (row.day, row.queue, row.flavor, row.amounts) == (0, "lab", "A100", before)
        assert one.ledgers.meter.put_aside == {("ann", "lab"): before}
        assert "a" not in one.ledgers.meter.books
        one.apply(Tick(20.0))
    assert used(again, "b") == used(state, "b") == Amounts(10 * MICROS, 10 * MICROS)  # it took last, until a had gone
