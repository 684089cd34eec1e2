"""A reservation takes exactly the GPUs it names, on few nodes, and its holder has them when the window opens (I10)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import Launch, Nominate, Other, Preempt, Resize, cluster

from llmsched.core import decisions, facts
from llmsched.core.commands import Configure, Refusal, Reserve, Unreserve, check
from llmsched.core.configuration import Configuration, PolicyNames, PreemptionRules, Queue, Reservation, Scheduling
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.render import text
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())
OPENS, LASTS = 1000.0, 2000.0
QUEUES = (Queue("default"), Queue("prod"))


def work(name: str, bundles: int, gpus: int = 1, **more: Any) -> Workload:
    """A rigid gang of so many bundles of so many GPUs."""
    group = Group("workers", 1, (Option(None, Resources(gpus * MILLI)),))
    return Workload(name, name, "train", (group,), min_size=bundles, max_size=bundles, **more)


def booked(gpus: int) -> Configuration:
    one = Reservation("release", OPENS, LASTS, queue="prod", gpus_milli=gpus * MILLI)
    return Configuration(2, QUEUES, reservations=(one,))


class Cluster:
    """Nodes, and an executor that does at once what it is told: only those who leave take their grace."""

    def __init__(self, *sizes: int) -> None:
        self.state = State()
        self.now = 0.0
        self.evicted: dict[str, str] = {}
        self.due: list[tuple[float, facts.Fact]] = []
        self.say(facts.Configured(0.0, Configuration(1, QUEUES)))
        for number, gpus in enumerate(sizes):
            self.say(facts.NodeJoined(0.0, Node(f"n{number}", Resources(gpus * MILLI, 8000, 1 << 30))))

    def say(self, fact: facts.Fact) -> None:
        plan = turn(self.state, [fact], POLICIES)
        for each in plan.decisions:
            if isinstance(each, decisions.Launch):
                spec = self.state.gangs[each.gang].spec
                self.due.append((self.now, facts.Bound(self.now, each.gang, each.attempt)))
                if spec.max_runtime_s is not None:
                    end = self.now + spec.max_runtime_s
                    self.due.append((end, facts.Finished(end, each.gang, each.attempt, "succeeded")))
            elif isinstance(each, decisions.Preempt):
                self.evicted[each.gang] = each.reason
                end = self.now + each.grace_s
                self.due.append((end, facts.Released(end, each.gang, each.attempt)))
        assert violations(self.state) == []

    def until(self, moment: float) -> None:
        """Everything that is due by then happens; a tick every ten seconds."""
        while True:
            ticks = [(min(self.now + 10.0, moment), facts.Tick(min(self.now + 10.0, moment)))]
            at, fact = min([*self.due, *ticks], key=lambda row: row[0])
            if at > moment or (at == moment == self.now and not self.due):
                return
            if (at, fact) in self.due:
                self.due.remove((at, fact))
            elif self.now == moment:
                return
            self.now = at
            self.say(fact)

    def book(self, configuration: Configuration) -> facts.Fact | Refusal:
        found = check(self.state, Configure(self.now, configuration))
        if not isinstance(found, Refusal):
            self.say(found)
        return found

    def holds(self, name: str) -> int:
        return len(self.state.gangs[f"{name}/0"].held)


def test_of_a_node_that_is_reserved_in_part_the_rest_is_for_everybody() -> None:
    cluster = Cluster(8, 8)
    cluster.book(booked(12))
    cluster.until(OPENS)
    for name in ("four", "one"):
        cluster.say(facts.Submitted(cluster.now, work(name, {"four": 4, "one": 1}[name])))
    assert cluster.holds("four") == 4 and cluster.holds("one") == 0
    reason = cluster.state.gangs["one/0"].reason
    assert reason is not None and reason.code == "reservation" and "release" in text(reason.message)
    cluster.say(facts.Submitted(cluster.now, work("theirs", 12, queue="prod")))
    assert cluster.holds("theirs") == 12
    cluster.until(OPENS + LASTS + 1)
    assert cluster.evicted == {}


def test_nobody_is_let_in_beside_a_part_of_a_device_of_the_holder() -> None:
    """What is left of it is reserved as well: who was let in there had to leave at once, and so again and again."""

    def part(name: str, queue: str) -> Workload:
        group = Group("workers", 1, (Option(None, Resources(MILLI // 4)),))
        return replace(work(name, 1, queue=queue), groups=(group,))

    cluster = Cluster(4)
    cluster.book(booked(3))
    cluster.until(OPENS)
    for workload in (part("theirs", "prod"), work("rest", 1), part("guest", "dev"), part("more", "prod")):
        cluster.say(facts.Submitted(cluster.now, workload))
    cluster.until(OPENS + LASTS / 2)
    assert [cluster.holds(name) for name in ("theirs", "rest", "guest", "more")] == [1, 1, 0, 1]
    assert cluster.evicted == {}


def test_a_reservation_prefers_whole_nodes_for_a_gang_that_needs_one() -> None:
    cluster = Cluster(2, 8, 2)
    cluster.say(facts.Submitted(0.0, work("guest", 1)))
    cluster.book(booked(8))
    cluster.until(OPENS)
    cluster.say(facts.Submitted(cluster.now, work("theirs", 1, gpus=8, queue="prod")))
    assert cluster.state.gangs["theirs/0"].held[0].node == "n1"


def test_only_as_many_guests_leave_a_shared_node_as_the_holder_needs_and_the_newest_go() -> None:
    cluster = Cluster(8)
    for number in range(4):
        cluster.say(facts.Submitted(cluster.now, work(f"guest{number}", 2, grace_s=20.0)))
        cluster.until(cluster.now + 10)
    cluster.book(booked(3))
    cluster.until(OPENS)
    assert cluster.evicted == {"guest3/0": "reservation", "guest2/0": "reservation"}
    cluster.say(facts.Submitted(cluster.now, work("theirs", 3, queue="prod")))
    assert cluster.holds("theirs") == 3
    assert cluster.holds("guest0") == cluster.holds("guest1") == 2


def test_work_that_nobody_may_move_keeps_its_part_of_a_node() -> None:
    cluster = Cluster(8)
    cluster.say(facts.Submitted(0.0, work("fixed", 3, preemptible=False)))
    assert isinstance(cluster.book(booked(6)), Refusal)
    assert not isinstance(cluster.book(booked(5)), Refusal)
    with Trial(cluster.state) as trial:
        (row,) = Windows(trial).rows
        assert (row.nodes, row.parts) == (0, (("n0", 5),))
    cluster.until(OPENS)
    cluster.say(facts.Submitted(cluster.now, work("theirs", 5, queue="prod")))
    assert cluster.holds("theirs") == 5 and cluster.evicted == {}


def test_a_recurring_reservation_is_held_again_and_again_and_maintenance_is_for_nobody() -> None:
    cluster = Cluster(4, 4)
    hourly = Reservation("hourly", 0.0, 600.0, gpus_milli=4 * MILLI, repeat="0 * * * *")
    cluster.book(Configuration(2, QUEUES, reservations=(hourly,)))
    for hour in (1, 2):
        cluster.until(hour * 3600.0 + 10)
        cluster.say(facts.Submitted(cluster.now, work(f"big{hour}", 8, max_runtime_s=1000.0)))
        assert cluster.holds(f"big{hour}") == 0
        cluster.until(hour * 3600.0 + 601)
        assert cluster.holds(f"big{hour}") == 8


GUEST = st.fixed_dictionaries(
    {
        "bundles": st.integers(1, 6),
        "at": st.sampled_from([0.0, 0.0, 100.0, 800.0, 990.0]),
        "max_runtime_s": st.sampled_from([None, None, 150.0, 700.0, 1500.0]),
        "preemptible": st.booleans(),
        "grace_s": st.sampled_from([0.0, 30.0, 120.0]),
        "priority": st.sampled_from([10, 50, 90]),
    }
)


@settings(max_examples=int(os.environ.get("EXAMPLES", "60")), deadline=None)
@given(
    sizes=st.lists(st.sampled_from([2, 4, 4]), min_size=1, max_size=3),
    guests=st.lists(GUEST, max_size=7),
    share=st.floats(0.1, 1.0),
    parts=st.integers(1, 3),
    late=st.sampled_from([-50.0, 0.0, 40.0]),
)
def test_the_holder_has_its_capacity_within_30_s_of_the_start(
    sizes: list[int], guests: list[dict[str, Any]], share: float, parts: int, late: float
) -> None:
    cluster = Cluster(*sizes)
    count = max(1, int(sum(sizes) * share))
    booking = False
    for number, row in enumerate(sorted(guests, key=lambda row: row["at"])):
        spec = dict(row)
        at, bundles = spec.pop("at"), spec.pop("bundles")
        if at > 50.0 and not booking:
            cluster.until(50.0)
            if isinstance(cluster.book(booked(count)), Refusal):
                return
            booking = True
        cluster.until(at)
        cluster.say(facts.Submitted(cluster.now, work(f"guest{number}", bundles, **spec)))
    if not booking:
        cluster.until(50.0)
        if isinstance(cluster.book(booked(count)), Refusal):
            return
    cluster.until(OPENS + late)
    each = [count // parts + (1 if number < count % parts else 0) for number in range(parts)]
    for number, bundles in enumerate(each):
        if bundles:
            cluster.say(facts.Submitted(cluster.now, work(f"theirs{number}", bundles, queue="prod", priority=1)))
    cluster.until(max(OPENS + late, OPENS) + 30.0)
    have = sum(
        len(gang.held)
        for gang in cluster.state.gangs.values()
        if gang.spec.queue == "prod" and gang.status is not Status.VACATING
    )
    assert have == count


# --- made by command ----------------------------------------------------------------------------------------------


def reserving(state: State, name: str = "extra", gpus: int = 2, **more: Any) -> Any:
    made = Reservation(name, **{"start": OPENS, "duration_s": LASTS, "queue": "prod"} | more, gpus_milli=gpus * MILLI)
    return check(state, Reserve(state.now, replace(made, by="bob")))


def with_eight_gpus(configuration: Configuration) -> State:
    state = State(configuration)
    state.apply(facts.NodeJoined(1.0, Node("n1", Resources(8 * MILLI, 64_000, 1 << 40))))
    state.apply(facts.Tick(10.0))
    return state


def test_one_made_by_command_outlives_another_file_until_its_window_is_over() -> None:
    state = with_eight_gpus(booked(2))
    state.apply(reserving(state))
    assert [one.name for one in state.configuration.reservations] == ["release", "extra"]
    assert state.configuration.version == 3
    state.apply(check(state, Configure(20.0, Configuration(4, QUEUES))))
    assert [one.name for one in state.configuration.reservations] == ["extra"]
    state.apply(facts.Tick(OPENS + LASTS))
    state.apply(check(state, Configure(state.now, replace(booked(2), version=5))))
    assert [one.name for one in state.configuration.reservations] == ["release"]


def test_a_file_may_not_take_the_name_of_one_made_by_command() -> None:
    state = with_eight_gpus(Configuration(2, QUEUES))
    state.apply(reserving(state, "release"))
    refused = check(state, Configure(20.0, replace(booked(2), version=9)))
    assert isinstance(refused, Refusal) and refused.code == "conflict" and "bob" in text(refused.message)


def test_what_cannot_be_reserved_is_refused_and_nothing_changes() -> None:
    state = with_eight_gpus(booked(2))
    before = state.digest()
    for code, refused in (
        ("conflict", reserving(state, "release")),
        ("impossible", reserving(state, start=-9000.0)),
        ("unknown_queue", reserving(state, queue="prd")),
        ("impossible", reserving(state, gpus=9)),
        ("impossible", reserving(state, flavor="H100")),
        ("conflict", check(state, Unreserve(20.0, "release"))),
        ("unknown_reservation", check(state, Unreserve(20.0, "nope"))),
    ):
        assert isinstance(refused, Refusal) and refused.code == code
    assert state.digest() == before


def test_one_that_is_cancelled_is_gone() -> None:
    state = with_eight_gpus(booked(2))
    state.apply(reserving(state))
    state.apply(check(state, Unreserve(20.0, "extra")))
    assert [one.name for one in state.configuration.reservations] == ["release"]


def test_one_over_work_that_nobody_can_move_is_refused() -> None:
    state = with_eight_gpus(Configuration(2, QUEUES))
    state.apply(facts.Submitted(11.0, work("stays", 8, preemptible=False)))
    turn(state, [facts.Tick(12.0)], POLICIES)
    assert state.gangs["stays/0"].status is Status.LAUNCHING
    refused = reserving(state)
    assert isinstance(refused, Refusal) and refused.code == "overlap"


def test_who_may_be_preempted_begins_between_windows_that_are_too_near_for_it() -> None:
    """All is reserved for half of every hour, and nobody knows how long it runs."""
    cluster = Cluster(2)
    every = Reservation("hourly", 3600.0, 1800.0, queue="prod", gpus_milli=2 * MILLI, repeat="0 * * * *")
    cluster.say(facts.Configured(0.0, Configuration(2, QUEUES, reservations=(every,))))
    cluster.say(facts.Submitted(500.0, work("long", 2)))
    plan = turn(cluster.state, [facts.Submitted(500.0, work("fixed", 1, preemptible=False))], POLICIES)
    reason = plan.reasons["long/0"]
    assert reason.code == "reservation" and reason.eta == plan.wake_at == 500.0 + 1800.0
    assert reason.eta_basis is not None and "leaves for the next reservation" in text(reason.eta_basis)
    cluster.now = 500.0
    cluster.until(2310.0)
    assert cluster.holds("long") == 2 and cluster.evicted == {}
    cluster.until(3700.0)
    assert cluster.holds("long") == 0 and cluster.evicted == {"long/0": "reservation"}
    cluster.until(5420.0)
    assert cluster.holds("long") == 2, "half an hour is long enough"
    cluster.until(9000.0)
    assert cluster.state.gangs["long/0"].preemptions == 2 and cluster.holds("fixed") == 0


def test_who_is_owed_a_start_by_rank_does_not_begin_on_what_is_reserved_and_leave_at_once() -> None:
    """The one that ran stayed, as both fitted by count; whoever began later left for the reservation in the same
    second, and began again at the next ranking: 16 times in a quarter of an hour."""
    cluster = Cluster(2)
    one = Reservation("release", OPENS, 10_000.0, queue="prod", gpus_milli=MILLI)
    scheduling = Scheduling(preemption=PreemptionRules("by_rank"), order="best_effort", quantum_s=60.0)
    cluster.say(facts.Configured(0.0, Configuration(2, QUEUES, reservations=(one,), scheduling=scheduling)))
    for name in ("runs", "waits"):
        cluster.say(facts.Submitted(0.0, work(name, 1, estimated_runtime_s=9000.0)))
        cluster.now += 5.0
    cluster.until(6000.0)
    assert cluster.state.gangs["runs/0"].preemptions + cluster.state.gangs["waits/0"].preemptions <= 2
    assert cluster.evicted["runs/0"] == "in_queue_rank"


@pytest.mark.parametrize("grace_s", [0.0, 30.0])
def test_who_has_outlived_its_estimate_leaves_for_the_holder_once(grace_s: float) -> None:
    """Nothing seemed to be left of it, so it began again at once, in the moment in which it had to leave, for ever."""
    world = cluster("1 node x 4").queue("default", gpus=4).queue("prod", gpus=0).scheduling(order="best_effort")
    world.running("runs", 4, ends_in=100.0, grace_s=grace_s)
    one = Reservation("release", OPENS, LASTS, queue="prod", gpus_milli=4 * MILLI)
    world.state.apply(facts.Configured(world.now, replace(world.state.configuration, version=2, reservations=(one,))))
    world.after(OPENS - world.now)
    assert world.turn().decisions == [Preempt("runs", "reservation")]
    assert world.turn(facts.Released(world.now, "runs/0", 1)).decisions == []
    assert world.decide().code("runs") == "reservation"


@pytest.mark.parametrize("elastic", [None, (2, 4)])
def test_room_is_made_beside_what_others_have_reserved(elastic: tuple[int, int] | None) -> None:
    """As long as GPUs were free that were reserved, a higher priority took nothing from a lower one elsewhere."""
    world = cluster("2 nodes x 4").queue("default", gpus=8).queue("prod", gpus=0).rules("lower_priority")
    world.running("low", 4, elastic=elastic, priority=10)
    (other,) = [name for name in world.state.nodes if name != world.state.gangs["low/0"].held[0].node]
    one = Reservation("release", OPENS, LASTS, queue="prod", nodes=(other,))
    world.state.apply(facts.Configured(world.now, replace(world.state.configuration, version=2, reservations=(one,))))
    decided = world.pending("high", 2, priority=90).turn().decisions
    gives = Resize("low", 2) if elastic else Preempt("low", "in_queue_priority")
    assert decided == [gives, Nominate("high", 2)]


@pytest.mark.parametrize("within", ["lower_priority", "by_rank"])
def test_room_is_made_and_taken_on_what_is_left_of_a_node_that_is_reserved_in_part(within: str) -> None:
    """By rank one left for another that was not let start there: the node stood empty until the window had closed."""
    world = cluster("1 node x 8").queue("default", gpus=8).queue("prod", gpus=0)
    world.scheduling(order="best_effort", preemption=PreemptionRules(within), quantum_s=60.0)
    world.running("low", 8, priority=10).after(60.0)
    one = Reservation("release", OPENS, LASTS, queue="prod", gpus_milli=2 * MILLI)
    world.state.apply(facts.Configured(world.now, replace(world.state.configuration, version=2, reservations=(one,))))
    if within != "by_rank":
        assert world.pending("vast", 7, priority=90).turn().decisions == [], "two of eight are not for it"
    decided = world.pending("high", 6, priority=90).turn().decisions
    if within == "by_rank":
        decided = world.after(60.0).turn().decisions
    assert [type(each).__name__ for each in decided] == ["Preempt", "Nominate"]
    assert world.turn(facts.Released(world.now, "low/0", 1)).decisions == [Launch("high", 6)]


def test_a_promise_ends_where_its_node_is_reserved_meanwhile() -> None:
    world = cluster("1 node x 4").queue("default", gpus=4).queue("prod", gpus=0).rules("lower_priority")
    world.running("low", 4, priority=10, grace_s=60.0).pending("high", 4, priority=90)
    assert world.turn().decisions == [Preempt("low", "in_queue_priority"), Nominate("high", 4)]
    one = Reservation("release", OPENS, LASTS, queue="prod", gpus_milli=4 * MILLI)
    configured = facts.Configured(world.now, replace(world.state.configuration, version=2, reservations=(one,)))
    decided = world.turn(configured)
    assert decided.decisions == [Other("Withdraw", "high")]
    assert decided.plan.wake_at == world.now, "others may grow by that, who were asked before"
    assert world.turn(facts.Released(world.now, "low/0", 1)).decisions == []
    assert world.decide().code("high") == "reservation"


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_a_holder_gives_of_what_is_reserved_is_for_nobody_whom_the_reservation_keeps_out(gpus: int) -> None:
    """It became smaller for another one, who could not start then: what it gave was the holder's again."""
    world = cluster("1 node x 8").reserve(OPENS, LASTS, "bob", gpus=7).rules("lower_priority")
    world.running("holds", 5, user="bob", preemptible=False).running(
        "gives", 3, elastic=(1, 3), user="bob", priority=10
    )
    decided = world.pending("high", gpus, priority=90).turn().decisions
    assert decided == ([Resize("gives", 2), Nominate("high", 1)] if gpus == 1 else [])


