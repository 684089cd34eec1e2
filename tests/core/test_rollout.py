"""A version that does not come up never takes the place of a replica that answers."""

from __future__ import annotations

import sys

import pytest
from test_walk import POLICIES, node, started, turn, work

from llmsched.core.decisions import Drain, Preempt
from llmsched.core.facts import (
    Bound,
    Cancelled,
    LaunchFailed,
    Lost,
    Published,
    Released,
    Scaled,
    Submitted,
    Tick,
)
from llmsched.core.render import text
from llmsched.core.state import State, Status
from llmsched.core.workload import Retry

BROKEN = ("input", "no such model")


def chat(parcel: str, replicas: int = 2, surge: int = 1, least: int | None = None, **more: object):
    low = replicas if least is None else least
    return work("chat", kind="serve", min_replicas=low, max_replicas=replicas, max_surge=surge, parcel=parcel, **more)


def answering(state: State, gpus: int = 4, replicas: int = 2, **more: int) -> None:
    """Replicas of the good version answer."""
    submitted = Submitted(1.0, chat("good", replicas, **more))
    launched = started(state, node("n0", gpus), submitted, Scaled(1.0, "chat", replicas))
    started(state, *(Bound(2.0, name, 1) for name in launched))


def alive(state: State) -> list[tuple[str, str]]:
    gangs = [state.gangs[name] for name in state.workloads["chat"].gangs]
    return [(gang.id, gang.spec.parcel) for gang in gangs if gang.is_active()]


def test_a_lost_replica_comes_back_as_the_version_that_answered_while_the_new_one_fails() -> None:
    state = State()
    answering(state)
    assert started(state, Submitted(3.0, chat("bad"), replaces=True)) == ["chat/2"]
    assert started(state, LaunchFailed(4.0, "chat/2", 1, *BROKEN)) == []
    record = state.workloads["chat"]
    assert text(record.message) == (
        "the rollout is held, replicas of the version before go on: the new one failed: no such model"
    )
    for attempt, victim in enumerate(("chat/1", "chat/0", "chat/1")):
        lost = state.gangs[victim].attempt
        assert started(state, Lost(10.0 + attempt * 100, victim, lost, "gone"), Tick(90.0 + attempt * 100)) == [victim]
        started(state, Bound(95.0 + attempt * 100, victim, lost + 1))
        assert alive(state) == [("chat/0", "good"), ("chat/1", "good")] and record.phase == "running"


@pytest.mark.parametrize("how", ["preempted", "lost while the new one still starts"])
def test_whoever_must_leave_during_a_rollout_comes_back_as_it_was(how: str) -> None:
    state = State()
    answering(state)
    started(state, Submitted(3.0, chat("new"), replaces=True))
    if how == "preempted":
        state.apply(Preempt("chat/0", 1, 5.0, "in_queue_priority"))
        started(state, Released(5.0, "chat/0", 1))
    else:
        started(state, Lost(4.0, "chat/0", 1, "gone"), Tick(60.0))
    assert state.gangs["chat/0"].spec.parcel == "good"


def test_without_surge_the_one_that_made_room_is_replaced_when_the_new_version_fails() -> None:
    state = State()
    answering(state, gpus=2, surge=0)
    assert started(state, Submitted(3.0, chat("bad", surge=0), replaces=True)) == []
    assert started(state, Released(4.0, "chat/1", 1)) == ["chat/2"]
    assert started(state, LaunchFailed(5.0, "chat/2", 1, *BROKEN)) == ["chat/3"]
    assert started(state, Bound(6.0, "chat/3", 1), Tick(99.0)) == []
    assert alive(state) == [("chat/0", "good"), ("chat/3", "good")]


def test_an_endpoint_grows_by_the_version_that_answers_and_a_good_one_rolls_out_whole() -> None:
    state = State()
    answering(state, gpus=8)
    started(state, Submitted(3.0, chat("new", replicas=4, least=2), replaces=True))
    started(state, Scaled(4.0, "chat", 4))
    assert [parcel for _, parcel in alive(state)] == ["good", "good", "new", "good"]
    started(state, Bound(5.0, "chat/2", 1), Bound(5.0, "chat/3", 1))
    for at in range(6, 30):
        leaving = list(state.vacating)
        new = [
            name for name, parcel in alive(state) if parcel == "new" and state.gangs[name].status is not Status.RUNNING
        ]
        started(
            state, *(Released(at, name, state.gangs[name].attempt) for name in leaving),
            *(Bound(at, name, state.gangs[name].attempt) for name in new),
        )  # fmt: skip
    assert [parcel for _, parcel in alive(state)] == ["new"] * 4


