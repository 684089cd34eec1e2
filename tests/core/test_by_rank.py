"""By rank: who is picked is counted on every flavor that would do, fits on devices too, and nobody leaves in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import PreemptionRules, Queue, Quota
from llmsched.core.invariants import violations
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

BY_RANK = PreemptionRules("by_rank")


def ranked(text: str, **knobs: Any) -> Given:
    given = cluster(text).policies(ordering="priority", elasticity="even")
    return given.scheduling(preemption=BY_RANK, order="best_effort", quantum_s=60.0, **knobs)


def work(name: str, gpus_milli: int, *flavors: str | None, size: int = 1, **more: Any) -> Workload:
    group = Group("workers", 1, tuple(Option(flavor, Resources(gpus_milli)) for flavor in flavors or (None,)))
    return Workload(name, name, "train", (group,), min_size=size, max_size=size, **more)


def submitted(given: Given, *workloads: Workload) -> list[Any]:
    """The decisions of passes over two quanta, all of which are carried out."""
    policies, decided = load(given.names), list[Any]()
    for workload in workloads:
        given.now += 1.0
        given.state.apply(facts.Submitted(given.now, workload))
    for _ in range(6):
        given.now += 30.0
        plan = turn(given.state, [facts.Tick(given.now)], policies)
        decided += plan.decisions
        for each in plan.decisions:
            if isinstance(each, decisions.Launch):
                given.state.apply(facts.Bound(given.now, each.gang, each.attempt))
            elif isinstance(each, decisions.Preempt):
                given.state.apply(facts.Released(given.now, each.gang, each.attempt))
        assert violations(given.state) == []
    return decided


def test_the_better_one_gets_the_flavor_that_is_its_second_choice() -> None:
    given = ranked("1 node x 1 A, 1 node x 1 B").running("runs", 1, flavor="A", priority=90)
    submitted(given, work("low", 1000, "B", priority=10), work("high", 1000, "A", "B", priority=50))
    assert given.phase("high") == "running" and given.phase("low") == "waiting"


def test_shares_of_a_device_are_never_more_than_the_device() -> None:
    given = ranked("1 node x 4")
    submitted(given, work("thirds", 750, size=2, priority=20), work("halves", 500, size=3, priority=10))
    submitted(given, work("more", 500, size=2, priority=50), work("whole", 2000, priority=60))
    assert violations(given.state) == []


def test_nobody_leaves_for_whole_gpus_that_shares_of_devices_leave_no_room_for() -> None:
    given = ranked("1 node x 4")
    submitted(given, work("a", 500, priority=90), work("b", 500, size=2, priority=10, preemptible=False))
    submitted(given, work("low", 1000, size=2, priority=20))
    decided = submitted(given, work("high", 1000, size=4, priority=80))
    assert not [each for each in decided if isinstance(each, (decisions.Preempt, decisions.Withdraw))]


def test_an_elastic_gang_is_not_stopped_for_one_that_could_not_grow_there() -> None:
    given = ranked("1 node x 2 A, 1 node x 2 B")
    given.running("b", 2, elastic=(2, 2), flavor="B", priority=10)
    given.running("a", 2, elastic=(1, 4), flavor="A", priority=90).after(120.0)
    decided = submitted(given)
    assert not [each for each in decided if isinstance(each, decisions.Preempt)]


def test_who_is_due_less_than_its_least_starts_where_nobody_else_takes_the_gpus() -> None:
    given = ranked("1 node x 3", fair_share="guarantee_then_weight").policies(elasticity="goodput")
    for name in ("a", "b", "c"):
        given.queue(name, gpus=0)
    given.pending("pair", 2, elastic=(2, 4), queue="a").pending("b", 64, queue="b").pending("c", 64, queue="c")
    submitted(given)
    assert given.phase("pair") == "running", "a third of the cluster is one GPU, but the other two can never start"


def test_what_somebody_leaves_in_a_pass_is_shared_out_in_it() -> None:
    given = ranked("1 node x 4").running("old", gpus=4, elastic=(1, 4)).pending("next", gpus=2, elastic=(2, 4))
    old = given.state.workloads["old"].workload
    given.state.apply(facts.Submitted(given.now, replace(old, groups=work("old", 4000).groups), replaces=True))
    assert given.turn().decisions == [Preempt("old", "superseded"), Nominate("next", 4)]


def test_nobody_is_evicted_by_rank_because_others_than_ours_take_gpus() -> None:
    """By the number `high` would have its three GPUs, so it ranks before those that run; no node has them."""
    given = ranked("2 nodes x 2").running("one", 2, priority=10).running("two", 2, priority=10)
    submitted(given)
    given.after(60.0, facts.ForeignUse(given.now, "n-0", Resources(1000)))
    assert submitted(given, work("high", 3000, priority=90)) == []
    assert given.phase("one") == given.phase("two") == "running"


def test_an_elastic_gang_has_its_least_before_work_of_fixed_size_and_a_lower_priority() -> None:
    given = ranked("1 node x 2", hold_after_s=1e6)
    submitted(given, work("low0", 1000, priority=10), work("low1", 1000, priority=10), work("low2", 1000, priority=10))
    equal = replace(work("equal", 1000, size=2, priority=10), max_size=4)
    assert not [each for each in submitted(given, equal) if isinstance(each, decisions.Preempt)]
    decided = submitted(given, replace(work("high", 1000, size=2, priority=90), max_size=4))
    assert [each.gang for each in decided if isinstance(each, decisions.Preempt)] == ["low0/0", "low1/0"]
    assert given.phase("high") == "running" and given.state.gangs["high/0"].size == 2
    assert not [each for each in submitted(given) if isinstance(each, decisions.Preempt)], "and keeps it"


@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
def test_fixed_work_of_a_higher_priority_has_the_place_of_elastic_work_that_has_its_least(elasticity: str) -> None:
    """It became no smaller, and elastic work was not ranked: 90 waited for 10."""
    given = ranked("2 nodes x 4", hold_after_s=1e6).policies(elasticity=elasticity)
    given.running("low", 2, elastic=(2, 4), priority=10).running("equal", 4, priority=90)
    decided = submitted(given, work("high", 4000, priority=90))
    assert [each.gang for each in decided if isinstance(each, decisions.Preempt)] == ["low/0"]
    assert (given.phase("high"), given.phase("equal"), given.phase("low")) == ("running", "running", "waiting")


def test_a_higher_priority_that_fits_by_number_alone_has_the_place_of_a_lower_one() -> None:
    """Twelve GPUs are enough for three times four, and of each node two are left."""
    given = ranked("2 nodes x 6", hold_after_s=1e6)
    submitted(given, work("low0", 4000, priority=10), work("low1", 4000, priority=10))
    assert not [
        each for each in submitted(given, work("like", 4000, priority=10)) if isinstance(each, decisions.Preempt)
    ]
    decided = submitted(given, work("high", 4000, priority=90))
    assert len([each for each in decided if isinstance(each, decisions.Preempt)]) == 1
    phases = [given.phase(name) for name in ("high", "low0", "low1", "like")]
    assert phases[0] == "running" and sorted(phases[1:]) == ["running", "waiting", "waiting"]


def test_an_elastic_gang_does_not_start_on_what_fixed_work_of_a_higher_priority_waits_for() -> None:
    given = ranked("1 node x 1").running("first", 1, priority=90)
    given.state.apply(facts.Submitted(given.now, work("fixed", 1000, priority=50)))
    given.state.apply(facts.Submitted(given.now, replace(work("elastic", 1000, priority=10), max_size=4)))
    given.state.apply(facts.Finished(given.now + 1.0, "first/0", 1, "succeeded"))
    given.now += 1.0
    submitted(given)
    assert (given.phase("fixed"), given.phase("elastic")) == ("running", "waiting")


def test_what_those_leave_who_are_cancelled_is_kept_for_who_ranks_first() -> None:
    given = ranked("1 node x 2").running("a", 1, priority=50).running("b", 1, priority=50)
    given.state.apply(facts.Submitted(given.now, work("high", 2000, priority=90)))
    given.after(1.0, facts.Cancelled(given.now, "a"), facts.Cancelled(given.now, "b"))
    policies = load(given.names)
    turn(given.state, [facts.Submitted(given.now, work("low", 1000, priority=10))], policies)
    for name in ("a/0", "b/0"):
        given.now += 1.0
        turn(given.state, [facts.Released(given.now, name, 1)], policies)
    assert (given.phase("high"), given.phase("low")) == ("starting", "waiting")


@pytest.mark.parametrize("how", ["cancelled", "drained"])
def test_what_somebody_leaves_is_the_share_of_elastic_work_of_a_higher_priority(how: str) -> None:
    """Nothing was free, so it was to hold nothing, and all of what was left went to those that came meanwhile."""
    given = ranked("1 node x 4").running("runs", 4, priority=50)
    given.state.apply(facts.Submitted(given.now, replace(work("high", 1000, size=3, priority=90), max_size=4)))
    given.turn()
    leaves = facts.Cancelled(given.now, "runs") if how == "cancelled" else decisions.Stop("runs/0", 1, 60.0, "runtime")
    if how == "drained":
        given.state.apply(leaves)
    assert given.turn(*([leaves] if how == "cancelled" else [])).decisions[-1] == Nominate("high", 4)
    low = (work("low", 1000, priority=10), replace(work("most", 1000, priority=10, preemptible=False), max_size=4))
    assert given.turn(*(facts.Submitted(given.now, one) for one in low)).decisions == []
    assert given.turn(facts.Released(given.now, "runs/0", 1)).decisions == [Launch("high", 4)]


@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
@pytest.mark.parametrize("flavors", [("A",), ("A", "B")])
def test_elastic_work_of_a_higher_priority_gets_its_share_though_gpus_are_free_that_it_cannot_use(
    elasticity: str, flavors: tuple[str, ...]
) -> None:
    """The free ones of another flavor counted as if they were for it, and some policies give everybody the least."""
    given = ranked(", ".join(f"1 node x 4 {flavor}" for flavor in flavors)).policies(elasticity=elasticity)
    submitted(given, replace(work("low", 1000, "A", size=3, priority=10), max_size=4))
    decided = submitted(given, replace(work("high", 1000, "A", size=3, priority=90), max_size=4))
    assert [each.gang for each in decided if isinstance(each, decisions.Preempt)] == ["low/0"]
    assert (given.phase("high"), given.phase("low")) == ("running", "waiting")


def test_who_may_not_be_evicted_does_not_take_what_a_higher_priority_waits_for() -> None:
    """One GPU of two is free until the next ranking."""
    given = ranked("1 node x 2").running("a", 1, priority=50).running("b", 1, priority=50)
    given.state.apply(facts.Submitted(given.now, work("high", 2000, priority=90)))
    policies = load(given.names)
    fixed = work("fixed", 1000, priority=10, preemptible=False)
    equal = work("equal", 1000, priority=90, preemptible=False)
    turn(given.state, [facts.Finished(given.now, "a/0", 1, "succeeded"), facts.Submitted(given.now, fixed)], policies)
    assert given.phase("fixed") == "waiting"
    assert given.decide().why("fixed") == "would delay high, which is planned to start first"
    turn(given.state, [facts.Submitted(given.now, work("low", 1000, priority=10))], policies)
    assert given.phase("low") == "starting", "whoever may be evicted uses it meanwhile"
    given.now += 1.0
    turn(given.state, [facts.Finished(given.now, "low/0", 1, "succeeded"), facts.Submitted(given.now, equal)], policies)
    assert given.phase("equal") == "starting", "of equals the hold binds nobody who has not waited long"
    submitted(given)
    assert given.phase("fixed") == "waiting" != given.phase("equal")


def test_work_that_may_not_be_evicted_and_streams_by_does_not_starve_a_gang() -> None:
    given = ranked("1 node x 2", hold_after_s=100.0)
    given.running("a", 1, preemptible=False).running("b", 1, preemptible=False).pending("pair", 2).after(300.0)
    policies = load(given.names)
    turn(given.state, [facts.Finished(given.now, "a/0", 1, "succeeded"), *_stream(given, 2)], policies)
    assert {given.phase("pair"), given.phase("s0"), given.phase("s1")} == {"waiting"}, "a place is kept"
    given.now += 60.0
    turn(given.state, [facts.Finished(given.now, "b/0", 1, "succeeded")], policies)
    turn(given.state, [facts.Tick(given.now + 60.0)], policies)
    assert given.phase("pair") == "starting" and given.phase("s0") == "waiting"


def _stream(given: Given, count: int) -> list[facts.Fact]:
    return [facts.Submitted(given.now, work(f"s{number}", 1000, preemptible=False)) for number in range(count)]


def evicted_in(given: Given, hours: int) -> list[tuple[str, str]]:
    """(who, for whom), with a ranking a minute, each told thing done at once."""
    policies, found = load(given.names), list[tuple[str, str]]()
    for _ in range(hours * 60):
        given.now += 60.0
        happened: list[Any] = [facts.Tick(given.now)]
        while happened:
            plan, happened = turn(given.state, happened, policies), []
            for each in plan.decisions:
                if isinstance(each, decisions.Launch):
                    happened.append(facts.Bound(given.now, each.gang, each.attempt))
                elif isinstance(each, decisions.Preempt):
                    found.append((each.gang, each.beneficiary))
                    happened.append(facts.Released(given.now, each.gang, each.attempt))
    return found


@pytest.mark.parametrize("before", [0, 40])
def test_a_day_of_unsaved_work_is_not_lost_where_two_that_have_just_begun_would_do(before: int) -> None:
    """Without run times the old one had attained most and ranked last, so that it left for whoever came. Those that
    have just begun would not have done, either, had it ranked after them: they would have come back in its place.
    `before`: how many ran earlier, which the ordering remembers."""
    given = cluster("1 node x 10").scheduling(preemption=BY_RANK, order="best_effort", quantum_s=60.0)
    for number in range(before):
        given.running(f"gone{number}", 1).after(1.0, facts.Finished(given.now, f"gone{number}/0", 1, "succeeded"))
    given.running("old", 8).after(25 * 3600.0).running("fresh0", 1).running("fresh1", 1).after(60.0)
    found = evicted_in(given.pending("in", 2), 6)
    assert sorted(found) == [("fresh0/0", "in/0"), ("fresh1/0", "in/0")], "once, when `in` is owed a start"


def test_who_has_run_long_and_saves_often_makes_way_for_who_has_just_come() -> None:
    given = cluster("1 node x 10").scheduling(preemption=BY_RANK, order="best_effort", quantum_s=60.0)
    given.running("old", 8, saves_every_s=600.0).after(25 * 3600.0).running("fresh", 2).after(60.0)
    assert evicted_in(given.pending("in", 2), 6) == [("old/0", "in/0")]
    given = cluster("1 node x 10").scheduling(preemption=BY_RANK, order="best_effort", quantum_s=60.0)
    given.running("old", 8).after(25 * 3600.0).running("fresh", 2)
    given.after(60.0, facts.CheckpointPublished(given.now, "old/0", 1, step=9))
    assert evicted_in(given.pending("in", 2), 6) == [("old/0", "in/0")]


@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
def test_who_can_grow_on_one_flavor_alone_has_no_share_of_another(elasticity: str) -> None:
    """A gang on all four of B was to have eight, so that one on A stayed at four of eight, and four stood idle."""
    given = ranked("2 nodes x 4 A, 1 node x 4 B", hold_after_s=1e6).policies(elasticity=elasticity)
    given.running("b", 4, elastic=(2, 8), flavor="B", priority=90)
    given.pending("any", 4, elastic=(4, 4), priority=50).pending("last", 2, elastic=(2, 8), priority=10)
    submitted(given)
    assert [given.state.gangs[f"{name}/0"].size for name in ("b", "any", "last")] == [4, 4, 4]


@pytest.mark.parametrize("flavors", [("A", "B"), ("B", "A")])
def test_an_elastic_gang_starts_beside_work_of_a_higher_priority_that_needs_one_of_its_flavors(
    flavors: tuple[str, str],
) -> None:
    """Its share was right by the number, over both flavors, and it took the one that the other needs, which waited for
    the next ranking and evicted it then."""
    given = cluster("1 node x 4 A, 1 node x 4 B").policies(ordering="priority").rules("by_rank", "any")
    given.scheduling(quantum_s=60.0).running("long", 2, flavor="B", priority=95)
    given.running("old", 4, flavor="A", priority=95).running("other", 2, flavor="B", priority=95)
    options = tuple(Option(flavor, Resources(1000)) for flavor in flavors)
    group = Group("w", 2, options)
    both = Workload("e", "e", "train", (group,), priority=50, min_size=2, max_size=3)
    given.turn(facts.Submitted(given.now, both))
    given.pending("high", 2, flavor="A", priority=90).turn()
    for name in ("old/0", "other/0"):
        given.state.apply(facts.Finished(given.now, name, 1, "succeeded"))
    given.after(120.0)
    assert sorted(given.turn().decisions, key=str) == [Launch("e", 2), Launch("high", 2)]


@pytest.mark.parametrize("priority", [50, 90])
def test_an_elastic_gang_makes_way_in_its_queue_though_gpus_of_another_queue_are_idle(priority: int) -> None:
    """What fixed work would start on was taken from the cluster, never from what its queue may use: beside idle GPUs of
    another queue elastic work of the lowest priority kept all of a quota for ever."""
    given = cluster("1 node x 8").queue("a", 2, borrow=0).queue("b", 6).policies(ordering="priority")
    given.rules("by_rank", "any").scheduling(quantum_s=60.0)
    given.running("e", 2, (1, 4), queue="a", priority=20)
    given.pending("high", 2, queue="a", priority=priority)
    given.after(120.0)
    assert given.turn().decisions == [Preempt("e", "in_queue_rank"), Nominate("high", 2)]


@pytest.mark.parametrize(("ordering", "gpus", "left"), [("priority", 8, 0), ("priority", 6, 2), ("fair_share", 8, 0)])
def test_one_of_a_higher_priority_for_which_both_fixed_and_elastic_work_must_leave_starts(
    ordering: str, gpus: int, left: int
) -> None:
    """The ranking took what the elastic gang has for its own, and elasticity what the fixed one has: each half of the
    room waited for the other, and nobody left."""
    given = cluster("1 node x 8").policies(ordering=ordering).rules("by_rank", "any").scheduling(quantum_s=60.0)
    given.running("fixed", 4, priority=20).running("e", 4, elastic=(1, 4), priority=20).after(100.0)
    given.pending("high", gpus, priority=90).after(100.0).settle()
    assert given.phase("high") == "running" and given.phase("fixed") == "waiting"
    assert given.state.gangs["e/0"].size == left


def test_one_that_has_waited_long_starts_though_fixed_and_elastic_work_must_leave_for_it() -> None:
    given = cluster("1 node x 2").policies(ordering="priority").rules("by_rank", "any")
    given.scheduling(quantum_s=60.0, hold_after_s=600.0)
    given.running("fixed", 1).running("e", 1, elastic=(1, 2)).after(4000.0).pending("old", 2)
    given.turn()
    assert given.after(300.0).settle().phase("old") == "waiting"
    given.after(1500.0).settle()
    assert given.after(60.0).settle().phase("old") == "running"


@pytest.mark.parametrize("elastic", [None, (2, 4)])
def test_an_owner_takes_its_own_back_at_the_next_ranking_whether_it_is_elastic_or_not(
    elastic: tuple[int, int] | None,
) -> None:
    """An elastic one was ranked where a lower priority runs, and not where another queue borrows."""
    given = cluster("1 node x 2").policies(ordering="priority").rules("by_rank", "any")
    given.queues += [Queue("owns", cohort="all", quotas=(("*", Quota(2000)),)), Queue("borrows", cohort="all")]
    given.scheduling(quantum_s=60.0).running("other", 1, queue="borrows")
    given.pending("owner", 2, elastic=elastic, queue="owns").after(130.0)
    assert given.turn().decisions == [Preempt("other", "in_queue_rank"), Nominate("owner", 2)]


def test_an_owner_that_fits_by_number_and_on_no_node_takes_its_own_back_at_the_next_ranking() -> None:
    """That was looked for below a priority of its own queue alone."""
    given = cluster("1 node x 4 A, 1 node x 2 B").policies(ordering="priority").rules("by_rank", "any")
    given.queues += [Queue("owns", cohort="all", quotas=(("*", Quota(6000)),)), Queue("borrows", cohort="all")]
    given.scheduling(quantum_s=60.0).running("other", 2, queue="borrows", flavor="A")
    given.pending("owner", 4, queue="owns").after(130.0)
    assert given.turn().decisions == [Preempt("other", "in_queue_rank"), Nominate("owner", 4)]


@pytest.mark.parametrize("rule", ["by_rank", "lower_priority", "never"])
@pytest.mark.parametrize("named", ["A", None])
def test_an_owner_takes_its_own_back_whether_it_names_the_flavor_or_not(rule: str, named: str | None) -> None:
    """Quota is of flavors, and one that names none had nowhere any of its own to be counted by."""
    given = cluster("1 node x 4 A, 1 node x 4 B").policies(ordering="priority").rules(rule, "any")
    given.queues.append(Queue("owns", cohort="all", quotas=(("A", Quota(4000)), ("B", Quota(0)))))
    given.queues.append(Queue("borrows", cohort="all", quotas=(("A", Quota(0)), ("B", Quota(4000)))))
    given.scheduling(quantum_s=60.0 if rule == "by_rank" else 0.0)
    given.running("other", 4, queue="borrows", flavor="A").running("own", 4, queue="borrows", flavor="B")
    given.pending("owner", 4, queue="owns", flavor=named).after(130.0)
    assert [type(each).__name__ + " " + each.name for each in given.turn().decisions] == [
        "Preempt other",
        "Nominate owner",
    ]


def test_one_that_names_no_flavor_is_told_what_is_nearest_to_a_start() -> None:
    """It was told that its queue may never have as many, which is so of the flavor that was looked at last."""
    given = cluster("1 node x 8 B, 1 node x 2 A").rules()
    given.queues.append(Queue("q", cohort="all", quotas=(("A", Quota(2000)), ("B", Quota(8000)))))
    given.running("other", 4, queue="q", flavor="B").pending("waits", 5, queue="q", flavor=None)
    assert given.turn().code("waits") == "quota"


def test_who_has_waited_long_and_would_borrow_takes_nothing_that_another_queue_owns() -> None:
    """What it would borrow counted as if the owner held nothing, and the owner left for it."""
    given = cluster("1 node x 4").policies(ordering="priority", elasticity="even").rules("by_rank", "any")
    given.queue("owns", 3, cohort="all").queue("borrows", 1, cohort="all")
    given.scheduling(quantum_s=60.0, hold_after_s=1800.0)
    given.running("owner", 4, elastic=(3, 6), queue="owns", priority=10).settle()
    given.pending("large", 4, queue="borrows", priority=10).settle().after(400.0)
    given.pending("long", 3, elastic=(3, 5), queue="borrows", priority=90).settle()
    for _ in range(8):
        given.after(1800.0).settle().after(60.0).settle()
    assert given.phase("owner") == "running" and given.phase("long") == "waiting"


def test_elastic_work_of_another_queue_has_no_share_of_what_an_owner_waits_for() -> None:
    """Both shares together were more than there is, and each kept the other from having it."""
    given = cluster("1 node x 2").policies(ordering="priority", elasticity="even").rules("by_rank", "any")
    given.queues += [Queue("owns", cohort="all", quotas=(("*", Quota(2000)),)), Queue("borrows", cohort="all")]
    given.scheduling(quantum_s=60.0).running("other", 2, elastic=(1, 4), queue="borrows")
    given.pending("owner", 2, elastic=(2, 3), queue="owns").after(130.0).settle()
    assert given.after(130.0).settle().phase("owner") == "running"


def test_no_gpus_stay_idle_for_one_that_may_not_take_the_place_of_who_runs() -> None:
    """It had made way for one that had waited long and may not have that one leave again: all that was left beside that
    one was kept for it."""
    given = cluster("1 node x 8").policies(ordering="priority").rules("by_rank", "any")
    given.scheduling(quantum_s=60.0, hold_after_s=600.0).running("small", 8, elastic=(3, 9)).settle()
    given.pending("large", 6).settle().after(400.0).pending("first", 3, elastic=(3, 7)).settle()
    for _ in range(10):
        given.after(1801.0).settle().after(61.0).settle()
    assert [name for name in ("small", "large", "first") if given.phase(name) == "waiting"] == ["large"]


def test_elastic_work_grows_before_a_lower_priority_starts() -> None:
    """It was told of a share that fixed work of a lower priority then took, for which it had one of its own leave."""
    given = cluster("1 node x 8").policies(ordering="priority", elasticity="even").rules("by_rank", "any")
    given.scheduling(quantum_s=60.0).running("e", 3, elastic=(1, 8), priority=50).running("other", 5, priority=50)
    given.after(100.0).pending("low", 2, priority=10)
    given.turn(facts.Finished(given.now, "other/0", 1, "succeeded"))
    given.settle()
    assert given.state.gangs["e/0"].size == 8 and given.phase("low") == "waiting"


@pytest.mark.parametrize("elasticity", ["even", "goodput", "marginal_throughput"])
@pytest.mark.parametrize("fixed, starts", [(8, ["elastic"]), (6, ["elastic", "fixed"])])
def test_elastic_work_comes_before_fixed_work_that_was_submitted_after_it(
    elasticity: str, fixed: int, starts: list[str]
) -> None:
    """Nothing was left for the older one beside what the younger one would start on, which was counted first."""
    given = ranked("1 node x 8").policies(elasticity=elasticity).running("first", 8, priority=90)
    given.pending("elastic", 2, elastic=(2, 6)).after(10.0).pending("fixed", fixed)
    plan = given.turn(facts.Finished(given.now, "first/0", 1, "succeeded"))
    assert [each.name for each in plan.decisions if isinstance(each, Launch)] == starts


def test_fixed_work_comes_before_elastic_work_that_was_submitted_after_it() -> None:
    given = ranked("1 node x 8").running("first", 8, priority=90)
    given.pending("fixed", 8).after(10.0).pending("elastic", 2, elastic=(2, 6))
    plan = given.turn(facts.Finished(given.now, "first/0", 1, "succeeded"))
    assert plan.decisions == [Launch("fixed", 8)]


def test_of_two_elastic_gangs_for_which_there_is_room_for_one_the_older_one_starts() -> None:
    """The one of whose class somebody had waited for longer did, which the older one had left and come back to."""
    given = ranked("1 node x 1").running("old", 1, elastic=(1, 2)).pending("young", 1, elastic=(1, 3))
    node = given.state.nodes["n-0"].node
    given.turn(facts.NodeLost(given.now, "n-0"))
    given.turn(facts.Released(given.now, "old/0", 1))
    assert [given.phase(name) for name in ("old", "young")] == ["waiting", "waiting"]
    assert given.after(60.0).turn(facts.NodeJoined(given.now, node)).decisions == [Launch("old", 1)]