def test_nobody_makes_room_for_one_that_would_run_into_a_window_once_the_room_is_there() -> None:
    """It ended just before the window, had it begun at once; those that it waited for took their time to leave."""
    for grace_s, is_promised in ((30.0, False), (5.0, True)):
        world = cluster("1 node x 4").reserve(OPENS, LASTS, "bob", nodes=("n-0",)).rules("lower_priority")
        world.running("low", 4, priority=10, grace_s=grace_s, ends_in=OPENS - 100.0)
        world.pending("high", 4, priority=90, estimated_runtime_s=OPENS - 12.0)
        decided = world.turn().decisions
        assert decided == ([Preempt("low", "in_queue_priority"), Nominate("high", 4)] if is_promised else [])


def test_whoever_has_what_is_left_of_a_holders_device_leaves_and_nobody_who_could_begin_again_at_once() -> None:
    """The newest one left, whose GPUs the holder could not use: it began again, and left again, until the window had
    closed."""
    world = cluster("1 node x 4").reserve(50.0, LASTS, "bob", gpus=2)
    world.running("half", 0.5, user="bob").running("part", 0.5).running("whole", 1, user="bob").running("two", 2)
    assert world.after(50.0).turn().decisions == [Preempt("part", "reservation")]
    assert world.turn(facts.Released(world.now, "part/0", 1)).decisions == []


