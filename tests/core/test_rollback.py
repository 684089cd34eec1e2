"""An endpoint goes back to a version that answered: as a new revision, without a restart of what runs of it already."""

from __future__ import annotations

from test_rollout import BROKEN, alive, answering, chat
from test_walk import started, work

from llmsched.core.commands import RollBack, check
from llmsched.core.facts import Bound, Cancelled, LaunchFailed, Lost, Published, Released, RolledBack, Submitted, Tick
from llmsched.core.refusal import Refusal
from llmsched.core.render import advice, text
from llmsched.core.rollout import SPEC_BYTES_KEPT, VERSIONS_KEPT
from llmsched.core.snapshot import freeze, thaw
from llmsched.core.state import State, Status


def rolls(state: State, at: float) -> None:
    """Whatever starts answers, and whoever is to leave has left, until nothing happens."""
    for _ in range(20):
        ready = [g for g in state.gangs.values() if g.status is Status.LAUNCHING]
        gone = [g for g in state.gangs.values() if g.status is Status.VACATING]
        if not ready and not gone:
            return
        started(state, *(Bound(at, g.id, g.attempt) for g in ready), *(Released(at, g.id, g.attempt) for g in gone))
    raise AssertionError("it does not come to rest")


def rolled_out(state: State, at: float, parcel: str, **more: object) -> None:
    started(state, Submitted(at, chat(parcel, **more), replaces=True))  # type: ignore[arg-type]
    rolls(state, at)


def back(state: State, at: float, to: int | None = None) -> RolledBack:
    fact = check(state, RollBack(at, "chat", "ann", to))
    assert isinstance(fact, RolledBack), fact
    return fact


def refused(state: State, to: int | None = None, name: str = "chat") -> str:
    answer = check(state, RollBack(99.0, name, "ann", to))
    assert isinstance(answer, Refusal) and answer.code == "no_revision"
    return f"{text(answer.message)}. {advice(answer.message)}"


def test_the_version_before_answers_again_replica_by_replica() -> None:
    state = State()
    answering(state)
    rolled_out(state, 3.0, "worse")
    assert alive(state) == [("chat/2", "worse"), ("chat/3", "worse")]
    assert started(state, back(state, 5.0)) == ["chat/4"]
    assert sorted(parcel for _, parcel in alive(state)) == ["good", "worse", "worse"]  # none leaves before it answers
    rolls(state, 6.0)
    assert [parcel for _, parcel in alive(state)] == ["good", "good"]
    record = state.workloads["chat"]
    assert (record.revision, record.workload.parcel, record.is_unproven) == (2, "good", False)


def test_a_rollout_that_is_held_is_given_up_and_those_that_answer_stay_where_they_are() -> None:
    state = State()
    answering(state, gpus=2, surge=0)
    started(state, Submitted(3.0, chat("bad", surge=0), replaces=True), Released(4.0, "chat/1", 1))
    started(state, Released(4.0, "chat/1", 1))
    started(state, LaunchFailed(5.0, "chat/2", 1, *BROKEN))
    started(state, Bound(6.0, "chat/3", 1))
    before = alive(state)
    assert before == [("chat/0", "good"), ("chat/3", "good")]
    assert started(state, back(state, 7.0)) == []
    record = state.workloads["chat"]
    assert alive(state) == before and not state.vacating and record.message is None and record.phase == "running"
    assert record.revision == 2 and not record.is_unproven
    assert started(state, Lost(8.0, "chat/0", 1, "gone"), Tick(60.0)) == ["chat/0"]
    assert alive(state) == before
    assert "none to go back to" in refused(state)


def test_a_new_version_that_still_starts_leaves() -> None:
    state = State()
    answering(state)
    assert started(state, Submitted(3.0, chat("slow"), replaces=True)) == ["chat/2"]
    started(state, back(state, 4.0))
    assert list(state.vacating) == ["chat/2"] and alive(state) == [("chat/0", "good"), ("chat/1", "good")]


def test_back_and_back_again_is_the_version_of_the_beginning_and_each_can_be_named() -> None:
    state = State()
    answering(state)
    for at, parcel in ((3.0, "second"), (5.0, "third")):
        rolled_out(state, at, parcel)
    started(state, back(state, 7.0, to=0))
    rolls(state, 7.0)
    assert state.workloads["chat"].workload.parcel == "good"
    started(state, back(state, 9.0))
    rolls(state, 9.0)
    assert state.workloads["chat"].workload.parcel == "third"


def test_a_model_that_was_published_is_taken_back_with_it() -> None:
    state = State()
    answering(state)
    state.apply(Submitted(2.0, work("tuned")))
    state.apply(Cancelled(2.0, "tuned", "user"))
    started(state, Published(3.0, "chat", "model", "chat", "file:///worse", "tuned"))
    rolls(state, 3.0)
    assert state.workloads["chat"].answered.model == "file:///worse"  # type: ignore[union-attr]
    started(state, back(state, 5.0))
    rolls(state, 5.0)
    assert state.workloads["chat"].model == "" and {state.gangs[name].model for name, _ in alive(state)} == {""}


def test_where_there_is_nothing_to_go_back_to_it_says_what_there_is() -> None:
    state = State()
    state.apply(Submitted(0.5, work("tuned")))
    assert refused(state, name="tuned").startswith("tuned is no endpoint")
    answering(state)
    assert refused(state) == (
        "no earlier revision of chat has answered: there is none to go back to. Change its spec, and apply it."
    )
    rolled_out(state, 3.0, "second")
    assert refused(state, to=6) == "chat has no revision 7 that answered. Those that did: 1"
    assert refused(state, to=1).startswith("chat is at revision 2 already")
    started(state, Cancelled(6.0, "chat", "user"))
    assert refused(state) == "chat has ended. Apply its file again."
    unknown = check(state, RollBack(9.0, "chatt"))
    assert isinstance(unknown, Refusal) and unknown.code == "unknown_workload"


def test_what_may_be_gone_back_to_is_bounded_in_number_and_size_and_outlives_a_snapshot() -> None:
    state = State()
    answering(state)
    for number in range(VERSIONS_KEPT + 3):
        rolled_out(state, 3.0 + number, f"v{number}")
    assert len(state.workloads["chat"].answered_before) == VERSIONS_KEPT
    again = thaw(freeze(state))
    assert again.digest() == state.digest()
    assert again.workloads["chat"].answered_before == state.workloads["chat"].answered_before
    rolled_out(state, 50.0, "x" * SPEC_BYTES_KEPT)
    rolled_out(state, 60.0, "small")
    assert [len(each.spec.parcel) for each in state.workloads["chat"].answered_before] == [SPEC_BYTES_KEPT]


def test_a_version_that_is_forgotten_meanwhile_is_a_fact_without_effect() -> None:
    state = State()
    answering(state)
    before = state.workloads["chat"].revision
    state.apply(RolledBack(3.0, "chat", 17))
    state.apply(RolledBack(3.0, "nobody", 0))
    assert state.workloads["chat"].revision == before and len(state.notes) == 2
