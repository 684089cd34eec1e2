"""The life of an attempt, whatever its kind: a kind of the test's own under the real supervisor, without Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S, wait_until

from llmsched.runtime import supervisor as module
from llmsched.runtime.attempt import Life, Outcome
from llmsched.runtime.health import Pulse
from llmsched.runtime.supervisor import FORCED, Supervisor


class Scripted:
    """Works until it is told how it ended; says what was done to it. `becomes`: what comes of a change
    of its size as it is; None: it cannot."""

    becomes: bool | None = None
    begins = True  # else it is still on its way when something is asked of it

    def __init__(self, life: Life) -> None:
        self.life, self.ended = life, threading.Event()
        self.how: Outcome | None = None
        self.did: list[str] = []
        MADE.append(self)

    def run(self) -> None:
        if self.begins:
            self.life.begin()
        self.ended.wait()
        if self.how is not None:
            raise self.how

    def ends(self, how: Outcome | None = None) -> None:
        self.how = how
        self.ended.set()

    def ask_to_leave(self, grace_s: float) -> None:
        self.did.append("asked")

    def end(self) -> None:
        self.did.append("ended")
        self.ends(Outcome("failed", "its process was killed", "interruption"))
        self.life.left.wait(PATIENCE_S)

    def let_go(self) -> bool:
        self.did.append("let go")
        return True

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        return self.becomes is not None

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        self.did.append(f"became {len(members)}")
        return bool(self.becomes)

    def controlled_by(self, controller: Any) -> None:
        raise AssertionError("nobody controls it")


MADE: list[Scripted] = []


@pytest.fixture
def born(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    monkeypatch.setattr(module, "_KINDS", {"scripted": (__name__, "Scripted")})
    monkeypatch.setattr(module, "_HEALTH_EVERY_S", 0.01)
    monkeypatch.setattr(module, "node_name", lambda node: f"node-{node}")
    MADE.clear()

    def make(nodes: str = "ab", spec: dict[str, Any] | None = None) -> Supervisor:
        # Its threads outlive the test, and the process that they end is the tests' own.
        made = Supervisor(
            json.dumps({**order(nodes, str(tmp_path)), "spec": spec or {}}), end_process=lambda code: None
        )
        wait_until(lambda: made.status()["started"], 30, "it has begun")
        return made

    yield make
    for one in MADE:
        one.ends()


def order(nodes: str, storage: str) -> dict[str, Any]:
    return {
        "workload": "w", "gang": "w/0", "attempt": 1, "epoch": 1, "kind": "scripted", "spec": {}, "envs": {},
        "members": members(nodes), "storage": storage, "inputs": {}, "grace_s": 30.0,
    }  # fmt: skip


def members(nodes: str) -> list[dict[str, Any]]:
    return [{"rank": rank, "node": node} for rank, node in enumerate(nodes)]


def receipt(one: Supervisor) -> dict[str, Any]:
    wait_until(lambda: one.status()["receipt"], 30, "its receipt")
    found: dict[str, Any] = one.status()["receipt"]
    return found


def test_what_ends_by_itself_has_succeeded_and_nobody_asked_it_to_leave(born: Callable[..., Supervisor]) -> None:
    one = born()
    MADE[0].ends()
    assert (receipt(one)["outcome"], receipt(one)["asked"]) == ("succeeded", "")
    assert MADE[0].did == ["let go"]


def test_what_it_reported_last_stands_in_its_receipt_with_all_crossings_of_comparisons(
    born: Callable[..., Supervisor],
) -> None:
    one = born()
    one.report({"loss": 5, "notify.when": {"loss > 4": [1, 5, True, True]}})
    one.report({"loss": 3, "notify.when": {"loss > 4": [2, 9, True, False]}})
    said = {"loss": 3, "notify.when": {"loss > 4": (2, 9, True, False)}}  # 5 and what came then is one crossing
    assert one.status()["progress"] == said
    MADE[0].ends(Outcome("failed", "it broke"))
    found = receipt(one)
    assert found["progress"] == json.loads(json.dumps(said)) and found["outcome"] == "failed"


def test_what_nobody_uses_any_more_is_asked_to_leave_and_has_succeeded(born: Callable[..., Supervisor]) -> None:
    one = born("a", {"task": {"interactive": {"inactivity": 0.1}}})
    wait_until(lambda: MADE[0].did == ["asked"], 30, "it is asked to leave")
    MADE[0].ends(Outcome("failed", "it was ended by signal SIGTERM"))
    found = receipt(one)
    told = ("succeeded", "ended by itself: nobody has used it for 0.1 s", "")
    assert (found["outcome"], found["message"], found["asked"]) == told


def test_what_does_not_leave_within_its_grace_is_ended_by_force_and_the_receipt_says_who_asked(
    born: Callable[..., Supervisor],
) -> None:
    one = born()
    one.stop("preempt", 0.05)
    found = receipt(one)
    assert (found["outcome"], found["message"], found["asked"]) == ("released", FORCED, "preempt")
    assert MADE[0].did == ["asked", "ended", "let go"]


def test_an_attempt_ends_at_once_when_one_of_its_nodes_is_gone_also_while_it_changes_its_size(
    born: Callable[..., Supervisor],
) -> None:
    one = born("ab")
    one.lost_node("z")  # of others
    one.resize(json.dumps(members("abc")), 3600.0)
    wait_until(lambda: MADE[0].did == ["asked"], 30, "it is asked to leave")
    one.lost_node("c")  # where it was to grow
    found = receipt(one)
    assert (found["outcome"], found["event"]) == ("failed", "interruption")
    assert found["message"] == "its node node-c went away"
    assert len(MADE) == 1


def test_a_resize_is_a_new_try_that_knows_nothing_of_the_old_one(born: Callable[..., Supervisor]) -> None:
    one = born("ab")
    one.works_in(1, "b", "/tmp", {})
    one.failed(1, "an echo", "interruption")
    one.resize(json.dumps(members("a")), 3600.0)
    MADE[0].ends(Outcome("released", "left as asked"))
    wait_until(lambda: len(MADE) == 2 and one.status()["started"], 30, "another try")
    assert (one.status()["size"], one.status()["stopping"], one.resizes) == (1, "", 1)
    assert one.status()["is_clear"]
    assert not one.ranks.places and not one.ranks.failures and not one.left.is_set()
    MADE[1].ends()
    assert receipt(one)["outcome"] == "succeeded"


@pytest.mark.parametrize("works", [True, False])
def test_what_can_change_its_size_as_it_is_goes_on_and_begins_again_only_when_that_fails(
    works: bool, born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "becomes", works)
    one = born("a")
    one.resize(json.dumps(members("abc")), 3600.0)
    if works:
        wait_until(lambda: one.status()["size"] == 3, 30, "the other size")
        assert (MADE[0].did, one.status()["stopping"], one.status()["started"]) == (["became 3"], "", True)
        MADE[0].ends()
        assert receipt(one)["outcome"] == "succeeded" and len(MADE) == 1
    else:
        wait_until(lambda: "asked" in MADE[0].did, 30, "it is asked to leave")
        assert (MADE[0].did, one.status()["stopping"]) == (["became 3", "asked"], "resize")


def test_one_that_was_forced_to_another_size_does_not_say_that_nothing_is_left(born: Callable[..., Supervisor]) -> None:
    one = born("ab")
    one.resize(json.dumps(members("a")), 0.05)
    wait_until(lambda: len(MADE) == 2 and one.status()["started"], 30, "another try")
    assert not one.status()["is_clear"], "guardians may still be at what it started"


def test_a_size_that_is_asked_for_before_the_last_one_has_begun_is_held_at_once_and_leaves_nothing(
    born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica waited 37 s for a GPU until a fine-tune had begun at a size that it then left again."""
    one = born("abcd")
    monkeypatch.setattr(Scripted, "begins", False)
    one.resize(json.dumps(members("abc")), 3600.0)
    MADE[0].ends(Outcome("released", "left as asked", step=7))
    wait_until(lambda: len(MADE) == 2, 30, "the try at three")
    one.resize(json.dumps(members("ab")), 3600.0)
    wait_until(lambda: len(MADE) == 3, 30, "the try at two")
    assert one.status()["size"] == 2
    assert MADE[1].did == ["asked", "ended", "let go"] and one.status()["is_clear"] and not one.status()["receipt"]