def test_a_device_of_which_others_have_a_part_is_none_that_a_holder_could_have() -> None:
    world = cluster("1 node x 3").reserve(50.0, LASTS, "bob", gpus=2)
    world.policies(placement="pack").running("one", 0.75).running("other", 0.75)
    assert world.after(50.0).turn().decisions == [Preempt("other", "reservation")], "two devices of three have parts"


def test_nobody_leaves_for_a_holder_who_would_have_no_more_by_that() -> None:
    """What its holder lacked was a part of a device of which the rest was somebody's whom nobody can move; all others
    left the node, and again when they had begun there, which nothing forbade."""
    given = cluster("1 node x 4").reserve(100.0, 1000.0, "bob", gpus=1).running("theirs", 0.75, user="bob")
    given.running("fixed", 0.25, preemptible=False, ends_in=50.0).running("guest", 2)
    assert [place.gpu_index for name in ("theirs/0", "fixed/0") for place in given.state.gangs[name].held] == [0, 0]
    for _ in range(20):
        given.after(10.0)
        assert given.turn().decisions == []


@pytest.mark.parametrize(("where", "booked", "size"), [("1 node x 8", 2, 6), ("2 nodes x 4", 4, 4)])
def test_an_elastic_gang_gives_back_what_is_reserved_and_goes_on_beside_it(where: str, booked: int, size: int) -> None:
    """It left whole, and began again on what was left."""
    made = cluster(where).reserve(200.0, 500.0, "bob", gpus=booked)
    made.pending("guest", 1, (1, 8), user="zoe", grace_s=120.0, estimated_runtime_s=50.0).settle()
    made.state.apply(facts.Estimated(made.now, "guest/0", 10_000.0))
    assert made.state.gangs["guest/0"].size == 8
    made.after(90.0)
    assert made.turn().decisions == [Resize("guest", size)]
    assert [made.after(1.0).turn().decisions for _ in range(2)] == [[], []], "it has not done so yet"
    assert made.turn(facts.Resized(made.now, "guest/0", 1, size)).decisions == []
    assert made.after(110.0).turn().decisions == [] and made.state.gangs["guest/0"].status is Status.RUNNING


