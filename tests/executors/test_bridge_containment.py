"""Whose what is: what the bridge asks of Serve and of nodes, which may be slow or away."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError
from waiting import PATIENCE_S

from llmsched.executors.bridge import containment as module
from llmsched.executors.bridge.containment import Containment
from llmsched.executors.bridge.ray_internals import Actor, Job, Tables
from llmsched.executors.port import LaunchOrder, Member
from llmsched.runtime.containment import BRIDGE, owner_mark

CLUSTER = "cluster-of-ours-and-no-other"
HOG = "llms/hog/0/1"
OURS, DRIVER = "01000000", "02000000"
NODES = {"n1": "10.0.0.1", "n2": "10.0.0.2"}


class Call(SimpleNamespace):
    def __init__(self, node: str) -> None:
        super().__init__(node=node, is_over=False)


class Cluster:
    """A driver of a command that threw its environment away has made an actor; a stranger uses Serve, which hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.serve_answers = threading.Event()
        self.node_answers: list[Any] = []
        self.called: list[Call] = []  # what does nothing, on a node
        self.gone: set[str] = set()
        ray = SimpleNamespace(
            nodes=lambda: [
                {"NodeID": node, "NodeManagerAddress": address, "Alive": node not in self.gone}
                for node, address in NODES.items()
            ],
            remote=lambda **_: lambda ask: SimpleNamespace(options=self._on),
            get=self._answer,
            wait=lambda calls, timeout: ([one for one in calls if one.is_over], []),
            cancel=lambda call, force: self.called.remove(call),
            exceptions=SimpleNamespace(RayError=GetTimeoutError),
        )
        monkeypatch.setattr(module, "ray", ray)
        monkeypatch.setattr(module.ray_internals, "tables", self.tables)
        monkeypatch.setattr(module.ray_internals, "deployers", self._serve)
        self.containment = Containment(lambda seen: None, CLUSTER)

    def tables(self) -> Tables:
        made = Actor("a1", "made", "theirs", "Nested", DRIVER, "driver", "w1", "n1", "", 1, {}, {"GPU": 1.0})
        theirs = made._replace(id="a2", name="SERVE_REPLICA::theirs#model#x", namespace="serve", job="03000000")
        return Tables([Job(OURS, {BRIDGE: ""}), Job(DRIVER, {}, pid=77, address="10.0.0.1")], [made, theirs], [])

    def actors(self) -> list[str]:
        return [one.name for one in self.containment.look().actors(HOG)]

    def _on(self, label_selector: dict[str, str]) -> Any:
        return SimpleNamespace(remote=lambda asked, *_: asked or self._call(label_selector["ray.io/node-id"]))

    def _call(self, node: str) -> Call:
        self.called.append(Call(node))
        return self.called[-1]

    def _serve(self) -> dict[str, str]:
        assert self.serve_answers.wait(PATIENCE_S)
        return {}

    def _answer(self, pids: list[int], timeout: float) -> list[str]:
        assert pids == [77]
        answer = self.node_answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def until_made_is_known(cluster: Cluster) -> None:
    for asking in list(cluster.containment._asking.values()):
        if asking is not cluster.containment._asking.get("Serve"):
            asking.result(PATIENCE_S)


def test_a_serve_that_hangs_keeps_back_nothing_that_a_node_knows(cluster: Cluster) -> None:
    cluster.node_answers = [[owner_mark(HOG, CLUSTER)]]
    cluster.actors()
    until_made_is_known(cluster)
    assert cluster.actors() == ["made"]
    cluster.serve_answers.set()


def test_a_node_that_is_slow_to_say_whose_a_driver_is_is_asked_again(cluster: Cluster) -> None:
    cluster.serve_answers.set()
    cluster.node_answers = [GetTimeoutError("slow"), [owner_mark(HOG, CLUSTER)]]
    assert cluster.actors() == []
    until_made_is_known(cluster)
    cluster.actors()
    until_made_is_known(cluster)
    assert cluster.actors() == ["made"]


def woken(cluster: Cluster, *gangs: str) -> list[str]:
    """Each has members on all nodes and is told to stop; the nodes of the calls that are there then."""
    members = tuple(Member(rank, node) for rank, node in enumerate(NODES))
    for gang in gangs:
        told = LaunchOrder("hog", gang, 1, 1, "task", members, {}, "")
        cluster.containment.expect(told)
        cluster.containment.wake(told.name)
    return [one.node for one in cluster.called]


def test_a_worker_is_woken_on_each_node_of_who_is_told_to_stop_and_no_more_for_many(cluster: Cluster) -> None:
    assert woken(cluster, "hog/0", "hog/1") == ["n1", "n2"]
    cluster.called[0].is_over = True
    assert woken(cluster, "hog/2") == ["n1", "n2", "n1"]


def test_nobody_is_woken_on_a_node_that_has_gone_and_the_call_that_waits_for_it_ends(cluster: Cluster) -> None:
    woken(cluster, "hog/0")
    cluster.gone = {"n1"}
    assert woken(cluster, "hog/1") == ["n2"]
