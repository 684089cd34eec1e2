"""The table of a gang's life is the program: each row has its story here, which fails without the row or its action."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import llmsched.core
from llmsched.core import decisions, facts, lifecycle
from llmsched.core.invariants import violations
from llmsched.core.lifecycle import TABLE
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Group, Option, Placed, Workload

Q, L, R, Z, V = Status.QUEUED, Status.LAUNCHING, Status.RUNNING, Status.RESIZING, Status.VACATING
ONE, TWO = (Placed("w", "n", 0),), (Placed("w", "n", 0),) * 2
G = "a/0"


class Story(NamedTuple):
    before: Status
    event: str
    entry: Any
    is_right: Callable[[State], Any]  # of the state afterwards
    leaving: Any = None  # the decision by which a VACATING gang was told to leave
    kind: str = "train"


def preempt() -> decisions.Preempt:
    return decisions.Preempt(G, 1, 5.0, "quota_reclaim")


def stop(reason: str) -> decisions.Stop:
    return decisions.Stop(G, 1, 5.0, reason)


def is_free(state: State) -> bool:
    return not state.holding and state.nodes["n"].gpus == 0


def outcome(expected: str) -> Callable[[State], bool]:
    return lambda state: is_free(state) and state.workloads["a"].outcome == expected


def leaves(reason: str) -> Callable[[State], bool]:
    return lambda state: state.gangs[G].vacate_reason == reason and not state.ends.of


def stories() -> Iterator[Story]:
    launch = decisions.Launch(G, 1, ONE)
    yield Story(Q, "launch", launch, lambda s: s.gangs[G].held == ONE and s.gangs[G].attempt == 1)
    yield Story(Q, "cancel", facts.Cancelled(9.0, "a"), outcome("cancelled"))
    yield Story(Q, "give_up", decisions.GiveUp(G, "dependency"), outcome("failed"))
    bound = facts.Bound(9.0, G, 1)
    yield Story(L, "bound", bound, lambda s: s.gangs[G].started_at == 9.0)
    yield Story(R, "bound", bound, lambda s: "a" in s.troubled, kind="serve")
    resize = decisions.Resize(G, 1, TWO)
    yield Story(R, "resize", resize, lambda s: s.gangs[G].held == TWO and s.gangs[G].size == 2)
    smaller = decisions.Resize(G, 1, ONE)
    yield Story(Z, "resize", smaller, lambda s: s.gangs[G].held == TWO and s.gangs[G].placement == ONE)
    yield Story(Z, "resized", facts.Resized(9.0, G, 1, 2), lambda s: s.gangs[G].resized_at == 9.0)
    for before in (L, R, Z):
        yield Story(before, "preempt", preempt(), lambda s: leaves("quota_reclaim")(s) and s.gangs[G].preemptions == 1)
        yield Story(before, "stop", stop("deadline"), leaves("deadline"))
        yield Story(before, "drain", decisions.Drain(G, 1, 5.0), leaves("drain"), kind="serve")
    released = facts.Released(9.0, G, 1)
    yield Story(V, "released", released, lambda s: is_free(s) and G in s.waiting, leaving=preempt())
    yield Story(V, "ended", released, outcome("cancelled"), leaving=stop("cancelled"))
    yield Story(V, "stopped", released, outcome("failed"), leaving=stop("deadline"))
    succeeded = facts.Finished(9.0, G, 1, "succeeded")
    error, useless = (facts.Finished(9.0, G, 1, "failed", event=event) for event in ("error", "input"))
    for before in (L, R, Z, V):
        leaving = preempt() if before is V else None
        yield Story(before, "succeeded", succeeded, outcome("succeeded"), leaving)
        yield Story(before, "failed", useless, outcome("failed"), leaving)
        yield Story(before, "retry", error, lambda s: is_free(s) and s.gangs[G].not_before > 9.0, leaving)
    again = facts.Scaled(9.0, "a", 2)
    yield Story(Status.FAILED, "pass_over", again, lambda s: [*s.gangs] == [G, "a/1", "a/2"], kind="serve")


STORIES = {(story.before, story.event): story for story in stories()}


def told(story: Story) -> bool:
    """Whether it goes as it should."""
    entries: list[Any] = [facts.NodeJoined(0.0, Node("n", Resources(4000)))]
    group = Group("w", 1, (Option(None, Resources(1000)),))
    work = Workload("a", "a", story.kind, (group,), max_size=2, min_replicas=2, max_replicas=2)
    entries.append(facts.Submitted(1.0, work))
    entries += [decisions.Launch(G, 1, ONE), facts.Bound(2.0, G, 1), decisions.Resize(G, 1, TWO), story.leaving]
    known = {Q: 2, L: 3, R: 4, Z: 5, V: 6, Status.FAILED: 3}[story.before]
    entries = [entry for entry in entries[:known] if entry is not None]
    if story.before is Status.FAILED:
        entries.append(facts.Finished(3.0, G, 1, "failed", event="input"))
    state = State()
    for entry in entries:
        state.apply(entry)
    gang = state.gangs[G]
    assert gang.status is story.before
    state.troubled.clear()
    state.apply(story.entry)
    after = TABLE.get((story.before, story.event))
    return after is not None and gang.status is after.to and bool(story.is_right(state)) and violations(state) == []


def test_every_row_has_its_story() -> None:
    assert STORIES.keys() == TABLE.keys()


@pytest.mark.parametrize("met", STORIES, ids=lambda met: f"{met[0].value}-{met[1]}")
def test_a_row_does_what_its_story_tells_and_neither_it_nor_its_action_can_be_missed(
    met: tuple[Status, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = STORIES[met]
    assert told(story)
    if TABLE[met].action is not lifecycle._passed_over:  # the endpoint makes the replica that is missing itself
        monkeypatch.setitem(TABLE, met, TABLE[met]._replace(action=lambda world, gang, entry: None))
        assert not told(story), "without its action"
    monkeypatch.delitem(TABLE, met)
    assert not told(story), "without the row"


def test_what_is_not_in_the_table_is_noted_and_changes_nothing() -> None:
    for status in Status:
        for event in {event for _, event in TABLE} - {event for before, event in TABLE if before is status}:
            state = State()
            state.apply(facts.NodeJoined(0.0, Node("n", Resources(4000))))
            group = Group("w", 1, (Option(None, Resources(1000)),))
            state.apply(facts.Submitted(1.0, Workload("a", "a", "train", (group,))))
            state.gangs[G].status = status
            before = state.digest()
            assert not lifecycle.step(state, state.gangs[G], event, facts.Tick(1.0))
            assert state.digest() == before and state.notes[-1].endswith(f"ignored Tick: {G} is {status.value}")


def test_one_function_writes_a_status() -> None:
    found = []
    for file in sorted(Path(llmsched.core.__file__).parent.rglob("*.py")):
        for function in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                writes = any(isinstance(target, ast.Attribute) and target.attr == "status" for target in targets)
                makes = isinstance(node, ast.Call) and any(one.arg == "status" for one in node.keywords)
                if writes or (makes and ast.unparse(node.func) in ("replace", "GangState")):
                    found.append((file.name, function.name))
    assert found == [("lifecycle.py", "step")]
