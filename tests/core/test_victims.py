"""Of all sets of victims that would do, the one that loses least is taken: compared with trying every set."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest
from ledger import Launch, Nominate, cluster
from ledger import Preempt as Evicted

from llmsched.core import decisions, facts
from llmsched.core.configuration import Configuration, PolicyNames, PreemptionRules, Queue, Scheduling
from llmsched.core.nodes import Node
from llmsched.core.records import GangState
from llmsched.core.resources import Resources
from llmsched.core.rules import Rules
from llmsched.core.scheduler import decide
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import victims
from llmsched.core.stages.choice import Choice
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Topology, Workload
from llmsched.policies.registry import load

NAMES = PolicyNames(ordering="priority")
POLICIES = load(NAMES)
WORLDS = 80
TRIED = 9  # victims of which every set is tried


def work(name: str, gpus: int, bundles: int, priority: int, **more: Any) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(gpus * 1000)),))
    return Workload(name, name, "train", (group,), min_size=bundles, max_size=bundles, priority=priority, **more)


def full_cluster(seed: int) -> State:
    """Up to three nodes with work of all sizes and ages, and `in`, which is worth more."""
    chance = random.Random(seed)
    rules = Scheduling(preemption=PreemptionRules("lower_priority"))
    state = State()
    state.apply(facts.Configured(0.0, Configuration(1, (Queue("default"),), scheduling=rules, policies=NAMES)))
    for number in range(chance.randint(1, 3)):
        total = Resources(chance.choice([2, 4, 4, 8]) * 1000, 64_000, 1 << 40)
        state.apply(facts.NodeJoined(0.0, Node(f"n{number}", total, None, (("rack", f"r{number // 2}"),))))
    now = 0.0
    for number in range(20):
        now += chance.choice([10, 1000, 20_000])
        gpus, bundles = chance.choice([(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (4, 1), (1, 4)])
        spec = work(f"w{number}", gpus, bundles, chance.choice([10, 10, 10, 20]))
        state.apply(facts.Submitted(now, spec))
        gang = state.gangs[f"w{number}/0"]
        with Trial(state) as trial:
            found = find(Pass(trial, POLICIES), gang, bundles)
        if isinstance(found, Refused):
            state.apply(decisions.GiveUp(gang.id, "dependency"))
        else:
            state.apply(decisions.Launch(gang.id, 1, found))
            state.apply(facts.Bound(now, gang.id, 1))
    gpus, bundles = chance.choice([(1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (1, 3)])
    wish = chance.choice([Topology(), Topology(), Topology("rack")])
    state.apply(facts.Submitted(now + 60.0, work("in", gpus, bundles, 50, topology=wish)))
    return state


def loss(this: Pass, gang: GangState, victims: list[GangState]) -> tuple[object, ...]:
    cost = {v.id: POLICIES.preemption.cost(v, gang, this.view) or 0 for v in victims}
    return Choice((), victims, dict.fromkeys(cost, "in_queue_priority")).rank(Rules(this, gang), cost)


@pytest.mark.parametrize("first", range(0, WORLDS, 20))
def test_no_set_of_victims_loses_less_than_the_one_that_leaves(first: int) -> None:
    compared = 0
    for seed in range(first, first + 20):
        state = full_cluster(seed)
        gang, running = state.gangs["in/0"], [state.gangs[name] for name in state.holding]
        taken = [state.gangs[d.gang] for d in decide(state, POLICIES).decisions if isinstance(d, decisions.Preempt)]
        if not taken or len(running) > TRIED:
            continue
        compared += 1
        with Trial(state) as trial:
            this = Pass(trial, POLICIES)
            chosen = loss(this, gang, taken)
            for count in range(1, len(running) + 1):
                for victims in map(list, combinations(running, count)):
                    if loss(this, gang, victims) >= chosen:
                        continue
                    mark = trial.mark()
                    for victim in victims:
                        trial.hold(victim, ())
                    found = find(this, gang, gang.spec.min_size, explain=False)
                    trial.rollback(mark)
                    names = [[each.id for each in some] for some in (victims, taken)]
                    assert isinstance(found, Refused), f"world {seed}: {names[0]} would do, {names[1]} leave"
    assert compared


def test_a_lower_priority_leaves_before_a_higher_one_however_much_it_loses() -> None:
    """Its users have said what they would rather lose. Of equals the one that has done least since its checkpoint."""
    given = cluster("3 nodes x 8").rules("lower_priority")
    given.running("long", 8, priority=1).after(25 * 3600.0)
    given.running("fresh0", 8, priority=5).running("fresh1", 8, priority=5)
    assert given.pending("in", 8, priority=50).decide().decisions[0] == Evicted("long", "in_queue_priority")
    given = cluster("2 nodes x 8").rules("lower_priority")
    given.running("long", 8, priority=5).after(25 * 3600.0).running("fresh", 8, priority=5)
    assert given.pending("in", 8, priority=50).decide().decisions[0] == Evicted("fresh", "in_queue_priority")


def test_a_class_that_is_asked_twice_in_a_pass_hears_twice_when_shields_end() -> None:
    """Its victims are kept for the pass. Without the moment of those who are shielded, who was asked again was not
    asked when a shield ended, although one who has the journal alone would ask then."""
    given = cluster("1 node x 2").rules("lower_priority").running("low", gpus=2, priority=10, min_runtime_s=500.0)
    given.pending("high", gpus=2, priority=50)
    gang = given.state.gangs["high/0"]
    later, heard = Pass(Trial(given.state), load(given.names)).later(), []
    for _ in range(2):
        later.plan.wake_at = None
        assert victims.eligible(later, gang, Rules(later, gang))[0] == []
        heard.append(later.plan.wake_at)
    assert heard[0] is not None and heard[0] == heard[1]


def test_when_a_shield_ends_is_one_moment_whatever_floats_round_it_to() -> None:
    """At 161.1666... s and 100 s the run so far, as a difference, is a hair less than the shield at the very moment
    for which the pass asked to be called again: it was refused then, and named the same moment for ever."""
    given = cluster("1 node x 1").rules("lower_priority").after(161.16666666666666)
    given.running("low", 1, priority=10, min_runtime_s=100.0).after(20.0).pending("high", 1, priority=90)
    decide(given.state, POLICIES)
    woken = decide(given.state, POLICIES).wake_at
    assert woken is not None and given.state.now < woken
    assert given.after(woken - given.state.now).decide().decisions[0] == Evicted("low", "in_queue_priority")


def test_whether_shares_let_a_set_leave_does_not_follow_from_which_of_it_is_cheaper_by_now() -> None:
    """The large one had only begun, so it was taken first, and then the share of its queue was too low to take the
    small one as well; once the small one was cheaper both could go, and nobody was asked at that moment."""
    given = cluster("1 node x 3").queue("heavy", 0, weight=2.0).queue("light", 0).policies(ordering="priority")
    given.rules(reclaim="equal_or_lower_priority").scheduling(
        fair_share="weighted_drf_over_borrowed", fair_preempt_rule="preemptor_final_lt_victim_initial"
    )
    given.running("small", 1, queue="light", priority=10).after(100.0)
    given.running("large", 2, queue="light", priority=10).after(5.0).pending("in", 3, queue="heavy", priority=50)
    for _ in range(3):
        told = given.decide().decisions
        assert {each.name for each in told if isinstance(each, Evicted)} == {"small", "large"}
        given.after(100.0)


def test_a_large_gang_of_small_parts_may_take_from_as_many_as_it_needs() -> None:
    """Of 256 victims at most a place was made: one that needed 257 waited for good, though each of 320 might leave."""
    given = cluster("40 nodes x 8").rules("lower_priority")
    for number in range(320):
        given.running(f"s{number}", 1, priority=10)
    parts = Group("w", 257, (Option(None, Resources(1000)),))
    many = Workload("z", "z", "train", (parts,), priority=90, min_size=257, max_size=257)
    decided = given.after(100.0).turn(facts.Submitted(given.now, many))
    assert sum(isinstance(one, Evicted) for one in decided.decisions) == 257


@pytest.mark.parametrize("rule", ["lower_priority", "by_rank"])
@pytest.mark.parametrize(
    ("gpus", "held", "asks"),
    [(1, [0.5], 1), (2, [0.5, 1], 2), (8, [0.25], 8), (2, [0.6, 0.6], 2), (2, [0.5, 0.5, 1], 2)],
)
def test_who_holds_a_part_of_a_gpu_leaves_for_whole_ones(rule: str, gpus: int, held: list[float], asks: int) -> None:
    """What victims hold was summed, and what they leave free of their devices counted for nobody: a half of a low
    priority kept one of a high priority waiting for ever."""
    given = cluster(f"1 node x {gpus}").rules(rule, "any").policies(ordering="priority").scheduling(quantum_s=60.0)
    for number, part in enumerate(held):
        given.running(f"v{number}", part, priority=20)
    given.pending("high", asks, priority=90).after(120.0)
    assert {one.name for one in given.turn().decisions if isinstance(one, Evicted)} == {
        f"v{n}" for n in range(len(held))
    }


def test_nobody_leaves_one_node_for_who_goes_to_another_as_a_part_is_among_what_goes() -> None:
    """The eight cheapest by number were seven of one node and one of the other; with the half beside it fitted, and the
    one of the other node had left in vain."""
    given = cluster("1 node x 8 A, 1 node x 8 B").policies(ordering="priority").rules("lower_priority")
    given.running("half", 0.5, flavor="A", priority=20).after(3000.0)
    for number in range(8):
        given.running(f"m{number}", 1, flavor="B", priority=20)
    given.after(1000.0)
    for number in range(7):
        given.running(f"y{number}", 1, flavor="A", priority=20)
    given.after(1000.0).pending("high", 8, priority=90)
    assert {one.name[0] for one in given.turn().decisions if isinstance(one, Evicted)} == {"h", "y"}


def test_an_owner_gets_back_what_a_part_of_a_gpu_keeps_it_from() -> None:
    given = (
        cluster("1 node x 1").queue("a", 1).queue("b", 0).rules("lower_priority", "any").running("v", 0.5, queue="b")
    )
    assert Evicted("v", "quota_reclaim") in given.after(100.0).pending("owner", 1, queue="a").turn().decisions


def test_nobody_begins_on_a_part_of_a_device_that_is_promised_once_others_have_left_it() -> None:
    """Beside a reservation the quarter that was left of their device was free for a moment, as if it was not part of
    what the one that they left for needed: that one was promised places for forty minutes, and others ran there."""
    given = cluster("1 node x 4").rules("lower_priority", "any")
    given.reserve(600.0, 300.0, "ann", gpus=2, repeat="*/20 * * * *").turn()
    for name, part, priority in (("v0", 0.25, 50), ("v1", 0.5, 20), ("v2", 1, 20)):
        given.running(name, part, priority=priority)
    given.after(290.0).pending("high", 2, priority=90)
    assert Nominate("high", 2) in given.turn().decisions
    assert given.pending("part", 0.25).turn().decisions == []
    given.after(20.0, *(facts.Released(given.now, f"v{number}/0", 1) for number in range(3)))
    assert Launch("high", 2) in given.turn().decisions


def test_who_holds_the_place_leaves_though_another_one_of_its_queue_elsewhere_is_cheaper() -> None:
    """Quotas count both flavors together: once the cheaper one has gone, its queue has nothing beyond its own."""
    given = cluster("1 node x 1 B, 1 node x 2 A").rules(reclaim="any").queue("owner", gpus=2).queue("borrower", gpus=1)
    given.running("there", 1, flavor="B", queue="borrower").after(3600.0)
    given.running("elsewhere", 1, flavor="A", queue="borrower").pending("in", 1, flavor="B", queue="owner")
    assert given.decide().decisions == [Evicted("there", "quota_reclaim"), Nominate("in", 1)]
