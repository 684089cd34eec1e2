"""A gang walks through its life; a turn places what fits and explains what does not."""

from __future__ import annotations

from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Drain, Launch, Stop
from llmsched.core.facts import (
    AdapterLoaded,
    Bound,
    Cancelled,
    Finished,
    LaunchFailed,
    Lost,
    NodeJoined,
    Published,
    Released,
    Scaled,
    Submitted,
    Tick,
)
from llmsched.core.invariants import violations
from llmsched.core.message import ACTOR, Ref, say
from llmsched.core.nodes import Node
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide, turn
from llmsched.core.state import State, Status
from llmsched.core.workload import Group, Option, Publish, Retry, Workload
from llmsched.policies.registry import load

POLICIES = load(PolicyNames())


def node(name: str, gpus: int = 2, flavor: str = "A100") -> NodeJoined:
    return NodeJoined(0.0, Node(name, Resources(gpus * 1000, 8000, 1 << 34), flavor))


def work(name: str, gpus: int = 1000, kind: str = "train", **more: object) -> Workload:
    group = Group("workers", 1, (Option("A100", Resources(gpus)),))
    return Workload(name, name, kind, (group,), **more)  # type: ignore[arg-type]


def started(state: State, *facts: object) -> list[str]:
    plan = turn(state, list(facts), POLICIES)  # type: ignore[arg-type]
    assert violations(state) == []
    return [decision.gang for decision in plan.decisions if isinstance(decision, Launch)]


def test_two_fit_the_third_waits_and_starts_when_one_ends() -> None:
    state = State()
    assert started(state, node("n0"), *(Submitted(1.0, work(name)) for name in "abc")) == ["a/0", "b/0"]
    assert state.workloads["c"].phase == "waiting"
    assert state.gangs["c/0"].reason is not None and state.gangs["c/0"].reason.code == "nodes"
    started(state, Bound(2.0, "a/0", 1))
    assert state.workloads["a"].phase == "running"
    assert started(state, Finished(3.0, "a/0", 1, "succeeded", artifact="file:///x")) == ["c/0"]
    assert state.workloads["a"].phase == "succeeded" and state.workloads["a"].artifact == "file:///x"


def test_what_fails_is_tried_again_as_often_as_its_spec_says_and_keeps_its_message() -> None:
    state = State()
    retry = Retry(max_restarts=2, backoff_s=0.0)
    assert started(state, node("n0"), Submitted(1.0, work("a", retry=retry))) == ["a/0"]
    for attempt in (1, 2):
        assert started(state, Finished(2.0, "a/0", attempt, "failed", "no luck"), Tick(3.0)) == ["a/0"]
    assert state.workloads["a"].phase == "starting" and state.gangs["a/0"].restarts == 2
    assert started(state, Finished(4.0, "a/0", 3, "failed", "no luck"), Tick(5.0)) == []
    assert state.workloads["a"].phase == "failed"
    assert (state.gangs["a/0"].restarts, text(state.gangs["a/0"].message)) == (2, "no luck (after 3 attempts)")


def test_wrong_input_fails_at_once_because_no_attempt_can_cure_it() -> None:
    state = State()
    assert started(state, node("n0"), *(Submitted(1.0, work(name)) for name in "ab")) == ["a/0", "b/0"]
    assert started(state, LaunchFailed(2.0, "a/0", 1, "input", "no such model")) == []
    assert started(state, Finished(3.0, "b/0", 1, "failed", "no such column", "input"), Tick(60.0)) == []
    assert [state.workloads[name].phase for name in "ab"] == ["failed", "failed"]
    assert text(state.gangs["a/0"].message) == "no such model" and state.gangs["a/0"].restarts == 0


def test_without_nodes_everything_waits_for_nodes() -> None:
    state = State()
    assert started(state, Submitted(1.0, work("a"))) == []
    assert state.gangs["a/0"].reason is not None and state.gangs["a/0"].reason.code == "nodes"


def test_half_gpus_share_a_device() -> None:
    state = State()
    assert len(started(state, node("n0", 1), *(Submitted(1.0, work(name, gpus=500)) for name in "abc"))) == 2
    assert state.gangs["a/0"].held[0].gpu_index == state.gangs["b/0"].held[0].gpu_index == 0


def test_a_lost_attempt_starts_again_after_a_pause_and_fails_when_retries_are_spent() -> None:
    state = State()
    workload = work("a")
    started(state, node("n0"), Submitted(1.0, workload))
    now = 1.0
    for attempt in range(1, 7):
        assert state.gangs["a/0"].attempt == attempt
        now += 100.0
        started(state, Bound(now, "a/0", attempt), Lost(now, "a/0", attempt, "node gone"))
        if attempt < 6:
            assert state.gangs["a/0"].status is Status.QUEUED
            assert state.gangs["a/0"].reason is not None and state.gangs["a/0"].reason.code == "backoff"
            started(state, Tick(now + 60.0))
    assert state.workloads["a"].phase == "failed" and "node gone" in text(state.workloads["a"].message)