def test_an_elastic_gang_of_which_the_least_does_not_fit_beside_a_reservation_leaves_whole() -> None:
    made = cluster("1 node x 8").reserve(200.0, 500.0, "bob", gpus=2)
    made.pending("guest", 7, (7, 8), user="zoe", grace_s=120.0, estimated_runtime_s=50.0).settle()
    made.state.apply(facts.Estimated(made.now, "guest/0", 10_000.0))
    made.after(90.0)
    assert made.turn().decisions == [Preempt("guest", "reservation")]


@pytest.mark.parametrize("is_told_before", [False, True])
def test_nobody_leaves_for_a_reservation_that_has_what_another_one_makes_somebody_leave(is_told_before: bool) -> None:
    """One that was on two nodes left both, for what was reserved of the first; the newest left the second one as well,
    and began there again."""
    made = cluster("2 nodes x 4").reserve(100.0, 500.0, "bob", nodes=("n-0",)).reserve(100.0, 500.0, "bob", gpus=2)
    there = tuple(Placed("workers", f"n-{number}", 0) for number in range(2))
    made.state.apply(facts.Submitted(made.now, work("two", 2, 2, user="zoe", grace_s=20.0)))
    made.state.apply(decisions.Launch("two/0", 1, there))
    made.state.apply(facts.Bound(made.now, "two/0", 1))
    made.running("first", 2, user="bob").running("newest", 2, user="zoe", grace_s=0.0 if is_told_before else 20.0)
    assert made.state.gangs["newest/0"].held[0].node == "n-1"
    assert made.after(90.0).turn().decisions == [Preempt("two", "reservation")]
    assert made.after(20.0).turn().decisions == []


