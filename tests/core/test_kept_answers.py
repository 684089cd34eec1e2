"""A refusal is kept only while all that it depends on is unchanged: a pass follows from the journal alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import worlds
from ledger import Given, Nominate, Preempt, cluster

from llmsched.core import decisions, facts, planned
from llmsched.core.amounts import options_of
from llmsched.core.configuration import NodeType, PreemptionRules
from llmsched.core.past_use import last_count, next_count, period_s
from llmsched.core.resources import Resources
from llmsched.core.rules import Rules
from llmsched.core.scheduler import decide, turn
from llmsched.core.shapes import Shape
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.stages import longest, victims
from llmsched.core.stages.choice import Choice
from llmsched.core.stages.preempt import Search
from llmsched.core.stages.unasked import Unasked
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

RIGHTS = (7, 12, 14, 24, 29, 33, 34)  # worlds in which classes are asked whether they may take anything,
NOTHING_LOST = (13, 23, 24, 29, 31, 37)  # and in which somebody finds victims, in most of them at no loss


class Story:
    """Facts one after the other, a pass after each, and the same journal folded again beside every pass."""

    def __init__(self, given: Given) -> None:
        self.state, self.policies, self.names = given.state, load(given.names), given.names
        self.journal: list[Any] = [
            facts.Configured(0.0, self.state.configuration),
            *(facts.NodeJoined(0.0, node) for node in given.nodes),
        ]
        self.at = 0.0

    def now(self, *happened: facts.Fact, after: float = 1.0) -> list[Any]:
        """What the pass decides."""
        self.at += after
        said = [facts.Tick(self.at), *happened]
        for fact in said:
            self.state.apply(fact)
        self.journal += said
        again = State()
        for entry in self.journal:
            again.apply(entry)
        fresh = decide(again, load(self.names)).decisions
        decided = turn(self.state, (), self.policies).decisions
        assert decided == fresh, "the same journal, folded again, decides otherwise"
        self.journal += decided
        return decided

    def submit(self, name: str, gpus: int = 1, **more: Any) -> list[Any]:
        group = Group("workers", 1, (Option(None, Resources(gpus * 1000)),))
        return self.now(facts.Submitted(self.at, Workload(name, name, "train", (group,), **more)))

    def run(self, name: str, gpus: int = 1, **more: Any) -> None:
        assert kinds(self.submit(name, gpus, **more)) == [("Launch", f"{name}/0")]
        self.now(facts.Bound(self.at, f"{name}/0", self.state.gangs[f"{name}/0"].attempt))


def kinds(decided: list[Any]) -> list[tuple[str, str]]:
    return [(type(one).__name__, one.gang) for one in decided]


@pytest.mark.parametrize("ordering", ["finish_time_fair", "priority"])
def test_who_has_waited_longer_gets_what_somebody_is_leaving_though_a_newcomer_is_asked_as_well(ordering: str) -> None:
    story = Story(cluster("1 node x 1").policies(ordering=ordering))
    story.run("runs")
    assert story.submit("high", priority=90) == []
    assert ("Nominate", "high/0") in kinds(story.now(facts.Cancelled(story.at, "runs", "ann")))
    assert story.submit("low", priority=10) == []
    assert kinds(story.now(facts.Released(story.at, "runs/0", 1))) == [("Launch", "high/0")]


def test_a_run_that_is_over_its_time_leaves_room_for_who_was_refused_before() -> None:
    story = Story(cluster("1 node x 1"))
    story.run("short", max_runtime_s=100.0)
    assert story.submit("high", priority=90) == []
    decided = story.now(after=200.0)
    assert [type(one).__name__ for one in decided] == ["Stop", "Nominate"]


def test_the_guarantee_of_an_owner_that_no_longer_waits_is_lent() -> None:
    story = Story(cluster("1 node x 2").queue("A", gpus=2).queue("B", gpus=0).policies(ordering="priority"))
    story.run("a1", queue="A")
    assert story.submit("a2", gpus=2, queue="A") == []
    assert story.submit("b1", queue="B") == []
    assert kinds(story.now(facts.Cancelled(story.at, "a2", "ann"))) == [("Launch", "b1/0")]


def test_who_was_shielded_when_it_was_looked_at_may_be_evicted_later() -> None:
    given = cluster("1 node x 1").rules(within_queue="lower_priority")
    story = Story(given)
    story.run("low", priority=10, min_runtime_s=300.0)
    assert story.submit("high", priority=90) == []
    assert kinds(story.now(after=299.0)) == [("Preempt", "low/0"), ("Nominate", "high/0")]


def test_shares_that_only_time_changes_are_looked_at_again() -> None:
    given = cluster("1 node x 2").queue("a", gpus=0).queue("b", gpus=0)
    given.scheduling(
        fair_share="guarantee_then_weight", usage_half_life_s=600.0, usage_k=1.0, usage_window_s=6000.0,
        preemption=PreemptionRules(reclaim="any"),
    )  # fmt: skip
    story = Story(given)
    story.run("b0", gpus=2, queue="b")
    story.now(facts.Finished(story.at, "b0/0", 1, "succeeded"), after=6000.0)
    story.run("a1", gpus=2, queue="a")
    story.submit("b1", gpus=2, queue="b")
    passes = 0
    while story.state.gangs["b1/0"].nomination is None:
        passes += 1
        assert passes < 400, "it never came to be b's turn"
        wake = decide(story.state, story.policies).wake_at
        assert wake is not None, "nothing will ever ask again"
        story.now(after=max(wake - story.at, 0.001))
    assert story.at < 6000.0 + 20 * 600.0


def test_shares_that_the_demand_of_others_changes_are_looked_at_again() -> None:
    given = cluster("1 node x 4").queue("a", gpus=0, weight=2.0).queue("b", gpus=0, weight=4.0).queue("c", gpus=2)
    given.scheduling(fair_share="guarantee_then_weight", preemption=PreemptionRules(reclaim="any"))
    story = Story(given)
    story.now(facts.ForeignUse(story.at, "n-0", Resources(1000)))
    story.run("a1", gpus=2, queue="a")
    assert story.submit("c1", gpus=2, queue="c") == [], "a holds no more than it is due"
    assert ("Preempt", "a1/0") in kinds(story.submit("b1", gpus=4, queue="b")), "what b asks for lowers what a is due"


@pytest.mark.parametrize("quantum_s", [600.0, 60.0])
def test_by_rank_a_journal_that_is_folded_again_ranks_when_the_first_did(quantum_s: float) -> None:
    given = cluster("1 node x 4").queue("q", gpus=4).policies(ordering="priority", elasticity="even")
    given.scheduling(preemption=PreemptionRules("by_rank"), quantum_s=quantum_s, order="best_effort")
    story = Story(given)
    story.run("low", gpus=4, queue="q", priority=10)
    evicted = []
    for number in range(1, 12):
        story.submit(f"w{number}", gpus=4, queue="q", priority=10 + number)
        for gang in [*story.state.vacating]:
            evicted.append((story.at, gang))
            story.now(facts.Released(story.at, gang, story.state.gangs[gang].attempt))
        story.now(after=quantum_s / 4)
    quanta = [int(at // quantum_s) for at, _ in evicted]
    assert len(evicted) >= 2 and len(quanta) == len(set(quanta)), "nobody is evicted twice in a quantum"


@pytest.mark.parametrize(
    "knobs",
    [
        {"preemption": PreemptionRules("by_rank", "any"), "order": "best_effort", "quantum_s": 600.0},
        {"fair_share": "weighted_drf_over_borrowed"},
        {"fair_share": "drf_total"},
        {"preemption": PreemptionRules("lower_priority", "any")},
    ],
    ids=["by rank", "over what is borrowed", "over the whole", "by priority"],
)
def test_whose_turn_it_is_does_not_depend_on_whether_somebody_was_refused_before(knobs: dict[str, Any]) -> None:
    """A queue stands where its best gang puts it, though that one is not asked again."""
    given = cluster("1 node x 7").queue("a", gpus=4, borrow=0).queue("b", gpus=4, borrow=0)
    story = Story(given.scheduling(**knobs).policies(ordering="fifo"))
    story.run("a0", gpus=3, queue="a")
    story.run("b0", gpus=2, queue="b")
    assert story.submit("a1", gpus=2, queue="a") == [], "more than its queue may take"
    small = Workload("a2", "a2", "train", (Group("workers", 1, (Option(None, Resources(1000)),)),), queue="a")
    large = Workload("b1", "b1", "train", (Group("workers", 1, (Option(None, Resources(2000)),)),), queue="b")
    decided = story.now(facts.Submitted(story.at, small), facts.Submitted(story.at, large))
    assert kinds(decided) == [("Launch", "b1/0")]


def test_who_was_left_out_is_asked_once_somebody_leaves_more_than_was_needed() -> None:
    """What a victim leaves beyond the need of whom it makes room for goes to those who come after, in the same pass."""
    given = cluster("1 node x 8").queue("a", gpus=4).queue("b", gpus=4).queue("c", gpus=0)
    story = Story(given.rules(reclaim="any").policies(ordering="fifo"))
    story.run("a0", gpus=8, queue="a")
    assert story.submit("c0", gpus=2, queue="c") == []
    decided = kinds(story.submit("b0", gpus=2, queue="b"))
    assert decided == [("Preempt", "a0/0"), ("Nominate", "b0/0"), ("Nominate", "c0/0")]


def test_a_victim_that_a_policy_forbids_for_a_while_is_asked_for_again_though_nothing_happens() -> None:
    class Patient:
        def cost(self, victim: Any, beneficiary: Any, view: Any) -> int | None:
            return None if view.held_for_s(victim) < 300.0 else 1

    story = Story(cluster("1 node x 1").rules(within_queue="lower_priority"))
    story.run("low", priority=10)
    story.policies = replace(story.policies, preemption=Patient())
    for name in ("high", "like"):
        story.state.apply(facts.Submitted(story.at, replace(work_of(story, "low"), id=name, name=name, priority=90)))
    assert turn(story.state, (), story.policies).decisions == []
    story.state.apply(facts.Tick(story.at + 290.0))
    assert turn(story.state, (), story.policies).decisions == []
    story.state.apply(facts.Tick(story.at + 310.0))
    decided = turn(story.state, (), story.policies).decisions
    assert kinds(decided)[0] == ("Preempt", "low/0")


def work_of(story: Story, name: str) -> Workload:
    return story.state.workloads[name].workload


def test_a_place_that_past_use_moves_changes_hands_once_between_two_counts() -> None:
    """Whoever has it uses more, so without counts apart the two would take turns at every look."""
    half_life = 600.0
    given = cluster("1 node x 4").queue("a", gpus=0).queue("b", gpus=0)
    given.scheduling(
        fair_share="guarantee_then_weight", usage_half_life_s=half_life, usage_k=1.0, usage_window_s=6000.0,
        preemption=PreemptionRules(reclaim="any"),
    )  # fmt: skip
    story = Story(given)
    story.run("a1", gpus=3, queue="a", grace_s=0.0)
    story.submit("b1", gpus=2, queue="b", grace_s=0.0)
    told: list[float] = []
    while story.at < 20 * half_life:
        for gang in [story.state.gangs[name] for name in story.state.holding]:
            says = facts.Released if gang.status is Status.VACATING else facts.Bound
            if gang.started_at is None or says is facts.Released:
                story.now(says(story.at, gang.id, gang.attempt), after=0.0)
        told += [story.at for one in story.now(after=7.0) if isinstance(one, decisions.Preempt)]
    assert len(told) >= 4, "both have their turns"
    assert all(later // half_life > earlier // half_life for earlier, later in pairwise(told))


@pytest.mark.parametrize("half_life", [0.7, 600.0, 1e5 / 3, 604800.0])
def test_the_moment_of_a_count_belongs_to_it_whatever_division_makes_of_it(half_life: float) -> None:
    now = 1.7e9 / 3
    for _ in range(200):
        following = next_count(now, half_life)
        assert last_count(now, half_life) <= now < following == last_count(following, half_life)
        assert period_s(half_life) <= max(3600.0, half_life / 16)
        now = following


@pytest.mark.parametrize(("ordering", "moves"), [("finish_time_fair", True), ("fifo", False)])
def test_where_nobody_overtakes_and_time_changes_who_is_first_no_pass_is_left_out(ordering: str, moves: bool) -> None:
    given = cluster("1 node x 4").policies(ordering=ordering).scheduling(order="strict_fifo")
    story = Story(given)
    story.run("runs", gpus=2)
    assert story.submit("wide", gpus=3, estimated_runtime_s=5000.0) == []
    story.submit("small", gpus=2, estimated_runtime_s=5.0)
    story.now()
    assert decide(story.state, story.policies).by_clock is moves


def test_what_people_read_changes_at_the_end_of_a_pass_alone() -> None:
    """Whoever looks meanwhile, and a pass that breaks off, find what the last whole pass has told."""
    story = Story(cluster("1 node x 4").policies(ordering="fifo"))
    seen: list[dict[str, Any]] = []

    def reasons() -> dict[str, Any]:
        return {shape.entries[0][1]: shape.reason for shape in story.state.waiting.live.values()}

    class Looks:
        def score(self, bundle: Any, node: Any, view: Any) -> int:
            seen.append(reasons())
            return 0

    story.run("runs", gpus=4)
    for name, gpus in (("wide", 3), ("middle", 2), ("small", 1)):
        story.submit(name, gpus=gpus)
    before = reasons()
    assert all(before.values()) and len(before) == 3
    story.policies = replace(story.policies, placement=Looks())
    story.state.apply(facts.Finished(story.at, "runs/0", 1, "succeeded"))
    decided = turn(story.state, [facts.Tick(story.at + 1.0)], story.policies).decisions
    assert kinds(decided) == [("Launch", "wide/0"), ("Launch", "small/0")]
    assert len(seen) == 2 and seen[0] == seen[1] == before
    assert [*reasons()] == ["middle/0"] and reasons()["middle/0"]


def test_what_was_refused_beside_who_does_not_begin_after_all_is_not_remembered() -> None:
    """`short` was to begin, and `other` found too little beside it; then `high` takes the place and leaves more. What
    keeps `other` out from then on is a planned start, which moves with time."""
    given = cluster("1 node x 4").rules("lower_priority").policies(ordering="shortest_remaining")
    story = Story(given.scheduling(backfill="easy"))
    group = Group("workers", 1, (Option(None, Resources(1000)),))

    def work(name: str, size: int, **more: Any) -> facts.Submitted:
        return facts.Submitted(1.0, Workload(name, name, "train", (group,), min_size=size, max_size=size, **more))

    short = work("short", 3, priority=50, estimated_runtime_s=60.0)
    other = work("other", 2, priority=40, estimated_runtime_s=1000.0)
    decided = story.now(short, other, work("high", 2, priority=90, estimated_runtime_s=5000.0, max_runtime_s=900.0))
    assert kinds(decided) == [("Launch", "high/0")]
    shape = story.state.gangs["other/0"].shape
    assert shape is not None and shape.examined is None
    assert story.state.gangs["other/0"].reason.code == "order"  # type: ignore[union-attr]


def test_that_another_option_is_nowhere_hides_of_none_that_it_waits_for_a_planned_start() -> None:
    """The last option that was tried, of a flavor that is not there, was told and kept as the answer to all of its
    class; so it was not asked when the planned start that was in its way had moved."""
    given = cluster("1 node x 2 B").policies(ordering="fifo").scheduling(backfill="easy", elastic=False)
    given.running("runs", 1, flavor="B", ends_in=100.0).pending("head", 2, flavor="B", priority=90)
    rates = ((1, 1.0), (2, 2.0))
    options = (Option("B", Resources(1000), speedup=rates), Option("A", Resources(1000), speedup=rates))
    spec = Workload("either", "either", "train", (Group("workers", 1, options),), min_size=1, max_size=2)
    decided = given.after(1.0).turn(facts.Submitted(given.now, spec))
    assert decided.decisions == [] and decided.code("either") == "order"


def test_whom_a_hold_kept_from_a_place_is_asked_again_when_time_alone_has_moved_that_hold() -> None:
    """`old` has waited long, and `b` may evict nobody on the node that is held for it. Then `high` has waited long as
    well: held is another node, and only `old` stands where it did. What `b` was told was kept."""
    given = cluster("1 node x 2 A, 1 node x 3 B").rules("lower_priority").scheduling(order="best_effort")
    given.running("low", 1, priority=10, flavor="A", ends_in=4000.0)
    given.running("x", 1, priority=90, flavor="A", ends_in=5000.0)
    given.running("y", 3, priority=90, flavor="B", ends_in=9000.0).pending("old", 2, priority=50)
    given.after(1000.0).pending("high", 3, priority=60).after(1000.0).pending("b", 1, priority=50)
    assert given.turn().decisions == []
    assert given.after(100.0).turn().decisions == []
    assert given.after(800.0).turn().decisions == [Preempt("low", "in_queue_priority"), Nominate("b", 1)]


def test_one_whose_user_asked_for_a_size_while_it_ran_waits_with_those_that_ask_for_the_same_afterwards() -> None:
    """It waited with those that may have any size, and of a snapshot apart from them: these were asked by nobody then,
    and the controller that had read it failed when they had waited for long."""
    given = cluster("1 node x 4").running("asked", 4, (1, 4)).pending("any", 1, (1, 4))
    given.turn(facts.Scaled(given.now, "asked", 3))
    given.turn(facts.NodeLost(given.now, "n-0"), facts.Released(given.now, "asked/0", 1))
    given.after(60.0).turn()
    thawed = thaw(freeze(given.state))
    joined = facts.NodeJoined(given.now, given.nodes[0])
    for state in (given.state, thawed):
        asked, other = (state.gangs[name].shape for name in ("asked/0", "any/0"))
        assert asked is not None and other is not None and asked is not other
        assert kinds(turn(state, [joined], load(given.names)).decisions)[:1] == [("Launch", "asked/0")]


def renting(given: Given) -> Given:
    """Nodes like those that are there may be rented."""
    rented = NodeType("rent", "A", 4, 32, 1 << 36, 0, 2, 60.0)
    given.state.apply(facts.Configured(given.now, replace(given.state.configuration, version=2, node_types=(rented,))))
    return given


def asked_for(decided: Any) -> list[int]:
    return [sum(n for _, n in each.counts) for each in decided if isinstance(each, decisions.RequestCapacity)]


def test_no_node_is_rented_for_one_that_a_window_keeps_out_though_its_class_waited_for_nodes_before() -> None:
    """The live state asked for a node by what the class had been told before, and a restart took that back."""
    given = renting(cluster("1 node x 4 A").reserve(1000.0, 300.0, "ann", gpus=4, flavor="A"))
    given.running("f", 4, flavor="A", max_runtime_s=300.0)
    for name in ("big0", "big1"):
        given.pending(name, 4, flavor="A", max_runtime_s=2000.0)
    assert asked_for(given.turn().plan.decisions) == [2]
    decided = given.after(60.0).turn(facts.Finished(given.now, "f/0", 1, "succeeded"))
    assert given.state.gangs["big0/0"].reason.code == "reservation"  # type: ignore[union-attr]
    assert asked_for(decided.plan.decisions) == [0]
    assert decide(thaw(freeze(given.state)), load(given.names)).decisions == []


def test_by_rank_too_it_is_told_anew_what_it_lacks_when_its_quota_is_there_and_nodes_are_not() -> None:
    """It needs more than is free, so it is not asked: it went on being told of a quota that was free, and no node was
    rented for it, until a restart."""
    given = renting(cluster("1 node x 4 A").queue("a", 8, borrow=0).queue("b", 4).rules("by_rank", "any"))
    given.running("mine", 2, flavor="A", queue="a")
    given.pending("next", 8, (8, 8), flavor="A", queue="a").turn()
    assert given.decide().code("next") == "quota"
    decided = given.after(1.0).turn(facts.Finished(given.now, "mine/0", 1, "succeeded"))
    assert asked_for(decided.plan.decisions) == [1] and given.decide().code("next") == "capacity_coming"


def test_where_one_goes_that_names_no_flavor_does_not_follow_from_nodes_that_have_left() -> None:
    given = cluster("1 node x 4 A, 1 node x 4 B")
    spare = replace(given.nodes[0], id="spare", name="spare")
    given.turn(facts.NodeJoined(given.now, spare))
    given.turn(facts.NodeLost(given.now, given.nodes[0].id))
    given.pending("any", 1)
    live, thawed = (decide(state, load(given.names)).decisions for state in (given.state, thaw(freeze(given.state))))
    assert live == thawed


def test_what_one_was_told_for_itself_ends_when_all_of_its_class_are_told_anew() -> None:
    """Two of a class were kept out by a reservation, which is told to each. When nodes were short as well, the first
    was asked, and its class told so: the second went on to say that a reservation keeps it out, until a restart."""
    given = cluster("1 node x 4").reserve(1000.0, 1000.0, "ann", nodes=("n-0",)).running("a", 2)
    given.pending("x0", 2).pending("x1", 2).after(1100.0)
    given.turn()
    assert [given.turn().plan.reasons[f"{name}/0"].code for name in ("x0", "x1")] == ["reservation"] * 2
    live = given.running("b", 2).turn().plan
    assert {live.reasons[f"{name}/0"].message.code for name in ("x0", "x1")} == {"nodes.busy"}


@pytest.mark.parametrize("seed", (0, 15, 25))
def test_a_timeline_that_several_share_is_what_it_would_be_afresh(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In random worlds: who lets go when, and what is free and used then."""
    kept, compared = planned.timeline_for, 0

    def both(trial: Trial, spec: Workload) -> planned.Timeline:
        nonlocal compared
        with monkeypatch.context() as patched:
            patched.setattr(trial, "_worlds", None)
            fresh = kept(trial, spec)
        found = kept(trial, spec)
        assert [*found.all_ends()] == [*fresh.all_ends()]
        for gone in (len(found.ends), len(found.ends) // 2, 0):
            one, other = found.go_to(gone).state, fresh.go_to(gone).state
            assert one.capacity.by_free == other.capacity.by_free
            held = [
                {name: use for name, use in each.use.items() if use.cpus_milli or use.gpus_milli}
                for each in (one, other)
            ]
            assert held[0] == held[1]
            assert [node.used for node in one.nodes.values()] == [node.used for node in other.nodes.values()]
            assert [one.quota.available(name, None) for name in one.use] == [
                other.quota.available(name, None) for name in one.use
            ]
        compared += 1
        return found

    for module in (planned, longest):
        monkeypatch.setattr(module, "timeline_for", both)
    worlds.play(seed, folds=10**9)
    assert compared > 0


@pytest.mark.parametrize("seed", RIGHTS)
def test_what_a_queue_has_a_right_to_is_what_each_of_its_classes_would_find(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In random worlds: kept for all of them until somebody starts or leaves."""
    kept, answers = Unasked._may_take, set[bool]()

    def both(self: Unasked, shape: Shape) -> bool:
        state, first = self.state, self.state.gangs[shape.entries[0][1]]
        rules = Rules(self.this, first)
        theirs = [(queue, priority) for (queue, priority, may), group in state.groups.items() if may and group.gangs]
        theirs += [(new.spec.queue, new.spec.priority) for new in self.trial.new() if new.spec.preemptible]
        may = rules.shares is not None or rules.rules.while_borrowing == "lower_priority"
        may = may or any(queue == shape.queue and rules.group(queue, priority) for queue, priority in theirs)
        may_reclaim = rules.rules.reclaim != "never" and state.quota.enforced
        for option in options_of(first.spec) if may_reclaim else ():
            rules.option = option
            rules._covered.clear()
            branches = [(flavor, state.quota.branch(shape.queue, flavor)) for flavor in state.capacity.by_flavor]
            may = may or any(own is not None and rules._covered_depth(own, flavor) >= 0 for flavor, own in branches)
        assert kept(self, shape) is may
        answers.add(may)
        return may

    monkeypatch.setattr(Unasked, "_may_take", both)
    worlds.play(seed, folds=10**9)
    assert answers


@pytest.mark.parametrize("seed", NOTHING_LOST)
def test_looking_no_further_where_nothing_is_lost_finds_what_all_sets_would(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, compared = Search._with_option, 0

    def both(self: Search, mask: int, eligible: list[victims.Row]) -> Choice | None:
        nonlocal compared
        with monkeypatch.context() as patched:
            patched.setattr(Choice, "loses_nothing", lambda *_: False)
            fresh = kept(self, mask, eligible)
        found = kept(self, mask, eligible)
        assert found == fresh
        compared += found is not None
        return found

    monkeypatch.setattr(Search, "_with_option", both)
    worlds.play(seed, folds=10**9)
    assert compared
