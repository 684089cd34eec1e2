"""A snapshot holds all of the state: what is not in it is worked out again, and nothing is forgotten."""

from __future__ import annotations

from dataclasses import fields

from llmsched.core.archive import AT_ONCE, ENDED_KEPT, KEPT_S, due
from llmsched.core.authorization import published_to
from llmsched.core.commands import Submit, check
from llmsched.core.configuration import Configuration, PolicyNames, PreemptionRules, Queue, Quota, Scheduling
from llmsched.core.facts import (
    Archived,
    Cancelled,
    Configured,
    Finished,
    NodeJoined,
    NodeLost,
    Published,
    Released,
    Submitted,
    Tick,
)
from llmsched.core.lives import close
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide, turn
from llmsched.core.snapshot import Snapshot, freeze, thaw
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load

# Attributes of State that a snapshot has under another name, or that follow from what it has.
ELSEWHERE = {
    *("archive", "children", "ends", "fleet", "history", "ledgers", "memo", "open_work", "outstanding", "touched"),
    *("places", "present", "graces", "frees"),
    *("capacity", "configuration", "half_life_s", "quota"),
}


def work(name: str, **more: object) -> Workload:
    plain, _, run = name.partition("@")
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    return Workload(name, plain, "task", (group,), run=int(run or 1), **more)  # type: ignore[arg-type]


def ended(state: State, *names: str, at: float = 1.0) -> None:
    for name in names:
        turn(state, [Submitted(at, work(name))], POLICIES)
        state.apply(Finished(at, f"{name}/0", 1, "succeeded", artifact=f"file:///{name}"))


POLICIES = load(PolicyNames())


def world() -> State:
    state = State()
    state.apply(NodeJoined(0.0, Node("n", Resources(4000, 8000))))
    return state


def test_every_attribute_of_the_state_is_in_a_snapshot_or_follows_from_one() -> None:
    state = State()
    have = vars(state).keys() | vars(state.ledgers).keys() | vars(state.fleet).keys()
    assert have - ELSEWHERE <= {one.name for one in fields(Snapshot)} | {"kinds"}


def test_a_snapshot_stays_as_it_was_whatever_its_state_goes_on_changing() -> None:
    state = world()
    turn(state, [Submitted(1.0, work("a"))], POLICIES)
    frozen = freeze(state)
    before = thaw(frozen).digest()
    for record in (*state.workloads.values(), *state.gangs.values()):
        for name in (one.name for one in fields(record)):
            value = getattr(record, name)
            if isinstance(value, dict) and name != "known":
                value["new"] = "thing"
            elif isinstance(value, list):
                value.append("new")
    assert thaw(frozen).digest() == before


def test_what_left_the_state_is_found_as_before_and_costs_it_nothing() -> None:
    state = world()
    ended(state, "a", "a@2", "b")
    state.apply(Archived(2.0, ("a", "a@2")))
    assert [*state.workloads] == ["b"] and [*state.gangs] == ["b/0"]
    found = state.newest("a")
    assert found is not None and (found.workload.id, found.phase) == ("a@2", "succeeded")
    assert found.known["a@2/0"].attempt == 1
    assert state.archived == {("", "default", "succeeded"): 2}
    again = thaw(freeze(state), state.archive)
    assert again.digest() == state.digest()
    assert again.newest("a@1") is state.newest("a@1")


def test_an_older_run_that_still_lives_does_not_hide_a_newer_one_that_left() -> None:
    state = world()
    turn(state, [Submitted(1.0, work("a"))], POLICIES)
    ended(state, "a@2")
    state.apply(Archived(2.0, ("a@2",)))
    newest = state.newest("a")
    assert newest is not None and newest.workload.run == 2
    newest = thaw(freeze(state), state.archive).newest("a")
    assert newest is not None and newest.workload.run == 2


def test_who_comes_after_what_left_the_state_starts_and_folding_needs_no_archive() -> None:
    state = world()
    ended(state, "data")
    state.apply(Archived(2.0, ("data",)))
    fact = check(state, Submit(3.0, work("train", after=("data",))))
    assert isinstance(fact, Submitted) and fact.met == ("data",)
    blind = thaw(freeze(state))  # its archive is empty
    for one in (state, blind):
        plan = turn(one, [fact], POLICIES)
        assert [decision.gang for decision in plan.decisions] == ["train/0"]
    assert state.digest() == blind.digest()


