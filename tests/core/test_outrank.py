"""Nobody is evicted for somebody who then does not get the place: because another one was asked later who might evict
it, because its own victim comes back with the better right, or because two rules take from one another by turns."""

from __future__ import annotations

from ledger import Given, Launch, Nominate, Preempt, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import Cohort, Configuration, PreemptionRules, Queue, Quota, Reservation, Scheduling
from llmsched.core.message import workload
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.policies.registry import load


def by_run_time(nodes: str) -> Given:
    """A line in which the short ones come first, and a priority that may evict a lower one."""
    return cluster(nodes).rules(within_queue="lower_priority").policies(ordering="shortest_remaining")


def test_room_is_made_for_who_may_keep_it_though_the_shorter_one_is_asked_first() -> None:
    given = by_run_time("1 node x 4").running("low", 4, priority=10, grace_s=60.0)
    given.pending("short", 4, priority=50, estimated_runtime_s=60.0).pending("high", 3, priority=90)
    decided = given.turn()
    assert decided.decisions == [Preempt("low", "in_queue_priority"), Nominate("high", 3)]
    told = decided.plan.decisions[0]
    assert isinstance(told, decisions.Preempt) and told.beneficiary == "high/0"
    assert told.why is not None and dict(told.why.args)["who"] == workload("high")
    assert decided.code("short") == "nodes"
    assert given.turn(facts.Released(given.now, "low/0", 1)).decisions == [Launch("high", 3)]


def test_whose_room_the_better_one_does_not_need_stays() -> None:
    given = by_run_time("1 node x 4").running("old", 2, priority=10).running("new", 2, priority=10)
    given.pending("short", 4, priority=50, estimated_runtime_s=60.0).pending("high", 2, priority=90)
    decided = given.turn()
    assert [type(each) for each in decided.decisions] == [Preempt, Nominate]
    assert decided.decisions[1] == Nominate("high", 2)
    assert len(given.state.vacating) == 1


def test_who_gives_up_a_promise_finds_another_place_in_the_same_pass() -> None:
    given = by_run_time("2 nodes x 4").running("one", 4, priority=10).running("two", 4, priority=20)
    given.pending("short", 4, priority=50, estimated_runtime_s=60.0)
    given.pending("high", 4, priority=90).pending("higher", 4, priority=95)
    decided = given.turn()
    assert {each.name for each in decided.decisions if isinstance(each, Nominate)} == {"high", "higher"}
    assert sum(isinstance(each, Preempt) for each in decided.decisions) == 2


def moved_together() -> Given:
    """`whole` needs a node of which two hold halves; `half` comes later and would fit where the one moved is to go."""
    given = cluster("2 nodes x 4").scheduling(consolidation=True)
    given.policies(ordering="priority", placement="spread")
    given.rules(within_queue="lower_priority")
    given.running("one", 2, priority=90, grace_s=60.0).running("two", 2, priority=90, grace_s=60.0)
    return given.pending("whole", 4, priority=50).pending("half", 2, priority=50)


def test_the_new_place_of_who_is_moved_is_kept_until_it_begins_there() -> None:
    given = moved_together()
    decided = given.turn()
    [mover] = [each.name for each in decided.decisions if isinstance(each, Preempt)]
    assert decided.decisions == [Preempt(mover, "consolidation"), Nominate("whole", 4)]
    assert given.turn(facts.Tick(given.now + 5.0)).decisions == []
    assert given.turn(facts.Released(given.now + 6.0, f"{mover}/0", 1)).decisions == [
        Launch("whole", 4),
        Launch(mover, 2),
    ]
    assert not given.state.moved


def test_who_was_moved_and_is_cancelled_keeps_nothing() -> None:
    given = moved_together()
    given.turn()
    [gang] = given.state.moved
    given.turn(facts.Cancelled(given.now, gang.removesuffix("/0"), "ann"))
    assert Launch("half", 2) in given.turn(facts.Released(given.now, gang, 1)).decisions
    assert not given.state.moved


def levelled(reclaim: str) -> Given:
    """`owner` holds no more than its cohort owns, `guest` owns nothing, and shares of the whole are levelled."""
    given = cluster("1 node x 8")
    given.queue("owner", 1, cohort="house").queue("guest", 0)
    given.scheduling(fair_share="drf_total", preempt_to_fair_share=True, preemption=PreemptionRules(reclaim=reclaim))
    state = given.state
    queues = (
        Queue("owner", cohort="house", quotas=(("*", Quota(1000)),)),
        Queue("guest", quotas=(("*", Quota(0)),)),
    )
    house = Cohort("house", quotas=(("*", Quota(5000)),))
    state.apply(facts.Configured(0.0, Configuration(1, queues, (house,), scheduling=given.knobs)))
    for number in range(3):
        given.running(f"mine{number}", 2, queue="owner")
    return given