def test_from_zero_one_replica_tries_the_new_version_and_the_old_one_answers_when_it_fails() -> None:
    state = State()
    answering(state, gpus=1, replicas=1, least=0)
    started(state, Scaled(3.0, "chat", 0))
    started(state, Released(4.0, "chat/0", 1), Submitted(5.0, chat("bad", 1, least=0), replaces=True))
    assert started(state, Scaled(6.0, "chat", 1)) == ["chat/1"]
    assert alive(state) == [("chat/1", "bad")]  # nobody answers who could be pushed aside
    assert started(state, LaunchFailed(7.0, "chat/1", 1, *BROKEN)) == ["chat/2"]
    assert alive(state) == [("chat/2", "good")]


def test_a_version_that_never_answered_is_passed_over_by_the_next() -> None:
    state = State()
    answering(state)
    assert started(state, Submitted(3.0, chat("slow"), replaces=True)) == ["chat/2"]
    plan = turn(state, [Submitted(4.0, chat("next"), replaces=True)], POLICIES)
    assert [d.gang for d in plan.decisions if isinstance(d, Drain)] == ["chat/2"]
    assert started(state, Released(5.0, "chat/2", 1), Lost(6.0, "chat/1", 1, "gone"), Tick(60.0)) == ["chat/1"]
    assert alive(state) == [("chat/0", "good"), ("chat/1", "good"), ("chat/3", "next")]


def test_a_published_model_that_does_not_load_leaves_the_others_their_model() -> None:
    state = State()
    answering(state)
    state.apply(Submitted(2.0, work("tuned")))
    state.apply(Cancelled(2.0, "tuned", "user"))
    published = Published(3.0, "chat", "model", "chat", "file:///bad", "tuned")
    assert started(state, published) == ["chat/2"]
    assert state.gangs["chat/2"].model == "file:///bad"
    started(state, LaunchFailed(4.0, "chat/2", 1, *BROKEN))
    assert started(state, Lost(5.0, "chat/0", 1, "gone"), Tick(60.0)) == ["chat/0"]
    assert state.gangs["chat/0"].model == ""
    better = Published(70.0, "chat", "model", "chat", "file:///good", "tuned")
    assert started(state, Bound(65.0, "chat/0", 2), better) == ["chat/3"]  # a newer one gets its chance
    started(state, Bound(80.0, "chat/3", 1))
    assert state.workloads["chat"].answered is not None and state.workloads["chat"].answered.model == "file:///good"


def test_what_has_never_answered_is_replaced_by_the_newest() -> None:
    state = State()
    started(state, Submitted(1.0, chat("first")))
    started(state, Submitted(2.0, chat("second"), replaces=True))
    assert started(state, node("n0", 2)) == ["chat/0", "chat/1"]
    assert [parcel for _, parcel in alive(state)] == ["second", "second"]


def test_a_change_in_place_leaves_those_that_answer_and_is_what_they_start_again_as() -> None:
    state = State()
    answering(state, gpus=4, replicas=2)
    turn(state, [Submitted(10.0, chat("v1", replicas=3), replaces=True, in_place=True)], POLICIES)
    assert alive(state)[:2] == [("chat/0", "v1"), ("chat/1", "v1")] and len(alive(state)) == 3
    assert {gang.revision for gang in state.gangs.values()} == {0}
    assert all(gang.spec is state.workloads["chat"].workload for gang in state.gangs.values())
    started(state, Lost(20.0, "chat/0", 1, "gone"), Tick(30.0))
    assert state.gangs["chat/0"].spec is state.workloads["chat"].workload and state.gangs["chat/0"].revision == 0


def test_what_others_took_away_comes_back_however_often_and_counts_as_no_restart() -> None:
    state = State()
    started(state, node("n0", 1), Submitted(1.0, chat("good", 1, retry=Retry(on_events=(), max_restarts=0))))
    for attempt in range(1, 9):
        started(state, Bound(attempt * 100.0, "chat/0", attempt))
        gone = Lost(attempt * 100.0 + 1, "chat/0", attempt, "Ray Serve was shut down by somebody", by_others=True)
        assert state.workloads["chat"].phase == "running"
        assert started(state, gone, Tick(attempt * 100.0 + 90)) == ["chat/0"]
        assert state.workloads["chat"].phase == "starting" and state.gangs["chat/0"].restarts == 0
    assert started(state, Bound(950.0, "chat/0", 9), Lost(951.0, "chat/0", 9, "died"), Tick(1100.0)) == []
    assert state.workloads["chat"].phase == "failed"


def calls_of_another_version(replicas: int) -> int:
    state = State()
    answering(state, gpus=replicas, replicas=replicas)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        state.apply(Submitted(3.0, chat("other", replicas), True))
    finally:
        sys.setprofile(None)
    return calls


def test_a_new_version_looks_once_at_each_replica_and_compares_none_with_another() -> None:
    assert calls_of_another_version(80) < 6 * calls_of_another_version(20)
