"""What looks for the rest of an attempt on its nodes: begun when it is told to stop, used once, ended with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from llmsched.executors.bridge import last_looks as module
from llmsched.executors.bridge.last_looks import READY_AT_ONCE, LastLooks
from llmsched.runtime.containment import LastLook

RUN, MARK = "llms/run/0/1", "llms/run/0/1@ours"


class Process:
    """An actor on a node. `left`: what does not end there; None: the node does not answer."""

    def __init__(self, node: str, left: list[str] | None) -> None:
        self.node, self.left, self.is_killed, self.asked = node, left, False, []
        self.clear = SimpleNamespace(remote=self._clear)

    def _clear(self, mark: str, pids: list[int]) -> Process:
        self.asked.append((mark, pids))
        return self


class Nodes:
    def __init__(self) -> None:
        self.begun: list[Process] = []
        self.left: dict[str, list[str] | None] = {}
        self.exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError)

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 0, "max_restarts": 0}
        return lambda kind: SimpleNamespace(
            options=lambda label_selector: SimpleNamespace(remote=self._on(kind, label_selector))
        )

    def _on(self, kind: type, where: dict[str, str]) -> Any:
        assert kind is LastLook

        def begin() -> Process:
            node = where["ray.io/node-id"]
            self.begun.append(Process(node, self.left.get(node, [])))
            return self.begun[-1]

        return begin

    def get(self, answer: Process, timeout: float) -> dict[str, list[str]]:
        if answer.is_killed:
            raise RayActorError
        if answer.left is None:
            raise GetTimeoutError("slow")
        return {"ended": [], "left": answer.left}

    def kill(self, process: Process) -> None:
        process.is_killed = True


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    found = Nodes()
    monkeypatch.setattr(module, "ray", found)
    return found


def test_one_that_is_told_to_stop_is_looked_at_by_what_was_started_then(nodes: Nodes) -> None:
    looks = LastLooks()
    looks.prepare(RUN, {"n1", "n2"})
    looks.prepare(RUN, {"n1", "n2"})
    assert [one.node for one in nodes.begun] == ["n1", "n2"]
    assert looks.clear(RUN, MARK, {"n1": [7], "n2": []}) == []
    assert [one.asked for one in nodes.begun] == [[(MARK, [7])], [(MARK, [])]]
    looks.end(RUN)
    assert all(one.is_killed for one in nodes.begun)


def test_one_that_ends_unasked_is_looked_at_on_each_node_and_what_stays_is_named(nodes: Nodes) -> None:
    nodes.left = {"n1": ["python train.py (12)"], "n2": None}
    looks = LastLooks()
    left = looks.clear(RUN, MARK, {"n1": [], "n2": [], "n3": []})
    assert left == ["python train.py (12)", "a node did not answer: GetTimeoutError"]
    looks.end(RUN)
    assert [one.node for one in nodes.begun if one.is_killed] == ["n1", "n2", "n3"]


def test_many_that_stop_together_do_not_start_a_process_each(nodes: Nodes) -> None:
    looks = LastLooks()
    for number in range(3 * READY_AT_ONCE):
        looks.prepare(f"llms/run/{number}/1", {"n1"})
    assert len(nodes.begun) == READY_AT_ONCE
    looks.end("llms/run/0/1")
    looks.prepare("llms/late/0/1", {"n1"})
    assert len(nodes.begun) == READY_AT_ONCE + 1
    last = f"llms/run/{3 * READY_AT_ONCE - 1}/1"
    assert looks.clear(last, MARK, {"n1": []}) == []
    looks.end(last)
    assert nodes.begun[-1].is_killed


def test_one_that_was_ended_while_it_waited_is_looked_for_by_another(nodes: Nodes) -> None:
    nodes.left = {"n1": ["python train.py (12)"]}
    looks = LastLooks()
    looks.prepare(RUN, {"n1"})
    nodes.begun[0].is_killed = True
    assert looks.clear(RUN, MARK, {"n1": [7]}) == ["python train.py (12)"]
    assert nodes.begun[1].asked == [(MARK, [7])]
    looks.end(RUN)
    assert nodes.begun[1].is_killed
