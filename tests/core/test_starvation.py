"""Nobody starves: who has waited for `hold_after_s` starts once those that hold its places then have ended."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, Launch, Nominate, Preempt, Resize, cluster

from llmsched.core import decisions, facts
from llmsched.core.configuration import Queue, Quota
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Resources, Workload
from llmsched.policies.registry import load

HOLD_S = 1800.0
LASTS_S = 75.0
EVERY_S = 9.0


def work(name: str, gpus: int, **more: Any) -> Workload:
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    return Workload(name, name, "task", (group,), min_size=gpus, max_size=gpus, **more)


def gang_of(*flavors: str | None, gpus: int = 1) -> Group:
    return Group("workers", 1, tuple(Option(flavor, Resources(gpus * 1000)) for flavor in flavors))


def start_of(given: Given, waits: Workload, stream: dict[str, Any] | Workload, until: float = 6000.0) -> float | None:
    """When a gang that comes at 500 s starts while others arrive without a pause, singles of which so much is said or
    others like that one, if it does before the stream ends. Work does what it says at once, and takes LASTS_S."""
    state: State = given.state
    policies = load(given.names)
    events: list[tuple[float, int, Any]] = [(500.0, -1, facts.Submitted(500.0, waits))]
    for number in range(int(until / EVERY_S)):
        at = number * EVERY_S
        name = f"s{number}"
        one = replace(stream, id=name, name=name) if isinstance(stream, Workload) else work(name, 1, **stream)
        events.append((at, number, facts.Submitted(at, one)))
    heapq.heapify(events)
    serial = len(events)
    while events:
        at, _, fact = heapq.heappop(events)
        if at > until:
            return None
        plan = turn(state, [facts.Tick(at), *([fact] if fact else [])], policies)
        for each in plan.decisions:
            if isinstance(each, decisions.Launch):
                if each.gang == f"{waits.id}/0":
                    return at
                serial += 2
                heapq.heappush(events, (at, serial, facts.Bound(at, each.gang, each.attempt)))
                ended = facts.Finished(at + LASTS_S, each.gang, each.attempt, "succeeded")
                heapq.heappush(events, (at + LASTS_S, serial + 1, ended))
        if plan.wake_at is not None:
            serial += 1
            heapq.heappush(events, (plan.wake_at, serial, None))
    return None


@pytest.mark.parametrize("ordering", ["finish_time_fair", "priority", "shortest_remaining", "fair_share"])
@pytest.mark.parametrize("told", [{}, {"estimated_runtime_s": LASTS_S}, {"max_runtime_s": 3600.0}])
def test_a_large_gang_starts_within_the_bound_while_single_gpus_stream_by(ordering: str, told: dict[str, Any]) -> None:
    given = cluster("1 node x 8").policies(ordering=ordering)
    started = start_of(given, work("large", 8), told)
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


@pytest.mark.parametrize("nodes", ["3 nodes x 8", "1 node x 8 A, 2 nodes x 4 B"])
def test_it_does_so_where_places_are_on_several_nodes(nodes: str) -> None:
    whole = Group("workers", 1, (Option(None, Resources(8000)),))
    given = cluster(nodes).policies(ordering="priority")
    started = start_of(given, Workload("large", "large", "task", (whole,)), {})
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


@pytest.mark.parametrize("gang", [(gang_of("H", "A"), 8), (gang_of("H", "A", gpus=8), 1)])
@pytest.mark.parametrize("others", ["", "served", "full"])
def test_it_does_so_on_the_flavor_that_is_its_second_choice(gang: tuple[Group, int], others: str) -> None:
    """Its first choice is not there, or held by what never ends, or by what ends much later."""
    given = cluster("1 node x 8 A" + (", 1 node x 8 H" if others else "")).policies(ordering="priority")
    if others:
        given.running("held", 8, flavor="H", kind="serve" if others == "served" else "train", max_runtime_s=90_000.0)
    group, size = gang
    started = start_of(given, Workload("large", "large", "task", (group,), min_size=size, max_size=size), {})
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


def test_it_does_so_while_shares_of_devices_stream_by(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Group("workers", 1, (Option(None, Resources(500)),))
    large = Workload("large", "large", "task", (gang_of(None, gpus=4),))
    monkeypatch.setitem(globals(), "work", lambda name, gpus, **more: Workload(name, name, "task", (half,), **more))
    started = start_of(cluster("1 node x 4").policies(ordering="priority"), large, {})
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


@pytest.mark.parametrize("fair", ["drf_total", "weighted_drf_over_borrowed", "guarantee_then_weight"])
@pytest.mark.parametrize(("own", "theirs"), [(8, 0), (6, 2), (0, 0)])
def test_who_borrows_makes_way_for_who_waits_for_the_same_quota(fair: str, own: int, theirs: int) -> None:
    """An owner, or somebody who borrows as well; nothing may be reclaimed, so a hold is all that it has."""
    given = cluster("1 node x 8").queue("a", own).queue("b", theirs).queue("lent", 8 - own - theirs)
    given.scheduling(fair_share=fair).policies(ordering="priority")
    started = start_of(given, work("large", own or 8, queue="a"), {"queue": "b"})
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


def in_turn(monkeypatch: pytest.MonkeyPatch, *queues: str) -> None:
    """The singles of the stream are of these queues in turn."""

    def single(name: str, gpus: int, **_: Any) -> Workload:
        return work_of(name, gpus, queue=queues[int(name[1:]) % len(queues)])

    work_of = work
    monkeypatch.setitem(globals(), "work", single)


@pytest.mark.parametrize(
    ("gpus", "more", "backfill"),
    [
        (4, {}, "off"),
        (3, {"priority": 90}, "off"),
        (4, {"preemptible": False}, "off"),
        (3, {}, "easy"),
        (4, {}, "easy"),
    ],
)
def test_it_does_so_where_it_lacks_quota_and_places_in_turn(
    monkeypatch: pytest.MonkeyPatch, gpus: int, more: dict[str, Any], backfill: str
) -> None:
    """What was held was quota or places: when it lacked the one, newer work of its own queue took the other."""
    whole = Group("workers", 1, (Option(None, Resources(gpus * 1000)),))
    given = cluster("2 nodes x 4").queue("a", 4).queue("b", 4).scheduling(backfill=backfill)
    in_turn(monkeypatch, "a", "b")
    started = start_of(given, Workload("large", "large", "task", (whole,), queue="a", **more), {}, 3500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 2 * LASTS_S + 1.0


def test_it_does_so_among_those_that_borrow_no_more_than_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quota lets six of eight be borrowed: places for four on one node left others what was lacking in quota."""
    whole = Group("workers", 1, (Option(None, Resources(4000)),))
    given = cluster("2 nodes x 4").queue("a", 0).queue("b", 0).queue("keeps", 2, lend=0)
    in_turn(monkeypatch, "b")
    started = start_of(given, Workload("large", "large", "task", (whole,), queue="a"), {}, 3500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 2 * LASTS_S + 1.0


@pytest.mark.parametrize(("own", "theirs"), [(8, 8), (9, 7)])
def test_it_does_so_where_guarantees_add_up_to_more_than_there_is(own: int, theirs: int) -> None:
    """As after a node was lost. What was kept of its guarantee counted as held: so it seemed to borrow, and who does
    holds nothing against an owner."""
    given = cluster("1 node x 8").queue("a", own).queue("b", theirs)
    started = start_of(given, work("large", 8, queue="a"), {"queue": "b"}, 3500.0)
    assert started is not None and started <= 500.0 + HOLD_S + LASTS_S + 1.0


@pytest.mark.parametrize("more", [{}, {"priority": 90}])
def test_it_does_so_where_others_borrow_as_well_and_an_owner_takes_less_than_it_owns(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """The owner began on the node that was held, which it may; the plan went to the other node, and who borrows took
    again what it had let go: to and fro for ever."""
    whole = Group("workers", 1, (Option(None, Resources(4000)),))
    given = cluster("2 nodes x 4").queue("a", 0).queue("b", 0).queue("owns", 4).queue("idle", 4)
    in_turn(monkeypatch, "b", "owns")
    started = start_of(given, Workload("large", "large", "task", (whole,), queue="a", **more), {}, 4500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 3 * LASTS_S + 1.0


def test_one_that_waits_for_what_owners_use_keeps_its_own_queue_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks two GPUs of another queue, which uses all that it owns. For ever nothing of its own queue started beside
    the four GPUs that this one owns."""
    given = cluster("1 node x 8").queue("a", 4).queue("b", 4).running("theirs", 4, queue="b")
    wide = Workload("wide", "wide", "task", (gang_of(None),), min_size=6, max_size=6, queue="a")
    given.state.apply(facts.Submitted(100.0, wide))
    in_turn(monkeypatch, "a")
    started = start_of(given, Workload("large", "large", "task", (gang_of(None, gpus=4),), queue="a"), {}, 4500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 2 * LASTS_S + 1.0
    assert given.state.gangs["wide/0"].status.value == "queued"


def test_it_is_held_for_again_as_soon_as_owners_use_less(monkeypatch: pytest.MonkeyPatch) -> None:
    given = cluster("1 node x 8").queue("a", 4).queue("b", 4).running("theirs", 2, queue="b")
    in_turn(monkeypatch, "a")
    wide = Workload("wide", "wide", "task", (gang_of(None),), min_size=6, max_size=6, queue="a")
    started = start_of(given, wide, {}, 4500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 2 * LASTS_S + 1.0


LARGE = Workload("large", "large", "task", (gang_of("B", gpus=4),))


@pytest.mark.parametrize("what", ["another accelerator", "more than a node has", "a node that is drained"])
def test_it_does_so_though_many_before_it_cannot_be_held_for(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Sixteen classes were looked at, whether each was held for or not: whoever came after them waited for ever."""
    given = cluster("1 node x 4 A, 1 node x 4 B").running("long", 4, flavor="A", max_runtime_s=300_000.0)
    flavor = "A" if what == "another accelerator" else "B"
    amount = 8000 if what == "more than a node has" else 4000
    for number in range(20):
        unlike = Resources(amount, memory_bytes=number << 20)
        group = Group("workers", 1, (Option(flavor, unlike),))
        labels = (("disk", "none"),) if what == "a node that is drained" else ()
        one = Workload(f"w{number}", f"w{number}", "task", (group,), node_labels=labels)
        given.state.apply(facts.Submitted(100.0, one))
    on_b = gang_of("B")
    monkeypatch.setitem(globals(), "work", lambda name, gpus, **more: Workload(name, name, "task", (on_b,), **more))
    started = start_of(given, LARGE, {}, 4000.0)
    assert started is not None and started <= 500.0 + HOLD_S + 2 * LASTS_S + 1.0


def test_it_does_so_while_one_before_it_waits_for_a_node_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On each accelerator one is held for: the first one's node had work without an end."""
    given = cluster("2 nodes x 4")
    first = given.nodes[0]
    given.nodes[0] = replace(first, labels=(*first.labels, ("disk", "ssd")))
    group = gang_of(None, gpus=4)
    given.running("notebook", 1, max_runtime_s=300_000.0)
    assert given.state.gangs["notebook/0"].held[0].node == first.id
    picky = Workload("picky", "picky", "task", (group,), node_labels=(("disk", "ssd"),))
    given.state.apply(facts.Submitted(100.0, picky))
    started = start_of(given, Workload("large", "large", "task", (group,)), {}, 4500.0)
    assert started is not None and started <= 500.0 + HOLD_S + 3 * LASTS_S + 1.0


def test_one_that_would_borrow_there_is_not_held_for_against_owners_as_it_is_inside_elsewhere() -> None:
    """Its queue owns four of A, which somebody else has: held for it were four of B, from those who own them."""
    own = {"a": (4, 0), "b": (0, 4), "c": (0, 0)}
    quotas = [(name, (("A", Quota(on_a * 1000)), ("B", Quota(on_b * 1000)))) for name, (on_a, on_b) in own.items()]
    given = cluster("1 node x 4 A, 1 node x 4 B")
    given.queues += [Queue(name, quotas=rows) for name, rows in quotas]
    given.running("borrows", 4, flavor="A", queue="c").running("r", 3, flavor="B", queue="b")
    either = Workload("either", "either", "task", (gang_of("A", "B", gpus=4),), queue="a")
    given.state.apply(facts.Submitted(given.now, either))
    given.turn()
    single = Workload("single", "single", "task", (gang_of("B"),), queue="b")
    assert given.after(100 * HOLD_S).turn(facts.Submitted(given.now, single)).decisions == [Launch("single", 1)]


def test_who_is_held_for_is_asked_though_more_stand_before_it_than_are_looked_at() -> None:
    """A hundred were kept out for it and nobody behind them was looked at, so nothing started in an idle cluster."""
    given = cluster("1 node x 8").policies(ordering="shortest_remaining")
    given.running("whole", 8, priority=90).pending("large", 8, estimated_runtime_s=9_000.0).after(HOLD_S)
    for number in range(150):
        given.pending(f"s{number}", 1, estimated_runtime_s=60.0)
    decided = given.turn(facts.Finished(given.now, "whole/0", 1, "succeeded"))
    assert decided.decisions == [Launch("large", 8)]


def test_work_without_gpus_takes_nothing_that_is_its_own_and_goes_on_beside_who_is_overdue() -> None:
    given = cluster("1 node x 4").queue("a", 0).queue("b", 4).running("runs", 1, queue="b", preemptible=False)
    given.pending("large", 4, queue="a").after(100 * HOLD_S)
    cpus = Workload("cpus", "cpus", "task", (Group("workers", 1, (Option(None, Resources(0, 1000)),)),), queue="b")
    assert given.turn(facts.Submitted(given.now, cpus)).decisions == [Launch("cpus", 0)]


def test_who_avoids_the_places_of_a_hold_leaves_the_quota_that_is_kept_as_well() -> None:
    given = cluster("2 nodes x 4").queue("a", gpus=4).queue("b", gpus=4).running("s0", 1, queue="a")
    given.running("s1", 2, queue="b").running("s2", 2, queue="b").pending("large", 4, queue="a").after(HOLD_S)
    given.pending("mine", 1, queue="a")
    assert given.turn().decisions == [], "it had gone to the other node"
    assert given.decide().why("mine") == "would delay large, which is planned to start first"


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_backfill_without_run_times_plans_for_the_head_at_once(backfill: str) -> None:
    given = cluster("1 node x 8").scheduling(backfill=backfill, order="strict_fifo").policies(ordering="fifo")
    started = start_of(given, work("large", 8), {})
    assert started is not None and started <= 500.0 + 2 * LASTS_S


def test_it_may_be_switched_off() -> None:
    assert start_of(cluster("1 node x 8").scheduling(hold_after_s=0.0), work("large", 8), {}, 4000.0) is None


def test_a_higher_priority_is_kept_out_by_no_hold() -> None:
    given = cluster("1 node x 8").policies(ordering="priority")
    for number in range(8):
        given.running(f"s{number}", 1)
    given.pending("large", 8, priority=50).after(HOLD_S)
    given.after(0.0, facts.Finished(given.now, "s0/0", 1, "succeeded"))
    given.pending("equal", 1, priority=50)
    assert given.turn().decisions == []
    assert given.decide().why("equal") == "would delay large, which is planned to start first"
    given.pending("high", 1, priority=51)
    assert given.turn().decisions == [Launch("high", 1)]


@pytest.mark.parametrize("waited_s", [0.0, HOLD_S])
def test_who_was_evicted_keeps_its_age_against_a_hold(waited_s: float) -> None:
    given = cluster("1 node x 4").policies(ordering="priority").running("old", 3).running("beside", 1)
    given.pending("large", 4).after(HOLD_S).pending("new", 3)
    given.after(0.0, decisions.Preempt("old/0", 1, 0.0, "quota_reclaim"), facts.Released(given.now, "old/0", 1))
    given.after(waited_s)
    assert given.turn().decisions == [Launch("old", 3)], "it came before large, however long it has waited since"
    assert given.decide().why("new").startswith("needs 1 x 3 GPU")


def test_who_borrows_holds_nothing_against_an_owner() -> None:
    given = cluster("1 node x 8").queue("a", gpus=2).queue("b", gpus=6).policies(ordering="priority")
    given.scheduling(order="best_effort")
    for number in range(7):
        given.running(f"s{number}", 1, queue="a" if number < 2 else "b")
    given.pending("large", 3, queue="a").after(HOLD_S)
    given.pending("owned", 1, queue="b")
    assert given.turn().decisions == [Launch("owned", 1)]


def test_who_waits_for_quota_is_held_for_in_its_own_queue_alone() -> None:
    given = cluster("1 node x 8").queue("a", gpus=4, borrow=0).queue("b", gpus=4, borrow=0)
    given.policies(ordering="priority")
    for number in range(3):
        given.running(f"s{number}", 1, queue="a")
    given.pending("large", 4, queue="a").after(HOLD_S)
    given.pending("mine", 1, queue="a").pending("theirs", 1, queue="b")
    assert given.turn().decisions == [Launch("theirs", 1)]
    assert given.decide().why("mine") == "would delay large, which is planned to start first"


def test_places_under_work_that_never_ends_are_not_held() -> None:
    given = cluster("2 nodes x 8").policies(ordering="priority")
    given.running("endless", 1, kind="serve").running("old", 8).pending("large", 8).after(HOLD_S)
    given.pending("small", 1)
    assert given.turn().decisions == [Launch("small", 1)], "beside what serves there is room that large never gets"


def test_nothing_is_held_for_what_can_never_start() -> None:
    given = cluster("1 node x 8").policies(ordering="priority").running("runs", 1)
    given.pending("vast", 64).after(HOLD_S)
    given.pending("small", 1)
    assert given.turn().decisions == [Launch("small", 1)]


def test_a_bound_that_rests_on_a_presumed_end_is_told_nobody_as_a_time() -> None:
    given = cluster("1 node x 2").running("runs", 2).pending("waits", 2).after(HOLD_S)
    assert given.turn().plan.reasons["waits/0"].eta is None


@pytest.mark.parametrize(("gpus", "starts"), [(2, True), (3, False)])
def test_nobody_makes_room_on_gpus_that_are_held(gpus: int, starts: bool) -> None:
    """Whoever evicts others may take what those had, and not the one that is kept for who has waited long."""
    given = cluster("1 node x 4").queue("a", gpus=4).queue("b", gpus=4).rules("lower_priority")
    given.scheduling(hold_after_s=60.0)
    given.running("x", gpus=1, queue="b", preemptible=False).running("y", gpus=2, queue="a", priority=10)
    given.pending("held", gpus=2, elastic=(2, 2), queue="b").after(100.0)
    given.pending("later", gpus=gpus, queue="a")
    decided = given.turn().decisions
    assert (decided == [Preempt("y", "in_queue_priority"), Nominate("later", gpus)]) == starts
    assert starts or decided == []


@pytest.mark.parametrize(("backfill", "starts"), [("off", []), ("easy", [Launch("short", 2)])])
@pytest.mark.parametrize("priority", [50, 10])
def test_nobody_goes_past_a_better_one_that_a_hold_keeps_out_by_being_shorter(
    backfill: str, starts: list[Any], priority: int
) -> None:
    """`long` would delay who has waited long, `short` would not: that is what backfill is for, and only that."""
    given = cluster("2 nodes x 2").scheduling(backfill=backfill).policies(ordering="priority")
    given.running("runs", 2, ends_in=HOLD_S + 900.0).pending("large", 1, elastic=(4, 4), priority=50).after(HOLD_S)
    given.pending("long", 2, priority=50, estimated_runtime_s=9000.0)
    given.pending("short", 2, priority=priority, estimated_runtime_s=100.0)
    assert given.turn().decisions == starts
    assert given.pending("small", 1, priority=10, estimated_runtime_s=100.0).turn().decisions == [
        *([Launch("small", 1)] if not starts else [])
    ]


def test_who_is_kept_out_by_a_hold_does_not_stand_before_the_one_that_it_is_kept_out_for() -> None:
    """With strict_fifo nobody passed the shortest, which would have delayed the one that had waited long, which stood
    behind it: on an idle cluster both waited for ever."""
    given = cluster("1 node x 4").scheduling(order="strict_fifo").policies(ordering="shortest_remaining")
    given.running("runs", 4).pending("large", 4, estimated_runtime_s=5000.0).after(HOLD_S)
    given.pending("short", 1, estimated_runtime_s=500.0)
    decided = given.turn(facts.Finished(given.now, "runs/0", 1, "succeeded"))
    assert decided.decisions == [Launch("large", 4)]


def test_no_guarantee_is_kept_from_the_one_whose_planned_start_keeps_its_owner_out() -> None:
    """The idle GPU of `small`'s queue kept `large` out, whose planned start kept `small` out: on an idle cluster both
    waited for ever."""
    given = cluster("1 node x 8").queue("a", gpus=1, borrow=8).queue("b", gpus=1, borrow=8)
    given.policies(ordering="shortest_remaining").scheduling(order="best_effort")
    given.running("runs", 3, queue="a").pending("large", 8, queue="a", estimated_runtime_s=5000.0)
    given.pending("small", 8, queue="b", priority=10, estimated_runtime_s=5.0).after(HOLD_S)
    assert given.turn(facts.Finished(given.now, "runs/0", 1, "succeeded")).decisions == [Launch("large", 8)]


def test_what_can_never_start_stands_before_nobody_where_nobody_overtakes() -> None:
    """`vast` stood before `old` for ever, and the planned start of `old` kept the other queue out."""
    given = cluster("1 node x 4").queue("a", gpus=0, borrow=2).queue("b", gpus=0).queue("c", gpus=4)
    given.policies(ordering="priority").scheduling(order="strict_fifo")
    given.running("runs", 4, queue="b").pending("old", 2, queue="a")
    given.pending("vast", 3, queue="a", priority=90).pending("other", 3, queue="b", priority=10).after(HOLD_S)
    assert given.turn(facts.Finished(given.now, "runs/0", 1, "succeeded")).decisions == [Launch("old", 2)]
    decided = given.turn(facts.Bound(given.now, "old/0", 1), facts.Finished(given.now, "old/0", 1, "succeeded"))
    assert decided.decisions == [Launch("other", 3)]


def test_whom_the_next_hold_does_not_bind_starts_in_the_pass_in_which_that_hold_begins() -> None:
    """The one held for starts, and what is planned for the next one keeps no higher priority out from then on: it was
    told to wait for the next news."""
    given = cluster("1 node x 4").policies(ordering="least_attained").scheduling(backfill="easy", hold_after_s=60.0)
    given.running("long", 1, ends_in=5000.0).running("short", 3)
    given.pending("first", 1).pending("whale", 4).after(100.0).pending("high", 1, priority=90)
    decided = given.turn(facts.Finished(given.now, "short/0", 1, "succeeded"))
    assert decided.decisions == [Launch("first", 1), Launch("high", 1)]
    assert given.after(0.1).turn().decisions == []


def test_no_elastic_gang_becomes_smaller_for_one_that_would_delay_a_planned_start() -> None:
    """What is left beside the planned start of `head` was given to `elastic`, which gives way to that in time, and then
    taken from it for `other`, which had been kept out as it would not."""
    given = cluster("1 node x 4").scheduling(backfill="easy").policies(ordering="fifo")
    given.running("ends", 2, ends_in=1000.0).running("elastic", 2, (1, 2))
    given.pending("head", 3).pending("other", 1).pending("short", 1, estimated_runtime_s=100.0)
    decided = given.turn().decisions
    assert decided == [Resize("elastic", 1), Nominate("short", 1)]


@pytest.mark.parametrize("cpus", [0, 1000])
@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_work_that_fits_beside_a_planned_start_on_another_of_its_nodes_starts_there(backfill: str, cpus: int) -> None:
    """With CPUs, as all live work has them, a planned start is of places: the fullest node was in its way, and then all
    of its nodes were left out at once."""
    given = cluster("2 nodes x 4").scheduling(backfill=backfill)
    each = Group("w", 1, (Option(None, Resources(1000, cpus)),))

    def of(name: str, gpus: int, lasts: float, **more: Any) -> Workload:
        sizes = {"min_size": gpus, "max_size": gpus}
        return Workload(name, name, "train", (each,), estimated_runtime_s=lasts, **sizes, **more)

    for name, gpus, lasts in (("fill", 2, 100.0), ("more", 1, 5.0), ("short", 2, 170.0), ("long", 3, 400.0)):
        given.turn(facts.Submitted(given.now, of(name, gpus, lasts)))
        given.after(1.0, facts.Bound(given.now, f"{name}/0", 1))
        if name == "short":
            given.after(1.0, facts.Finished(given.now, "more/0", 1, "succeeded"))
    assert given.turn(facts.Submitted(given.now, of("head", 4, 40.0, priority=80))).decisions == []
    given.after(10.0, facts.Finished(given.now, "fill/0", 1, "succeeded"))
    assert given.turn().decisions == []
    assert given.turn(facts.Submitted(given.now, of("beside", 1, 255.0))).decisions == [Launch("beside", 1)]


@pytest.mark.parametrize(
    ("each", "starts"),
    [
        (Option(None, Resources(0, 4000)), True),
        (Option("B", Resources(1000, 30_000)), True),
        (Option("A", Resources(1000, 30_000)), False),
        (Option("A", Resources(0, 62_000)), False),
        (Option("A", Resources(0, 50_000)), True),
    ],
)
def test_beside_a_start_planned_by_number_what_takes_cpus_is_kept_out_where_it_would_delay_it_alone(
    each: Option, starts: bool
) -> None:
    """What asks for many CPUs for its GPUs, or for no GPU, was kept out everywhere: on nodes of other flavors too."""
    given = cluster("1 node x 4 A, 1 node x 4 B").running("old", 2, flavor="A", estimated_runtime_s=3000.0)
    head = Group("w", 1, (Option("A", Resources(1000, 1000)),))
    given.turn(facts.Submitted(given.now, Workload("head", "head", "train", (head,), min_size=4, max_size=4)))
    given.after(HOLD_S + 1.0).turn()
    job = Workload("job", "job", "train", (Group("w", 1, (each,)),))
    assert given.turn(facts.Submitted(given.now, job)).decisions == (
        [Launch("job", each.resources.gpus_milli / 1000)] * starts
    )


def test_gpus_beside_which_other_people_use_all_cpus_are_counted_for_nobody() -> None:
    """They were taken to be free for the one that is held for: newer ones went on taking those that it could have."""
    given = cluster("1 node x 4 B, 1 node x 8 A").running("old", 3, flavor="B")
    given.state.apply(facts.ForeignUse(given.now, "a-0", Resources(0, 64_000)))
    each = Group("w", 1, (Option(None, Resources(1000, 1000)),))
    for name, gpus in (("head", 4), ("newer", 1)):
        spec = Workload(name, name, "train", (each,), min_size=gpus, max_size=gpus)
        assert given.turn(facts.Submitted(given.now, spec)).decisions == []
        given.after(HOLD_S + 1.0)