def test_shares_are_not_levelled_with_what_its_owner_would_take_back() -> None:
    given = levelled("any").pending("theirs", 3, queue="guest")
    assert given.decide().decisions == []
    assert given.decide().code("theirs") == "quota"


def test_what_is_beyond_the_own_of_queue_and_cohort_is_levelled() -> None:
    given = levelled("any").running("more", 2, queue="owner").pending("theirs", 2, queue="guest")
    assert [type(each) for each in given.decide().decisions] == [Preempt, Nominate]
    given.settle()
    assert given.phase("theirs") == "running"


def test_who_starts_moves_a_reservation_and_the_next_pass_comes_at_once() -> None:
    """Until `holder` starts, the reservation is to be where nobody runs; then on its node, and the other is open."""
    given = cluster("1 node x 4, 1 node x 2 B").queue("q", 8).queue("r", 0)
    state = given.state
    booked = Reservation("booked", 500.0, 100.0, queue="q", gpus_milli=1000)
    rules = Scheduling(preemption=PreemptionRules(reclaim="any"))
    queues = tuple(state.quota.queues.values())
    state.apply(facts.Configured(0.0, Configuration(1, queues, (), (booked,), scheduling=rules)))
    given.pending("holder", 4, queue="q").pending("guest", 2, queue="r")
    plan = decide(state, load(given.names))
    starts = [each.gang for each in plan.decisions if isinstance(each, decisions.Launch)]
    assert starts == ["holder/0"] and plan.asks_again
    given.turn()
    assert given.turn().decisions == [Launch("guest", 2)]


def beside_heavy(first: int, second: int, wants: int) -> Given:
    """Two queues that own nothing and level what they borrow; work of `heavy` counts half."""
    given = cluster(f"1 node x {first + second}").queue("heavy", 0, weight=2.0).queue("light", 0)
    given.rules(reclaim="any").scheduling(fair_share="weighted_drf_over_borrowed").policies(ordering="priority")
    given.running("v1", first, queue="light").running("v2", second, queue="light")
    return given.pending("in", wants, queue="heavy")


def test_nobody_is_evicted_for_somebody_whom_it_could_evict_when_it_is_back() -> None:
    """Two made room for one by fair share. The smaller of them then had the right to evict it, as its queue had come
    down to nothing, and so round and round: two singles and a pair evicted one another until an hour's bound."""
    given = beside_heavy(1, 3, 4)
    assert given.decide().decisions == []
    assert given.settle().phase("in") == "waiting"


def test_the_set_of_which_nobody_could_take_its_place_back_leaves() -> None:
    given = beside_heavy(1, 3, 3)
    assert given.decide().decisions == [Preempt("v2", "fair_share"), Nominate("in", 3)]
    given.settle()
    assert (given.phase("in"), given.phase("v1"), given.phase("v2")) == ("running", "running", "waiting")


def test_no_promise_is_kept_on_the_places_of_who_was_moved_for_it() -> None:
    """`small` was promised what `whole` leaves of a node, and found room on the new place of `moved`, when that came to
    begin there. So `moved` took back its old one, was moved again, and so for ever."""
    given = cluster("1 node x 8 A, 2 nodes x 4 B").scheduling(consolidation=True)
    given.policies(ordering="priority", placement="spread")
    pairs = (Group("workers", 1, (Option(None, Resources(2000)),)),)
    for name, size, node in (("moved", 3, "a-0"), ("fixed", 1, "b-0")):
        moves = name == "moved"
        spec = Workload(name, name, "train", pairs, min_size=size, max_size=size, priority=90, preemptible=moves)
        given.state.apply(facts.Submitted(0.0, spec))
        given.state.apply(decisions.Launch(f"{name}/0", 1, (Placed("workers", node, 0),) * size))
        given.state.apply(facts.Bound(0.0, f"{name}/0", 1))
    given.pending("whole", 5).now += 1.0
    singles = (Group("workers", 1, (Option("B", Resources(1000)), Option("A", Resources(1000)))),)
    given.state.apply(facts.Submitted(given.now, Workload("small", "small", "train", singles, min_size=3, max_size=3)))
    decided = given.turn().decisions
    assert decided == [Preempt("moved", "consolidation"), Nominate("whole", 5), Nominate("small", 3)]
    given.turn(facts.Released(given.now, "moved/0", 1))
    assert [given.phase(name) for name in ("moved", "whole", "small")] == ["starting"] * 3
