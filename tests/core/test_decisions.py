"""What one pass decides, as ledger entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger import Launch, Nominate, Other, Preempt, Resize, cluster

from llmsched.core.commands import Cancel, Configure, Refusal, ScaleTo, Submit, check
from llmsched.core.configuration import Cohort, Configuration, NodeType, PolicyNames, Queue, Quota, Reservation
from llmsched.core.facts import (
    Bound,
    Configured,
    Finished,
    LaunchFailed,
    LoadObserved,
    Lost,
    NodeJoined,
    NodeLost,
    Released,
    Scaled,
    Submitted,
    Tick,
)
from llmsched.core.nodes import Node
from llmsched.core.render import text
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.stages import lesser, place
from llmsched.core.state import State, Status
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows
from llmsched.core.workload import Autoscaling, Group, Option, Topology, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())


def test_shrinks_an_elastic_gang_before_evicting_anyone() -> None:
    given = cluster("2 nodes x 8 A100").queue("lab", gpus=16)
    given.running("tune", gpus=16, elastic=(8, 16), step=8)
    given.pending("chat-replica", gpus=4, priority=80)

    plan = given.decide()

    assert plan.decisions == [Resize("tune", to=8), Nominate("chat-replica", gpus=4)]
    assert plan.why("chat-replica") == "waits for tune to release 8 GPUs"
    assert given.turn().why("chat-replica") == "waits for tune to release 8 GPUs"
    assert given.decide().why("chat-replica") == "waits for tune to release 8 GPUs", "a pass later it leaves no more"


@pytest.mark.parametrize(("kind", "keeps"), [("ray", True), ("task", False)])
def test_of_a_ray_program_the_first_bundle_goes_last_wherever_room_is_wanted(kind: str, keeps: bool) -> None:
    given = cluster("3 nodes x 1").running("own", gpus=3, elastic=(1, 3), kind=kind)
    gang = given.state.gangs["own/0"]
    head = gang.held[0]
    for size in (1, 2):
        left = lesser.keeps(gang, size, gang.held, [head.node])
        assert len(left) == size and (head in left) is keeps


def test_a_victim_counts_for_one_beneficiary_only() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.running("low", gpus=4, priority=10)
    given.pending("one", gpus=4, priority=80)
    given.pending("two", gpus=4, priority=80)
    assert given.turn().decisions == [Preempt("low", "in_queue_priority"), Nominate("one", gpus=4)]
    assert given.turn().decisions == []
    given.after(1.0, Released(given.now + 1.0, "low/0", 1))
    assert given.turn().decisions == [Launch("one", gpus=4)]


def test_those_who_leave_anyway_are_promised_before_anybody_is_evicted() -> None:
    given = cluster("2 nodes x 4").queue("q", gpus=8).rules(within_queue="lower_priority")
    given.running("ending", gpus=4, priority=10)
    given.running("low", gpus=4, priority=10)
    given.state.apply(check(given.state, Cancel(given.now, "ending")))  # type: ignore[arg-type]
    given.pending("in", gpus=4, priority=80)
    assert given.decide().decisions == [Other("Stop", "ending"), Nominate("in", gpus=4)]


def test_an_evicted_gang_does_not_take_back_what_was_promised() -> None:
    given = cluster("1 node x 2").queue("own", gpus=2).queue("guest", gpus=0).rules(reclaim="any")
    given.running("guest", gpus=2, queue="guest")
    given.pending("owner", gpus=2, queue="own")
    given.settle()
    assert given.phase("owner") == "running" and given.phase("guest") == "waiting"


def test_a_resize_that_could_not_begin_again_frees_what_it_held() -> None:
    """Found with an elastic task: "did not start" came after a resize, and the gang was resizing for ever."""
    given = cluster("1 node x 4").queue("q", gpus=4)
    given.running("ran", gpus=4)
    given.state.apply(LaunchFailed(given.now + 1.0, "ran/0", 1, "no-capacity", "no place"))
    assert given.state.gangs["ran/0"].held == ()
    assert given.phase("ran") == "waiting"


def test_a_success_while_being_evicted_is_a_success() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.running("low", gpus=4, priority=10)
    given.pending("high", gpus=4, priority=80)
    given.turn()
    given.after(1.0, Finished(given.now + 1.0, "low/0", 1, "succeeded"), Released(given.now + 1.0, "low/0", 1))
    assert given.phase("low") == "succeeded"


def test_what_has_ended_stays_ended_whatever_is_said_later() -> None:
    given = cluster("1 node x 4")
    given.running("a", gpus=1)
    given.after(1.0, Finished(given.now + 1.0, "a/0", 1, "succeeded"))
    given.after(1.0, Lost(given.now + 1.0, "a/0", 1, "late"), Finished(given.now + 1.0, "a/0", 1, "failed"))
    assert given.phase("a") == "succeeded"
    assert given.turn().decisions == []


def test_a_cancel_of_a_running_gang_is_not_lost_when_its_attempt_is() -> None:
    given = cluster("1 node x 4")
    given.running("a", gpus=1)
    given.state.apply(check(given.state, Cancel(given.now, "a")))  # type: ignore[arg-type]
    given.after(1.0, Lost(given.now + 1.0, "a/0", 1))
    given.settle()
    assert given.phase("a") == "cancelled"


def test_a_gang_that_lost_a_node_lets_go_of_the_rest_and_starts_again() -> None:
    given = cluster("3 nodes x 4")
    given.running("wide", gpus=8, elastic=(8, 8))
    given.after(1.0, NodeLost(given.now + 1.0, "n-0"))
    assert given.turn().decisions == [Preempt("wide", "node_lost")]
    given.after(1.0, Released(given.now + 1.0, "wide/0", 1))
    assert given.state.gangs["wide/0"].restarts == 1
    given.after(60.0)
    assert given.turn().decisions == [Launch("wide", gpus=8)]


def test_preemptions_do_not_count_as_restarts() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.running("low", gpus=4, priority=10)
    given.pending("high", gpus=4, priority=80)
    given.settle()
    gang = given.state.gangs["low/0"]
    assert (gang.restarts, gang.preemptions, gang.status) == (0, 1, Status.QUEUED)


def test_fair_sharing_comes_to_rest() -> None:
    given = cluster("1 node x 8").queue("one", gpus=0).queue("two", gpus=0).queue("pool", gpus=8)
    given.scheduling(fair_share="weighted_drf_over_borrowed").rules(reclaim="any")
    for number in range(4):
        given.running(f"g{number}", gpus=2, queue="one")
    given.pending("four", gpus=4, queue="two")
    given.settle()
    assert given.phase("four") == "running"


def test_idle_passes_evict_nobody() -> None:
    given = cluster("1 node x 8").queue("a", gpus=4).queue("b", gpus=4).rules("lower_priority", "any")
    for number in range(8):
        given.running(f"a{number}", gpus=1, queue="a")
    given.pending("b", gpus=4, queue="b")
    given.settle()
    for _ in range(50):
        given.after(1.0)
        assert given.turn().decisions == []


def test_over_its_budget_a_gang_is_stopped_with_its_reason() -> None:
    given = cluster("1 node x 4")
    given.running("greedy", gpus=2, budget_gpu_s=100.0)
    assert given.turn().plan.wake_at == given.now + 50.0
    given.after(50.0)
    assert given.turn().decisions == [Other("Stop", "greedy")]
    given.after(1.0, Released(given.now + 1.0, "greedy/0", 1))
    assert given.phase("greedy") == "failed" and "budget" in text(given.state.workloads["greedy"].message)


def test_load_makes_replicas_and_they_queue_like_any_gang() -> None:
    given = cluster("1 node x 2")
    knobs = Autoscaling(target_ongoing_requests=2, upscale_delay_s=10.0)
    given.pending("chat", gpus=1, kind="serve", min_replicas=1, max_replicas=3, autoscaling=knobs)
    given.settle()
    given.after(1.0, LoadObserved(given.now + 1.0, "chat", 6.0))
    given.settle()
    assert given.state.workloads["chat"].wanted_replicas == 1  # the delay runs
    given.after(10.0, LoadObserved(given.now + 10.0, "chat", 6.0))
    given.settle()
    assert given.state.workloads["chat"].wanted_replicas == 3
    assert [gang.status for gang in given.state.gangs.values()] == [Status.RUNNING, Status.RUNNING, Status.QUEUED]


def test_a_second_replica_is_begun_before_those_who_are_held_outlast_their_patience() -> None:
    given = cluster("2 nodes x 1")
    knobs = Autoscaling(hold_s=60.0)
    given.pending("chat", gpus=1, kind="serve", min_replicas=0, max_replicas=3, autoscaling=knobs)
    given.turn(LoadObserved(given.now, "chat", 0.0, 1.0))
    given.turn()
    assert [gang.status for gang in given.state.gangs.values()] == [Status.LAUNCHING]
    began = given.now
    assert given.turn().plan.wake_at == began + 30.0
    given.after(29.0)
    assert given.turn().decisions == []
    given.after(1.0)
    given.turn()
    given.turn()
    nodes = [placed.node for gang in given.state.gangs.values() for placed in gang.placement or ()]
    assert len(nodes) == len({*nodes}) == 2, "beside the first: what holds that one up may be its node"
    told = given.state.workloads["chat"]
    assert told.wanted_replicas == 2
    given.after(29.0)
    assert given.turn().decisions == [], "the second has just begun"


def test_a_schedule_starts_run_after_run_and_skips_while_one_goes_on() -> None:
    given = cluster("1 node x 4")
    given.pending("nightly", gpus=1, schedule="0 * * * *")
    given.settle()
    assert given.phase("nightly") == "waiting"
    for _ in range(2):  # its first run begins, and still goes on when the second is due
        given.after(3600.0)
        given.settle()
        assert [*given.state.workloads] == ["nightly"] and given.phase("nightly") == "running"
    given.after(1.0, Finished(given.now + 1.0, "nightly/0", 1, "succeeded"))
    given.after(3600.0)
    given.settle()
    assert [*given.state.workloads] == ["nightly", "nightly@2"] and given.phase("nightly@2") == "running"


def test_waiting_work_asks_for_nodes_and_idle_nodes_go() -> None:
    given = cluster("1 node x 2 A100")
    machine = NodeType("p4d", "A100", gpus=8, cpus=96, max=2, idle_timeout_s=60.0)
    given.state.apply(check(given.state, Configure(1.0, Configuration(2, node_types=(machine,)))))  # type: ignore[arg-type]
    given.pending("big", gpus=8, flavor="A100")
    decided = given.turn()
    assert decided.plan.decisions[0].counts == (("p4d", 1),)  # type: ignore[union-attr]
    assert decided.code("big") == "capacity_coming"
    joined = Node("new", Resources(8000, 96000, 1 << 40), "A100", node_type="p4d")
    given.after(60.0, NodeJoined(given.now + 60.0, joined))
    given.settle()
    assert given.phase("big") == "running"
    given.after(60.0, Finished(given.now + 60.0, "big/0", 1, "succeeded"))
    given.turn()
    given.after(61.0)
    assert Other("ReleaseNode", "") in given.decide().decisions


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"queue": "nowhere"}, "unknown_queue", 'no queue is called "nowhere"'),
        ({"groups": (Group("w", 1, (Option("H100", Resources(1000)),)),)}, "impossible", "the cluster has: 16 A100"),
        (
            {"groups": (Group("w", 1, (Option("A100", Resources(9000)),)),)},
            "impossible",
            "the largest node with A100 has 8",
        ),
        ({"min_size": 17, "max_size": 17}, "impossible", "the whole cluster holds 16"),
        ({"queue": "small", "min_size": 5, "max_size": 5}, "over_limit", "may use at most 4"),
        ({"after": ("ghost",)}, "unknown_workload", "comes after ghost"),
        ({"after": ("new",)}, "cycle", "wait for itself"),
        ({"schedule": "61 * * * *"}, "impossible", "out of range"),
    ],
)
def test_a_wrong_submission_is_refused_in_words(changes: dict[str, object], code: str, words: str) -> None:
    given = cluster("2 nodes x 8 A100").queue("lab", gpus=12).queue("small", gpus=4, borrow=0)
    group = Group("w", 1, (Option("A100", Resources(1000)),))
    fields: dict[str, object] = {"groups": (group,), "queue": "lab", **changes}
    found = check(given.state, Submit(1.0, Workload("new", "new", "train", **fields)))  # type: ignore[arg-type]
    assert isinstance(found, Refusal) and found.code == code and words in text(found.message), found


def test_the_same_again_is_unchanged_and_an_ended_one_is_not_changed() -> None:
    given = cluster("1 node x 4")
    given.running("a", gpus=1)
    same = given.state.workloads["a"].workload
    assert check(given.state, Submit(2.0, same)).code == "unchanged"  # type: ignore[union-attr]
    assert check(given.state, ScaleTo(2.0, "a", 2)).code == "over_limit"  # type: ignore[union-attr]
    given.after(1.0, Finished(given.now + 1.0, "a/0", 1, "succeeded"))
    assert check(given.state, Cancel(3.0, "a")).code == "ended"  # type: ignore[union-attr]


def test_a_size_that_is_asked_for_already_is_unchanged() -> None:
    given = cluster("1 node x 8").running("w", 2, elastic=(1, 4))
    asked = check(given.state, ScaleTo(given.now, "w", 1))
    assert isinstance(asked, Scaled)
    given.turn(asked)
    again = check(given.state, ScaleTo(given.now, "w", 1))
    assert isinstance(again, Refusal) and again.code == "unchanged", again
    assert isinstance(check(given.state, ScaleTo(given.now, "w", 3)), Scaled)


def test_cohorts_in_a_circle_are_refused() -> None:
    given = cluster("1 node x 4")
    circle = Configuration(2, (Queue("default"),), (Cohort("a", "b"), Cohort("b", "a")))
    found = check(given.state, Configure(1.0, circle))
    assert isinstance(found, Refusal) and found.code == "cycle"


def test_a_new_configuration_remembers_what_is_in_use() -> None:
    given = cluster("1 node x 4").queue("q", gpus=2, borrow=0)
    given.running("a", gpus=2)
    wider = Configuration(2, (Queue("q", quotas=(("*", Quota(3000, 0)),)),))
    given.state.apply(check(given.state, Configure(2.0, wider)))  # type: ignore[arg-type]
    given.pending("b", gpus=2)
    assert given.turn().code("b") == "quota"


def test_a_configuration_that_forgets_a_queue_with_work_in_it_is_refused() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).queue("idle", gpus=0)
    given.running("a", gpus=4, queue="q")
    found = check(given.state, Configure(2.0, Configuration(2, (Queue("idle"),))))
    assert isinstance(found, Refusal) and 'queue "q" is missing and a is still in it' in text(found.message)
    assert isinstance(check(given.state, Configure(2.0, Configuration(2, (Queue("q"),)))), Configured)


def test_when_every_node_is_gone_work_waits_for_the_next_ones() -> None:
    given = cluster("2 nodes x 4")
    for name in ("a", "b"):
        given.running(name, gpus=4)
    given.pending("c", gpus=4)
    given.after(1.0, NodeLost(given.now + 1.0, "n-0"), NodeLost(given.now + 1.0, "n-1"))
    given.settle()
    assert [given.phase(name) for name in "abc"] == ["waiting"] * 3
    given.after(3600.0, *(NodeJoined(given.now + 3600.0, Node(f"m{i}", Resources(4000, 8000))) for i in range(3)))
    given.settle()
    assert [given.phase(name) for name in "abc"] == ["running"] * 3


def test_reclaim_stops_at_the_guarantee_of_the_victims_queue() -> None:
    given = cluster("1 node x 8").queue("big", gpus=5).queue("own", gpus=4).rules(reclaim="any")
    for number in range(6):
        given.running(f"big{number}", gpus=1, queue="big")
    given.running("mine", gpus=1, queue="own")
    given.pending("more", gpus=3, queue="own")
    assert given.turn().decisions == []  # 1 is free, 1 is borrowed: no third one may be taken


def test_a_late_word_of_a_start_does_not_revive_who_was_told_to_leave() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.running("low", gpus=4, priority=10)
    given.pending("high", gpus=4, priority=80)
    given.turn()
    given.after(1.0, Bound(given.now + 1.0, "low/0", 1))
    assert given.state.gangs["low/0"].status is Status.VACATING


def test_a_fact_of_an_older_attempt_changes_nothing() -> None:
    given = cluster("1 node x 4")
    given.running("a", gpus=1)
    given.after(1.0, Lost(given.now + 1.0, "a/0", 1))
    given.after(60.0)
    given.settle()
    before = given.state.digest()
    given.state.apply(Finished(given.now, "a/0", 1, "failed", "an old supervisor woke up"))
    assert given.state.digest() == before and given.phase("a") == "running"


def test_the_cheapest_victim_goes_not_the_first_by_name() -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).rules(within_queue="lower_priority")
    given.running("alpha", gpus=2, priority=40)
    given.running("zulu", gpus=2, priority=10)
    given.pending("in", gpus=2, priority=80)
    assert given.turn().decisions == [Preempt("zulu", "in_queue_priority"), Nominate("in", gpus=2)]


def test_whoever_is_not_needed_is_spared() -> None:
    given = cluster("1 node x 5").queue("q", gpus=5).rules(within_queue="lower_priority")
    given.running("low", gpus=1, priority=10)
    given.running("mid", gpus=2, priority=20)
    given.running("high", gpus=2, priority=30)
    given.pending("in", gpus=4, priority=80)
    victims = [Preempt("mid", "in_queue_priority"), Preempt("high", "in_queue_priority")]
    assert given.turn().decisions == [*victims, Nominate("in", gpus=4)]


def test_nobody_is_evicted_when_that_would_not_be_enough() -> None:
    given = cluster("2 nodes x 2").queue("q", gpus=4).rules(within_queue="lower_priority")
    for number in range(2):
        given.running(f"low{number}", gpus=1, priority=10)
        given.running(f"high{number}", gpus=1, priority=90)
    given.pending("in", gpus=2, priority=50)
    assert given.turn().decisions == []  # one free GPU on each node is not one node with two


def test_whoever_would_outstay_a_reservation_leaves_in_time_for_it() -> None:
    given = cluster("1 node x 4")
    given.running("guest", gpus=2, grace_s=30.0)
    given.running("short", gpus=1, ends_in=50.0)
    booked = Reservation("release", start=100.0, duration_s=60.0, queue="prod", nodes=("n-0",))
    given.state.apply(check(given.state, Configure(2.0, Configuration(2, reservations=(booked,)))))  # type: ignore[arg-type]
    assert given.turn().plan.wake_at == 70.0
    given.after(70.0 - given.now)
    assert given.turn().decisions == [Preempt("guest", "reservation")]


def test_a_reservation_over_work_that_may_not_be_preempted_is_refused() -> None:
    given = cluster("1 node x 4")
    given.running("fixed", gpus=2, preemptible=False)
    booked = Reservation("release", start=100.0, duration_s=60.0, nodes=("n-0",))
    found = check(given.state, Configure(2.0, Configuration(2, reservations=(booked,))))
    assert isinstance(found, Refusal) and found.code == "overlap" and "overlaps fixed" in text(found.message)


def test_a_reservation_by_count_keeps_off_nodes_whose_work_stays_and_is_refused_when_there_are_not_enough() -> None:
    given = cluster("2 nodes x 4")
    given.running("guest", gpus=4)
    given.running("fixed", gpus=2, preemptible=False)
    assert given.state.gangs["fixed/0"].held[0].node == "n-1"

    def booked(gpus: int) -> Reservation:
        return Reservation("release", start=100.0, duration_s=60.0, gpus_milli=gpus * MILLI)

    with Trial(given.state) as trial:
        (row,) = Windows(trial, (booked(4),)).rows
        assert row.nodes == 1 << given.state.nodes["n-0"].slot and row.parts == ()
    assert isinstance(check(given.state, Configure(2.0, Configuration(2, reservations=(booked(4),)))), Configured)
    found = check(given.state, Configure(2.0, Configuration(2, reservations=(booked(8),))))
    assert isinstance(found, Refusal) and found.code == "overlap" and "overlaps fixed" in text(found.message)


def test_a_stale_gang_is_given_its_grace_and_then_let_go() -> None:
    given = cluster("3 nodes x 4").scheduling(stale_gang_grace_s=60.0)
    given.running("wide", gpus=8, elastic=(8, 8))
    given.after(1.0, NodeLost(given.now + 1.0, "n-0"))
    assert given.turn().decisions == []
    given.after(60.0)
    assert given.turn().decisions == [Preempt("wide", "stale_gang")]


def test_a_lost_node_is_replaced_inside_the_rack_before_the_gang_is_moved() -> None:
    state = State()
    for name, rack in (("a0", "a"), ("a1", "a"), ("a2", "a"), ("b0", "b"), ("b1", "b")):
        turn(state, [NodeJoined(1.0, Node(name, Resources(4000), labels=(("llmsched.io/rack", rack),)))], POLICIES)
    wide = Workload(
        "wide", "wide", "train", (Group("workers", 2, (Option(None, Resources(4000)),)),),
        topology=Topology(required="rack"), min_size=2, max_size=2,
    )  # fmt: skip
    turn(state, [Submitted(2.0, wide)], POLICIES)
    turn(state, [Bound(3.0, "wide/0", 1)], POLICIES)
    gang = state.gangs["wide/0"]
    assert {placed.node for placed in gang.held} == {"b0", "b1"}  # the rack with least room to spare

    small = replace(wide, id="small", name="small", topology=Topology(), min_size=1, max_size=1)
    turn(state, [Submitted(4.0, small)], POLICIES)  # now two nodes are free in either rack, and "a" comes first
    turn(state, [NodeJoined(5.0, Node("b2", Resources(4000), labels=(("llmsched.io/rack", "b"),)))], POLICIES)
    turn(state, [NodeLost(6.0, "b0")], POLICIES)
    turn(state, [Released(7.0, "wide/0", 1)], POLICIES)
    turn(state, [Tick(gang.not_before + 1.0)], POLICIES)
    assert gang.attempt == 2 and {placed.node for placed in gang.held} == {"b1", "b2"}


def test_an_empty_turn_on_a_full_cluster_looks_for_no_place_and_says_what_a_fresh_one_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = cluster("100 nodes x 8").queue("q", gpus=800).rules(within_queue="lower_priority", reclaim="any")
    for number in range(800):
        given.pending(f"r{number}", gpus=1)
    given.settle()
    for number in range(2000):
        given.pending(f"w{number}", gpus=1 + number % 3)
    given.turn()
    given.after(1.0)
    looked: list[str] = []
    find = place.find
    monkeypatch.setattr(
        place, "find", lambda this, gang, *more, **how: looked.append(gang.id) or find(this, gang, *more, **how)
    )
    cached = given.decide()
    assert looked == []
    given.state.memo.clear()
    for shape in given.state.waiting.live.values():
        shape.examined = None
    fresh = given.decide()
    assert cached.decisions == fresh.decisions == [] and cached.plan.wake_at == fresh.plan.wake_at
    assert cached.plan.reasons == fresh.plan.reasons and len(fresh.plan.reasons) == 2000
    assert len(looked) == 3  # one of each shape


def test_a_gang_over_several_nodes_clears_whole_nodes_however_many_small_jobs_there_are() -> None:
    given = cluster("80 nodes x 8").queue("q", gpus=640).rules(within_queue="lower_priority")
    given.policies(placement="spread")  # so that the newest, cheapest jobs lie on different nodes
    for number in range(640):
        given.running(f"r{number}", gpus=1, priority=10)
    group = Group("w", 1, (Option(None, Resources(8000)),))
    wide = Workload("wide", "wide", "train", (group,), queue="q", priority=80, min_size=2, max_size=2)
    given.state.apply(check(given.state, Submit(given.now, wide)))  # type: ignore[arg-type]
    decided = given.decide().decisions
    assert decided[-1] == Nominate("wide", gpus=16) and len(decided) == 17


def test_what_a_lost_node_leaves_of_an_elastic_gang_is_not_sized() -> None:
    given = cluster("2 nodes x 2").scheduling(stale_gang_grace_s=30.0)
    given.running("wide", 4, elastic=(3, 4)).pending("waits", 2)
    given.after(1.0, NodeLost(given.now + 1.0, "n-0"))
    assert given.turn().decisions == [], "its places on that node are no more, and it may still be told to go on"
    assert given.phase("wide") == "running"
