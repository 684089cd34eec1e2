"""Which task gets the supervisor that another one has left, and who comes before all of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llmsched.executors.bridge import reap, warm_pool
from llmsched.executors.bridge.reap import Reaper
from llmsched.executors.bridge.warm_pool import ATTEMPTS_AT_MOST, IDLE_S, WarmPool
from llmsched.executors.port import LaunchOrder, Member
from llmsched.runtime.addressed import Addressed


class Answer:
    """As Ray's references: no two are the same."""

    def __init__(self, said: Any) -> None:
        self.said = said


class Actor:
    """Of Ray's, as far as it is asked here: its methods answer with what `answers` has for them."""

    def __init__(self, **answers: Any) -> None:
        self.called: list[str] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*_: Any) -> Any:
                self.called.append(name)
                return Answer(self._answers.get(name))

        return Method


def order(name: str, nodes: str = "a", owner: str = "ann", gpus: float = 1.0) -> LaunchOrder:
    members = tuple(Member(rank, node, gpus=gpus) for rank, node in enumerate(nodes))
    return LaunchOrder(name, f"{name}/0", 1, 1, "task", members, {}, "", owner=owner)


def left(pool: WarmPool, name: str, nodes: str = "a", **more: Any) -> Actor:
    actor, of = Actor(), order(name, nodes, **more)
    pool.put(Addressed(actor, of.name), of)
    return actor


def test_the_next_task_of_the_same_owner_on_the_same_places_has_it_and_is_found_by_its_own_name() -> None:
    pool = WarmPool()
    actor = left(pool, "t1")
    assert pool.held() == {"llms-warm/t1/0/1": order("t1").members} and pool.carried() == {"llms-warm/t1/0/1": ""}
    assert pool.take(order("t2")) is actor and pool.take(order("t3")) is None
    assert (pool.held(), pool.carried()) == ({}, {"llms-warm/t1/0/1": "llms/t2/0/1"})
    assert pool.name_of("llms/t2/0/1") == "llms-warm/t1/0/1"
    assert pool.name_of("llms/t1/0/1") == "llms-warm/t1/0/1" and pool.name_of("llms/x/0/1") == "llms-warm/x/0/1"


@pytest.mark.parametrize(
    "other",
    [order("t2", owner="eve"), order("t2", "b"), order("t2", "aa"), order("t2", gpus=2.0)],
    ids=["of another user", "elsewhere", "more of them", "larger"],
)
def test_nobody_else_gets_what_a_task_has_left(other: LaunchOrder) -> None:
    pool = WarmPool()
    left(pool, "t1")
    assert pool.take(other) is None


def test_whoever_is_to_have_a_place_comes_before_those_that_nobody_needs() -> None:
    pool = WarmPool()
    here, both, there = left(pool, "t1", "a"), left(pool, "t2", "ab"), left(pool, "t3", "b")
    pool.make_way(order("large", "a", gpus=8.0))
    assert (here.called, both.called, there.called) == (["leave"], ["leave"], [])
    pool.node_gone("b")
    assert there.called == ["leave"] and not pool.held()
    pool.keep_only(set())
    assert not pool.carried()


def test_what_nobody_comes_for_is_given_back_after_a_moment_and_a_process_is_not_kept_for_ever() -> None:
    now = [0.0]
    pool = WarmPool(lambda: now[0])
    actor = left(pool, "t1")
    now[0] = IDLE_S
    pool.end_idle()
    assert not actor.called
    now[0] += 0.1
    pool.end_idle()
    assert actor.called == ["leave"] and not pool.held()

    actor = left(pool, "x1")
    for number in range(2, ATTEMPTS_AT_MOST + 1):
        assert pool.take(order(f"x{number}")) is actor
        pool.put(Addressed(actor, f"llms/x{number}/0/1"), order(f"x{number}"))
    assert actor.called == ["leave"] and pool.take(order("last")) is None


def carried(of: LaunchOrder, receipt: object = None, *, leaves: bool = False) -> Actor:
    return Actor(carries={"order": json.dumps(asdict(of)), "receipt": receipt, "leaves": leaves})


def test_a_new_bridge_learns_who_has_what_and_hands_on_what_was_left_before(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = {
        "llms-warm/t1/0/1": carried(order("t9")),
        "llms-warm/t5/0/1": carried(order("t6"), {"outcome": "failed"}),
        "llms-warm/t7/0/1": carried(order("t8"), {"outcome": "succeeded"}, leaves=True),
    }
    names = [*actors, "llms-warm/t1/0/1/llms/t1/0/1/rank-0", "llms/tune/0/1"]

    class Ray:
        util: Any = type("util", (), {
            "list_named_actors": staticmethod(lambda **_: [{"name": one, "namespace": "llmsched"} for one in names])
        })  # fmt: skip
        get_actor = staticmethod(lambda name, namespace: actors[name])
        wait = staticmethod(lambda asked, num_returns, timeout: (asked, []))
        get = staticmethod(lambda answer: answer.said)

    monkeypatch.setattr(warm_pool, "ray", Ray)
    pool = WarmPool()
    pool.learn()
    assert pool.name_of("llms/t9/0/1") == "llms-warm/t1/0/1"
    assert [one.called for one in actors.values()] == [["carries"], ["carries", "leave"], ["carries"]]
    assert pool.has_left("llms/t8/0/1") and not pool.has_left("llms/t6/0/1")
    assert pool.take(order("next")) is actors["llms-warm/t7/0/1"] and pool.take(order("another")) is None


def test_the_reaper_goes_by_the_attempt_that_a_supervisor_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, live, taken = WarmPool(), {"llms/t2/0/1"}, list[str]()
    left(pool, "t1")
    pool.take(order("t2"))
    left(pool, "idle")
    names = {"llms-warm/t1/0/1", "llms-warm/idle/0/1", "llms-warm/idle/0/1/llms/idle/0/1/rank-0", "llms-warm/gone/0/1"}
    someone = type("Someone", (), {"names": lambda self: live, "applications": lambda self: set[str]()})()
    monkeypatch.setattr(reap, "_actors", lambda: names)
    monkeypatch.setattr(reap, "TWICE_APART_S", 0.0)
    reaper = Reaper(someone, someone, pool)
    monkeypatch.setattr(reaper, "_take", taken.append)
    reaper.arm()
    reaper.sweep()
    assert taken == ["actor llms-warm/gone/0/1"]
    live.clear()
    pool.make_way(order("other", "a", gpus=3.0))
    reaper.sweep()
    assert sorted(taken[1:]) == sorted(f"actor {name}" for name in names), "who has left all the same, and does not go"


def test_the_same_order_again_finds_members_alike_whatever_else_they_say() -> None:
    pool = WarmPool()
    actor = left(pool, "t1")
    flavored = replace(order("t2"), members=(replace(order("t2").members[0], flavor="A100", group="others"),))
    assert pool.take(flavored) is actor
