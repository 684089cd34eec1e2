"""Elastic gangs change size because something happened, and then rest: no GPU goes to and fro between them."""

from __future__ import annotations

import random

import pytest
from ledger import Given, cluster

from llmsched.core import facts
from llmsched.core.configuration import Queue, Quota
from llmsched.core.decisions import Preempt, Resize
from llmsched.core.resources import Resources
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload

STEP_S = 30.0
SURE = ("even", "marginal_throughput", "goodput")


def carried_out(given: Given) -> list[object]:
    found: list[object] = []
    for name, gang in given.state.gangs.items():
        if gang.status is Status.RESIZING:
            found.append(facts.Resized(given.now, name, gang.attempt, gang.size))
        elif gang.status is Status.LAUNCHING:
            found.append(facts.Bound(given.now, name, gang.attempt))
        elif gang.status is Status.VACATING:
            found.append(facts.Released(given.now, name, gang.attempt))
    return found


def resizes(given: Given, steps: int) -> list[float]:
    """When somebody changed size or moved, with nothing from outside but the clock."""
    found: list[float] = []
    for _ in range(steps):
        given.after(STEP_S)
        for decision in given.turn(*carried_out(given)).plan.decisions:
            if isinstance(decision, (Resize, Preempt)):
                found.append(given.now)
    return found


def sizes(given: Given) -> list[int]:
    return [gang.size for gang in given.state.gangs.values()]


@pytest.mark.parametrize("elasticity", SURE)
@pytest.mark.parametrize(("gpus", "last"), [(4, 4), (5, 4), (5, 8)])
def test_a_gpu_that_is_left_over_stays_with_who_has_it(elasticity: str, gpus: int, last: int) -> None:
    """Of three, of which only the third could have all of its size, goodput gave the third everything and the others
    nothing: these kept their least, the third got nothing, and the GPU left over changed hands 96 times an hour."""
    given = cluster(f"1 node x {gpus}").policies(elasticity=elasticity)
    for number, most in enumerate((8, 8, last)):
        given.pending(f"e{number}", 1, (1, most))
        resizes(given, 1)
    assert len(resizes(given, 20)) <= 3
    assert sum(sizes(given)) == gpus
    assert len(resizes(given, 100)) <= 6  # those that nobody knows come to the next level of service once


def test_what_others_take_while_one_starts_is_not_taken_back_when_it_runs() -> None:
    """While the newest had not yet run for as long as a restart costs, it took no part, and others took its GPUs."""
    given = cluster("1 node x 4").scheduling(restart_cost_s=300.0)
    seen: dict[str, list[int]] = {}
    for number, most in enumerate((8, 8, 4)):
        given.pending(f"e{number}", 1, (1, most))
        given.turn(*carried_out(given))
    for _ in range(60):
        resizes(given, 1)
        for name, gang in given.state.gangs.items():
            seen.setdefault(name, [gang.size])
            if seen[name][-1] != gang.size:
                seen[name].append(gang.size)
    assert sum(sizes(given)) == 4
    assert all(had == sorted(had) or had == sorted(had, reverse=True) for had in seen.values()), seen


def crowd(seed: int, elasticity: str) -> Given:
    """Up to six elastic gangs, alike or not, known or not, and fixed ones that wait, on one to four nodes."""
    chance = random.Random(seed)
    nodes = [f"{chance.randint(2, 3)} nodes x {chance.choice((2, 3, 4, 8))} {name}" for name in "AB"]
    given = cluster(", ".join(nodes[: chance.choice((1, 1, 2))])).policies(elasticity=elasticity)
    if chance.random() < 0.3:
        given.scheduling(quantum_s=chance.choice((60.0, 300.0)))
    queues = ["default"]
    if chance.random() < 0.3:
        queues = ["a", "b"]
        given.queue("a", chance.randint(1, 8)).queue("b", chance.randint(1, 8))
    for number in range(chance.randint(2, 6)):
        low, step = chance.choice((1, 1, 1, 2, 3)), chance.choice((1, 1, 1, 2))
        high = low + step * chance.randint(1, 7)
        more: dict[str, object] = {"queue": chance.choice(queues)}
        if chance.random() < 0.3:
            more["priority"] = chance.choice((10, 50, 90))
        if chance.random() < 0.4:
            more["estimated_runtime_s"] = chance.choice((20_000.0, 40_000.0, 100_000.0))
        if chance.random() < 0.4:
            power = chance.choice((0.3, 0.6, 0.9))
            more["speedup"] = tuple((size, (size / low) ** power) for size in range(low, high + 1, step))
        given.pending(f"e{number}", 1, (low, high), step, **more)
        given.turn(*carried_out(given))
    for number in range(chance.choice((0, 0, 1, 2))):
        given.pending(f"f{number}", chance.randint(1, 4), priority=chance.choice((10, 50)), queue=chance.choice(queues))
    return given


@pytest.mark.parametrize("elasticity", SURE)
@pytest.mark.parametrize("seed", range(6))
def test_every_set_of_elastic_gangs_comes_to_rest(seed: int, elasticity: str) -> None:
    given = crowd(seed, elasticity)
    gangs = len(given.state.elastic)
    assert len(resizes(given, 60)) <= 4 * gangs + 4
    assert len(resizes(given, 30)) <= gangs  # what is known of their work may put them into another order, once