def test_a_size_that_is_asked_for_before_a_try_has_a_process_is_not_taken_for_its_end(
    born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, is_asked, note = born("abcd"), threading.Event(), module.receipt.note_beginning

    def slow(*known: Any) -> None:
        is_asked.wait()
        note(*known)

    monkeypatch.setattr(module.receipt, "note_beginning", slow)
    one.resize(json.dumps(members("abc")), 3600.0)
    MADE[0].ends(Outcome("released", "left as asked", step=7))
    wait_until(lambda: one.status()["size"] == 3 and not one.status()["stopping"], 30, "the try at three")
    one.resize(json.dumps(members("ab")), 3600.0)
    is_asked.set()
    wait_until(lambda: one.status()["started"], 30, "it has begun at two")
    assert one.status()["size"] == 2 and not one.status()["receipt"] and MADE[1].did == ["let go"]


def test_work_that_does_not_move_is_said_and_then_ended_as_failed(
    born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "clock", lambda: now[0])
    one = born("ab")
    waits = Pulse("all_reduce, called in bl.py:15", waits=True)
    one.beat(0, waits)
    one.beat(1, Pulse("bl.py:14"))
    one.finished(1)
    now[0] = 25.0
    one.beat(0, waits)
    wait_until(lambda: one.status()["stalled"], 30, "it is said")
    assert one.status()["stalled"].startswith("rank 1 has returned, and rank 0 has waited for over 20 s")
    now[0] = 61.0
    one.beat(0, waits)
    found = receipt(one)
    assert (found["outcome"], found["event"]) == ("failed", "error")
    assert "All ranks must make the same calls" in found["message"]


def test_a_rank_that_never_gave_a_sign_of_life_is_looked_at_too(
    born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "clock", lambda: now[0])
    monkeypatch.setattr(Supervisor, "_look_at", lambda self, ranks: {rank: module.Look(True, 1.0) for rank in ranks})
    one = born("a")
    one.works_in(0, "a", "/tmp", {}, 4711)  # and is stopped before its first sign
    wait_until(lambda: one._health.ranks, 30, "it is watched")
    now[0] = 30.0
    wait_until(lambda: "is stopped (SIGSTOP)" in one.status()["stalled"], 30, "it is said")


def test_a_rank_that_is_silent_is_looked_at_where_it_works(
    born: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "clock", lambda: now[0])
    monkeypatch.setattr(Supervisor, "_look_at", lambda self, ranks: {rank: module.Look(True, 1.0) for rank in ranks})
    one = born("ab")
    one.beat(0, Pulse("bl.py:3"))
    one.beat(1, Pulse("bl.py:3"))
    now[0] = 30.0
    one.beat(0, Pulse("bl.py:9"))
    wait_until(lambda: one.status()["stalled"], 30, "it is said")
    assert "rank 1's process is stopped (SIGSTOP)" in one.status()["stalled"]
    one.beat(1, Pulse("bl.py:4"))
    wait_until(lambda: not one.status()["stalled"], 30, "it goes on")