def test_the_oldest_leave_when_there_are_too_many_or_they_are_too_old_and_not_while_they_are_needed() -> None:
    state = world()
    names = [f"w{n}" for n in range(ENDED_KEPT + AT_ONCE)]
    ended(state, *names)
    assert due(state, 2.0)[0] == tuple(names[:AT_ONCE])
    state.apply(Archived(2.0, tuple(names[:AT_ONCE])))
    assert due(state, 3.0) == ((), ())
    assert due(state, 1.0 + KEPT_S)[0] == tuple(names[AT_ONCE : 2 * AT_ONCE])


def test_what_was_published_is_live_as_before_when_its_origin_has_left() -> None:
    state = world()
    ended(state, "tuned")
    state.apply(Published(2.0, "chat", "adapter", "x", "file:///x", "tuned", is_taken=False))
    state.apply(Archived(2.0, ("tuned",)))
    again = thaw(freeze(state))
    for one in (state, again):
        assert "tuned" not in one.workloads
        assert published_to(one, work("chat", user="somebody-else")) == {}
        assert published_to(one, work("chat"))["x"].uri == "file:///x"


def test_what_nobody_made_is_published_nowhere() -> None:
    state = world()
    state.apply(Published(2.0, "chat", "adapter", "x", "file:///x", "never-was"))
    assert state.publications == {}


def test_a_timer_of_what_left_the_state_wakes_nobody() -> None:
    state = world()
    turn(state, [Submitted(1.0, work("a"))], POLICIES)
    state.apply(Finished(1.0, "a/0", 1, "failed", event="interruption"))
    close(state, state.workloads["a"])
    state.workloads["a"].outcome = "cancelled"
    state.ended["a"] = None
    state.apply(Archived(2.0, ("a",)))
    state.apply(Tick(1000.0))
    assert state.gangs == {}


def test_classes_of_a_thawed_state_stand_in_the_order_of_the_live_one() -> None:
    """Those of elastic gangs stood as their first gangs had been submitted, and shares were given in that order."""
    state, policies = State(), load(PolicyNames(elasticity="even"))

    def work(name: str, least: int, most: int, preemptible: bool = True) -> Workload:
        group = Group("workers", 1, (Option(None, Resources(1000)),))
        return Workload(name, name, "train", (group,), min_size=least, max_size=most, preemptible=preemptible)

    turn(state, [NodeJoined(0.0, Node("n", Resources(2000, 64000, 1 << 40)))], policies)
    turn(state, [Submitted(1.0, work("a", 1, 2)), Submitted(1.0, work("b", 1, 1, False))], policies)
    turn(state, [Submitted(2.0, work("c", 1, 3)), Submitted(2.0, work("d", 2, 2, False))], policies)
    turn(state, [NodeLost(3.0, "n")], policies)
    for name in ("a/0", "b/0"):
        turn(state, [Released(4.0, name, 1)], policies)
    assert {gang.status for gang in state.gangs.values()} == {Status.QUEUED}
    for each in (state, thaw(freeze(state))):
        lines = each.waiting.elastic, each.waiting.lasting
        assert [[shape.entries[0][1] for shape in line.values()] for line in lines] == [["c/0", "a/0"], ["d/0", "b/0"]]


def test_a_thawed_state_asks_who_is_owed_in_the_order_of_the_live_one() -> None:
    """Of two queues that are owed what one node has, the one whose line began first was asked first, and after a
    restart the other."""
    names = PolicyNames(elasticity="even")
    queues = tuple(Queue(name, quotas=(("*", Quota(1000)),)) for name in ("a", "b"))
    rules = Scheduling(preemption=PreemptionRules("by_rank", "never"), quantum_s=60.0)
    policies, state = load(names), State()

    def work(name: str, queue: str, least: int, most: int) -> Workload:
        group = Group("workers", 1, (Option(None, Resources(1000)),))
        return Workload(name, name, "train", (group,), queue=queue, min_size=least, max_size=most)

    turn(state, [Configured(0.0, Configuration(1, queues, scheduling=rules, policies=names))], policies)
    turn(state, [Submitted(2.0, work("early", "a", 2, 2))], policies)
    turn(state, [Submitted(10.0, work("second", "b", 2, 4))], policies)
    turn(state, [Submitted(40.0, work("third", "a", 2, 7))], policies)
    turn(state, [Cancelled(41.0, "early", "ann")], policies)
    for minute in range(1, 85):
        turn(state, [Tick(40.0 + 60 * minute)], policies)
    state.apply(NodeJoined(5170.5, Node("n", Resources(3000, 64000, 1 << 40))))
    again = thaw(freeze(state))
    assert decide(state, policies).decisions == decide(again, policies).decisions != []