def on_two_kinds(seed: int, elasticity: str) -> Given:
    """Elastic gangs that are faster on one kind of GPU than on the other, or take more of them there, and work that
    ends and leaves either kind to them."""
    chance = random.Random(seed)
    nodes = [f"{chance.randint(1, 2)} nodes x {chance.choice((2, 4, 8))} {name}" for name in "AB"]
    given = cluster(", ".join(nodes)).policies(elasticity=elasticity)
    queue = chance.choice(("default", "own", "own"))
    if queue == "own":
        of_each = [(flavor, Quota(chance.randint(3, 7) * 1000, 0)) for flavor in chance.choice(("*", "AB"))]
        given.queues += [Queue("own", quotas=tuple(of_each)), Queue("default", quotas=(("*", Quota(8000)),))]
    if chance.random() < 0.4:
        given.rules("by_rank", "any").scheduling(quantum_s=60.0)
    for number in range(2):
        given.running(f"r{number}", chance.choice((1, 2)), flavor="AB"[number], queue="default")
    for number in range(chance.randint(1, 5)):
        low, most = chance.choice((1, 1, 2)), chance.choice((2, 4, 8))
        options = []
        for flavor in chance.choice(("AB", "AB", "BA", "A", "B")):
            fast, power = chance.choice((1.0, 1.0, 2.0, 4.0)), chance.choice((0.5, 1.0))
            curve = tuple((size, fast * (size / low) ** power) for size in range(low, most + 1))
            options.append(Option(flavor, Resources(chance.choice((1000, 1000, 2000))), curve))
        group = Group("w", low, tuple(options))
        left = chance.choice((None, 50_000.0, 200_000.0))
        name = f"e{number}"
        sizes = {"min_size": low, "max_size": most}
        spec = Workload(name, name, "train", (group,), queue=queue, estimated_runtime_s=left, **sizes)
        given.turn(*carried_out(given), facts.Submitted(given.now, spec))
    return given


@pytest.mark.parametrize("elasticity", SURE)
@pytest.mark.parametrize("seed", range(8))
def test_who_may_move_to_faster_gpus_comes_to_rest_as_well(seed: int, elasticity: str) -> None:
    given = on_two_kinds(seed, elasticity)
    gangs = len(given.state.elastic) + len(given.state.waiting.elastic)
    resizes(given, 20)
    leave = [facts.Finished(given.now, name, 1, "succeeded") for name in ("r0/0", "r1/0")]
    given.turn(*leave)
    assert len(resizes(given, 60)) <= 4 * gangs + 4
    by_rank = given.state.configuration.scheduling.preemption.within_queue == "by_rank"
    assert len(resizes(given, 30)) <= (gangs if by_rank else 0)  # by rank those that nobody knows take turns, by levels


@pytest.mark.parametrize("elasticity", SURE)
@pytest.mark.parametrize("of_b", [2, 4])
def test_nobody_becomes_smaller_for_one_that_cannot_grow_as_its_quota_is_of_another_flavor(
    elasticity: str, of_b: int
) -> None:
    """A quota was one number over all flavors: one gave GPUs of B for another that runs on A and may have no more of
    those, and what it gave was idle for good."""
    given = cluster("1 node x 4 A, 1 node x 4 B").policies(elasticity=elasticity)
    quotas = (("A", Quota(1000, 0)), ("B", Quota(of_b * 1000, 0)))
    given.queues += [Queue("own", quotas=quotas), Queue("default", quotas=(("*", Quota(0)),))]
    for name, flavors, most in (("b", "B", 4), ("either", "AB", 2)):
        group = Group("w", 1, tuple(Option(flavor, Resources(1000)) for flavor in flavors))
        spec = Workload(name, name, "train", (group,), queue="own", min_size=1, max_size=most)
        given.turn(*carried_out(given), facts.Submitted(given.now, spec))
    resizes(given, 20)
    assert resizes(given, 200) == [] and sizes(given) == [of_b, 1]


def test_what_a_quota_of_any_flavor_leaves_is_there_once() -> None:
    """It was counted once for each flavor, so that one grew, others gave, and it gave back, every minute."""
    given = cluster("1 node x 4 A, 1 node x 4 B").rules("by_rank", "any").scheduling(quantum_s=60.0)
    given.policies(elasticity="goodput").queue("own", 3, borrow=0).queue("default", 5)
    for name, flavors, most in (("b", "B", 4), ("either", "AB", 2)):
        group = Group("w", 1, tuple(Option(flavor, Resources(1000)) for flavor in flavors))
        spec = Workload(name, name, "train", (group,), queue="own", min_size=1, max_size=most)
        given.turn(*carried_out(given), facts.Submitted(given.now, spec))
        given.after(300.0)
    assert len(resizes(given, 80)) <= 3


@pytest.mark.parametrize(("of_b", "owns"), [(4, 0), (12, 12)])
def test_gpus_that_its_queue_may_have_none_of_make_no_share_larger(of_b: int, owns: int) -> None:
    """Those of A, of which no quota gives anybody any, were counted into what an elastic gang of "A, B" is due: so it
    took all of B, also what fixed work of another queue, which waited with it, would have started on."""
    given = cluster(f"1 node x 4 A, 1 node x {of_b} B").scheduling(hold_after_s=0.0)
    given.queues += [
        Queue(name, quotas=(("A", Quota(0, 0)), ("B", Quota(own * 1000)))) for name, own in (("a", of_b), ("b", owns))
    ]
    either = tuple(Option(flavor, Resources(1000)) for flavor in "AB")
    given.running("rest", 1, flavor="B", queue="a").now += 1.0
    grows = Workload("e", "e", "train", (Group("w", 1, either),), queue="b", min_size=1, max_size=of_b)
    given.state.apply(facts.Submitted(given.now, grows))
    given.state.apply(facts.Submitted(given.now, Workload("f", "f", "train", (Group("w", 1, either),), queue="a")))
    resizes(given, 3)
    assert sizes(given) == [1, of_b - 2, 1]