def test_a_serve_workload_keeps_its_replicas_and_drains_them_when_cancelled() -> None:
    state = State()
    qwen = work("qwen", kind="serve", min_replicas=2, max_replicas=3)
    assert started(state, node("n0", 4), Submitted(1.0, qwen)) == ["qwen/0", "qwen/1"]
    started(state, Bound(2.0, "qwen/0", 1), Bound(2.0, "qwen/1", 1))
    assert state.workloads["qwen"].phase == "running"
    assert started(state, Scaled(3.0, "qwen", 3)) == ["qwen/2"]
    plan = turn(state, [Bound(4.0, "qwen/2", 1), Scaled(4.0, "qwen", 2)], POLICIES)
    assert plan.decisions == [Drain("qwen/2", 1, 120.0, say("drain.surplus", wanted=2))]
    started(state, Released(5.0, "qwen/2", 1))
    assert started(state, Scaled(6.0, "qwen", 3)) == ["qwen/3"]
    plan = turn(state, [Cancelled(7.0, "qwen")], POLICIES)
    assert [type(decision) for decision in plan.decisions] == [Drain] * 3
    assert state.workloads["qwen"].phase == "stopping"
    started(state, *(Released(8.0, f"qwen/{index}", 1) for index in (0, 1, 3)))
    assert state.workloads["qwen"].phase == "cancelled"


def test_a_changed_serve_spec_surges_one_up_and_then_drains_the_old() -> None:
    state = State()
    qwen = work("qwen", kind="serve", min_replicas=2, max_replicas=2)
    started(state, node("n0", 4), Submitted(1.0, qwen))
    started(state, Bound(2.0, "qwen/0", 1), Bound(2.0, "qwen/1", 1))
    changed = work("qwen", kind="serve", min_replicas=2, max_replicas=2, parcel="new")
    assert started(state, Submitted(3.0, changed, replaces=True)) == ["qwen/2"]
    plan = turn(state, [Bound(4.0, "qwen/2", 1)], POLICIES)
    assert plan.decisions[0] == Drain("qwen/1", 1, 120.0, say("drain.replaced"))
    started(state)
    assert state.gangs["qwen/3"].status is Status.LAUNCHING
    plan = turn(state, [Bound(5.0, "qwen/3", 1), Released(5.0, "qwen/1", 1)], POLICIES)
    assert [type(decision) for decision in plan.decisions] == [Drain]
    started(state, Released(6.0, "qwen/0", 1))
    assert [g for g in state.workloads["qwen"].gangs if state.gangs[g].is_active()] == ["qwen/2", "qwen/3"]


def test_a_published_adapter_is_loaded_once_on_every_running_replica() -> None:
    state = State()
    started(state, node("n0", 4), Submitted(1.0, work("qwen", kind="serve", min_replicas=2, max_replicas=2)))
    started(state, Bound(2.0, "qwen/0", 1))
    state.apply(Submitted(2.0, work("sql-lora")))
    state.apply(Cancelled(2.0, "sql-lora", "user"))
    plan = turn(state, [Published(3.0, "qwen", "adapter", "sql", "file:///a", "sql-lora")], POLICIES)
    assert [(d.gang, d.name) for d in plan.decisions] == [("qwen/0", "sql")]  # type: ignore[union-attr]
    plan = turn(state, [Bound(4.0, "qwen/1", 1), AdapterLoaded(4.0, "qwen/0", 1, "sql", "file:///a")], POLICIES)
    assert [(d.gang, d.name) for d in plan.decisions] == [("qwen/1", "sql")]  # type: ignore[union-attr]
    assert turn(state, [Tick(9.0)], POLICIES).decisions == []


def test_a_dependent_starts_after_success_and_gives_up_after_failure() -> None:
    state = State()
    publish = Publish("qwen")
    started(state, node("n0", 4), Submitted(1.0, work("a", publish=publish)), Submitted(1.0, work("b", after=("a",))))
    assert state.gangs["b/0"].reason is not None and state.gangs["b/0"].reason.code == "dependency"
    assert started(state, Bound(2.0, "a/0", 1), Finished(3.0, "a/0", 1, "succeeded")) == ["b/0"]
    started(state, Submitted(4.0, work("c")), Submitted(4.0, work("d", after=("c",))))
    plan = turn(state, [Cancelled(5.0, "c", "ann")], POLICIES)
    assert plan.decisions == [Stop("c/0", 1, 120.0, "cancelled", say("cancelled_by", by=Ref(ACTOR, "ann")))]
    turn(state, [Released(6.0, "c/0", 1)], POLICIES)
    assert state.workloads["c"].phase == "cancelled"
    assert state.workloads["d"].phase == "failed" and "c" in text(state.workloads["d"].message)


def test_deciding_leaves_the_state_as_it_was() -> None:
    state = State()
    started(state, node("n0", 1), *(Submitted(1.0, work(name)) for name in "abc"))
    state.apply(Finished(3.0, "a/0", 1, "succeeded"))
    before = state.digest()
    assert decide(state, POLICIES).decisions
    assert state.digest() == before