def test_what_a_holder_of_two_reservations_has_counts_where_most_is_lacking() -> None:
    """It counted for the first of them, so that whoever began beside it as the holder of that one was told at once to
    leave for the second one, and began again, for as long as both were open."""
    made = cluster("1 node x 8").queue("default", 8).queue("prod", 8).reserve(10.0, LASTS, "bob", gpus=4)
    made.reservations.append(Reservation("second", 10.0, LASTS, queue="prod", gpus_milli=4 * MILLI))
    part = Group("workers", 1, (Option(None, Resources(750)),))
    for number, queue in enumerate(("prod", "default")):
        spec = Workload(f"w{number}", f"w{number}", "train", (part,), queue=queue, user="bob", min_size=3, max_size=3)
        made.after(20.0, facts.Submitted(made.now, spec)).settle()
    assert [*made.state.holding] == ["w0/0", "w1/0"] and made.after(60.0).turn().decisions == []


def test_who_was_promised_places_while_there_was_time_between_two_windows_begins_when_others_have_left() -> None:
    """It was promised a place ten minutes before the next window, for which somebody left; three seconds later that was
    too little time, the promise was taken back, and one of a lower priority began."""
    given = cluster("1 node x 1").rules("by_rank", "any").policies(ordering="priority")
    given.scheduling(quantum_s=60.0, hold_after_s=460.0).reserve(600.0, 600.0, "ann", gpus=1, repeat="*/30 * * * *")
    given.after(2405.0).turn()
    given.running("low", 1, priority=10).after(94.0).pending("high", 1, priority=90)
    while given.now < 3000.0:
        assert given.turn().decisions == []
        given.after(min(60.0 - given.now % 60.0, 3000.0 - given.now))
    assert given.turn().decisions == [Preempt("low", "in_queue_rank"), Nominate("high", 1)]
    given.after(3.0, facts.Released(given.now, "low/0", 1))
    assert given.turn().decisions == [Launch("high", 1)]
