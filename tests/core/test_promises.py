"""A promise is looked at in every pass while its victims leave: in short where nothing has changed for it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, cluster
from ledger import Launch as Start
from test_order_of_a_class import Counted
from test_portions import MANY, POLICIES, by_rank, passes, work, world

from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Launch, Nominate, Preempt
from llmsched.core.exact_fit import fits, is_kept
from llmsched.core.facts import Bound, Cancelled, NodeDraining, Released, Submitted, Tick
from llmsched.core.policy import Policies
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.policies.registry import load


def crowded(draw: random.Random) -> State:
    """Some run, some of them leave, and others are promised places at random, also such as will not be there."""
    given = cluster(draw.choice(("3 nodes x 2", "2 nodes x 2 A, 1 node x 4 B")))
    if draw.random() < 0.6:
        given.queue("q", gpus=draw.choice((2, 4, 6)), cohort="c", borrow=draw.choice((None, 0, 1)))
        given.queue("r", gpus=2, cohort="c", lend=draw.choice((None, 1)))
    state = given.state
    nodes, queues = [*state.nodes], [*state.quota.queues] or ["default"]
    for number in range(draw.randrange(4, 12)):
        resources = Resources(draw.choice((1000, 1000, 2000, 500)), draw.choice((0, 0, 9000)))
        name, size = f"w{number}", draw.choice((1, 1, 2))
        group = Group("workers", size, (Option(draw.choice((None, None, "A")), resources),))
        more = {"queue": draw.choice(queues), "preemptible": draw.random() < 0.8}
        state.apply(Submitted(given.now, Workload(name, name, "task", (group,), min_size=size, max_size=size, **more)))
        if state.gangs.get(f"{name}/0") is None:
            continue
        device = 0 if resources.gpus_milli % 1000 else -1
        placement = tuple(Placed("workers", draw.choice(nodes), 0, device) for _ in range(size))
        if number < 5 and draw.random() < 0.7:
            with Trial(state) as trial:
                is_free = fits(trial, state.gangs[f"{name}/0"].spec, placement)
            if is_free:
                state.apply(Launch(f"{name}/0", 1, placement))
                if draw.random() < 0.6:
                    state.apply(Preempt(f"{name}/0", 1, 60.0, "in_queue_priority"))
        else:
            state.apply(Nominate(f"{name}/0", placement, ()))
    if draw.random() < 0.2:
        state.apply(NodeDraining(given.now, draw.choice(nodes)))
    return state


def test_what_is_said_in_short_of_a_promise_is_so() -> None:
    said: Counter[str] = Counter()
    for seed in range(400):
        state = crowded(random.Random(seed))
        for name in state.nominated:
            gang = state.gangs[name]
            assert gang.nomination is not None
            placement = gang.nomination.placement
            with Trial(state) as trial:
                may_fit, kept = place.may_fit(trial, gang, len(placement)), is_kept(trial.afterwards(), gang)
                trial.unpromise(gang)
                finds = not isinstance(place.find(Pass(trial, POLICIES), gang, len(placement)), place.Refused)
                fits_then = fits(trial.afterwards(), gang.spec, placement)
            assert may_fit or not finds
            assert fits_then or not kept
            said.update(told for told, is_so in (("no room", not may_fit), ("kept", kept)) if is_so)
            said.update(told for told, is_so in (("finds", finds), ("is lost", not fits_then)) if is_so)
    assert min(said[told] for told in ("no room", "kept", "finds", "is lost")) > 50, said


def promised(policies: Policies) -> Any:
    """By rank, MANY are promised the places of as many that leave, each on a node of its own."""
    state = by_rank(world(nodes=MANY, gpus=1))
    passes(state, [Submitted(1.0, work(f"low{number:03}", gpus=1000)) for number in range(MANY)], policies)
    passes(state, [Bound(2.0, gang, 1) for gang in list(state.gangs)], policies)
    high = [Submitted(3.0, work(f"high{number:03}", gpus=1000, priority=90)) for number in range(MANY)]
    passes(state, high, policies)
    decided = passes(state, [Tick(61.0)], policies)
    assert sum(isinstance(decision, Preempt) for each in decided for decision in each) == MANY
    return state


def test_while_many_leave_nobody_who_is_promised_a_place_is_put_in_order_again() -> None:
    ordering = Counted()
    policies = replace(load(PolicyNames()), ordering=ordering)
    state = promised(policies)
    ordering.asked = 0
    for at, name in enumerate([*state.vacating][:5]):
        plan = turn(state, [Released(62.0 + at, name, 1)], policies)
        assert [type(decision).__name__ for decision in plan.decisions] == ["Launch"]
    assert ordering.asked <= 10


def two_promises(same_queue: bool) -> Given:
    """One node, two who leave it, and two who are promised what each of them leaves."""
    given = cluster("1 node x 8")
    queues = ("q", "q") if same_queue else ("q", "r")
    for name in dict.fromkeys(queues):
        given.queue(name, gpus=8 if same_queue else 4, cohort="c")
    given.rules(within_queue="lower_priority").policies(ordering="priority")
    given.running("soon", 2, priority=10, queue=queues[0], grace_s=60.0)
    given.running("late", 6 if same_queue else 4, priority=10, queue=queues[1], grace_s=600.0)
    given.pending("small", 2, priority=80, queue=queues[0])
    given.pending("large", 6 if same_queue else 4, priority=90, queue=queues[1])
    if not same_queue:
        given.running("stays", 2, priority=95, queue="q")
    given.turn()
    assert {*given.state.nominated} == {"small/0", "large/0"} and {*given.state.vacating} == {"soon/0", "late/0"}
    return given


@pytest.mark.parametrize("same_queue", [True, False])
def test_who_was_promised_a_place_starts_when_its_own_place_is_free_whoever_else_leaves_the_node(
    same_queue: bool,
) -> None:
    given = two_promises(same_queue)
    assert given.turn(Released(given.now, "soon/0", 1)).decisions == [Start("small", 2)]
    assert given.state.gangs["large/0"].nomination is not None
    assert given.turn(Released(given.now, "late/0", 1)).decisions == [Start("large", 6 if same_queue else 4)]


def test_of_two_who_were_promised_as_much_the_first_gets_what_is_free_first() -> None:
    given = cluster("1 node x 4").rules(within_queue="lower_priority").policies(ordering="priority")
    given.running("soon", 2, priority=10, grace_s=60.0).running("late", 2, priority=10, grace_s=600.0)
    given.pending("first", 2, priority=90).pending("second", 2, priority=80)
    given.turn()
    assert [*given.state.nominated] == ["first/0", "second/0"]
    assert given.turn(Released(given.now, "late/0", 1)).decisions == [Start("first", 2)]
    assert given.turn(Released(given.now, "soon/0", 1)).decisions == [Start("second", 2)]


def test_part_of_a_device_that_was_promised_is_taken_when_it_is_free() -> None:
    given = cluster("1 node x 2").rules(within_queue="lower_priority").policies(ordering="priority")
    given.running("half", 0.5, priority=10, grace_s=60.0).running("whole", 1, priority=10, grace_s=600.0)
    given.pending("other", 1, priority=90).pending("share", 0.75, priority=80)
    given.turn()
    assert {*given.state.vacating} == {"half/0", "whole/0"}
    assert given.turn(Released(given.now, "half/0", 1)).decisions != []
    assert given.turn(Released(given.now, "whole/0", 1)).decisions != []
    assert not given.state.nominated


def test_who_is_promised_places_that_are_free_already_starts_in_a_pass_at_once() -> None:
    """Those who leave are enough for somebody else, and what `small` needs of the same node is free."""
    given = cluster("1 node x 8").rules(within_queue="lower_priority").policies(ordering="priority")
    given.running("late", 4, priority=10, grace_s=600.0).running("soon", 2, priority=10, grace_s=60.0)
    given.pending("large", 6, priority=90)
    given.turn()
    assert given.state.gangs["large/0"].nomination is not None
    given.pending("small", 2, priority=80)
    plan = turn(given.state, [Released(given.now, "soon/0", 1)], POLICIES)
    assert given.state.gangs["small/0"].nomination is not None and plan.wake_at == plan.at
    given.turn()
    assert given.state.gangs["small/0"].status is Status.LAUNCHING
    assert given.state.gangs["large/0"].nomination is not None


def test_who_is_moved_keeps_no_more_of_a_node_on_which_it_is_than_it_goes_to() -> None:
    """It holds a GPU there and goes to two, of which that one is one: kept were three, and whoever could have
    the fourth waited for another one to leave, though that one was free."""
    given = cluster("2 nodes x 4").scheduling(consolidation=True)
    for name, nodes in {"moves": ("n-0", "n-1"), "ends": ("n-0",)}.items():
        given.pending(name, 1, (len(nodes), len(nodes)))
        given.state.apply(Launch(f"{name}/0", 1, tuple(Placed("workers", node, 0, -1) for node in nodes)))
        given.state.apply(Bound(given.now, f"{name}/0", 1))
    given.pending("whole", 4, priority=90).pending("first", 1).pending("second", 1)
    decided = given.turn(Cancelled(given.now, "ends", "ann"))
    assert Start("first", 1) in decided.decisions and decided.code("second") == "victims_leaving"
