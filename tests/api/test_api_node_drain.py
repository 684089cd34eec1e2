"""node drain and undrain: from the command line to the core and back, what people then read, and who may."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live import Live, command_line

from llmsched.errors import NotAllowed, RequestError, SpecError


@pytest.fixture
def llmsched(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    return command_line(fresh, monkeypatch)


def said(done: Any) -> str:
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_a_drained_node_takes_nothing_new_until_it_is_given_back(llmsched: Any, fresh: Live) -> None:
    assert "node-1 is drained; it is empty" in said(llmsched("node", "drain", "node-1"))
    assert "node-2 is drained, to be empty by" in said(llmsched("node", "drain", "node-2", "--by", "30m"))
    shown = said(llmsched("node", "list"))
    assert shown == said(llmsched("nodes")) and "draining by operator" in shown and "to be empty by" in shown
    first, second = json.loads(llmsched("nodes", "--json").output)["nodes"]
    assert (first["draining"], first["leaves_at"], first["drained_by"]) == (True, None, "operator")
    assert second["leaves_at"] is not None
    client = fresh.client()
    client.apply([{"name": "w", "kind": "task", "task": {"run": ["x"]}, "resources": {"accelerators": ["A100:1"]}}])
    assert client.why("w").phase == "waiting"
    assert "is not drained any more" in said(llmsched("node", "undrain", "node-1"))
    fresh.hear("Launch", "w/0")
    assert [node.name for node in client.nodes().nodes if node.gangs] == ["node-1"]
    words = said(llmsched("events"))
    assert "operator drains node node-2: nothing new goes there, and what runs there leaves within 1800 s" in words
    assert "operator ends the drain of node node-1" in words


def test_what_runs_there_tells_why_it_leaves(llmsched: Any, fresh: Live) -> None:
    client = fresh.client()
    client.apply([{"name": "w", "kind": "task", "task": {"run": ["x"]}, "resources": {"accelerators": ["A100:1"]}}])
    fresh.hear("Bound", "w/0")
    (held,) = [node.name for node in client.nodes().nodes if node.gangs]
    assert "it holds 1 gang" in said(llmsched("node", "drain", held))
    fresh.hear("Preempt", "w/0")
    assert f"(node_drain): node {held} is drained" in said(llmsched("story", "w"))


def test_a_drain_outlives_the_node_and_the_list_tells_of_it(llmsched: Any, fresh: Live) -> None:
    llmsched("node", "drain", "node-1")

    async def lose() -> None:
        fresh.executor.cluster.lose_node("node-1")

    fresh.do(lose())
    with fresh.client() as client:
        next(event for event in client.events() if event.kind == "NodeLost")
    assert "node-1 is drained and not here." in said(llmsched("node", "list"))
    assert fresh.client().nodes().drained_away == ["node-1"]
    said(llmsched("node", "undrain", "node-1"))
    assert fresh.client().nodes().drained_away == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("drain", "nod-1"), 3, 'no node is called "nod-1". Did you mean "node-'),
        (("drain", "node-1", "--by", "tomorrow"), 2, '--by: "tomorrow" is no time. As in --by 30m'),
        (("drain", "node-1", "--by", "2001-01-31T08:00Z"), 3, "node node-1 would have been empty"),
        (("undrain", "node-1"), 3, "node node-1 is not drained"),
        (("undrain", "gpu-7"), 3, 'no node is called "gpu-7"'),
    ],
)
def test_bad_words_are_refused_with_what_would_do(
    llmsched: Any, fresh: Live, words: tuple[str, ...], code: int, told: str
) -> None:
    done = llmsched("node", *words)
    assert (done.exit_code, told in " ".join(done.output.split())) == (code, True), done.output
    assert [node.draining for node in fresh.client().nodes().nodes] == [False, False]


def test_again_it_needs_another_time(fresh: Live) -> None:
    client = fresh.client()
    client.drain_node("node-1", within="1h")
    with pytest.raises(RequestError, match="drained already, by operator"):
        client.drain_node("node-1")
    moved = client.drain_node("node-1", until="2099-01-31T08:00Z").nodes[0]
    assert moved.leaves_at == 4073529600.0
    with pytest.raises(SpecError, match="within"):
        client.drain_node("node-1", within="soon")
    with pytest.raises(SpecError, match="at most one"):
        client.drain_node("node-1", within="1h", until=4073529600.0)


def test_only_operators_may_and_others_are_not_told_who_did(fresh: Live) -> None:
    fresh.client().drain_node("node-1")
    ann = fresh.client(fresh.token_of("ann", "submitter"))
    first = ann.nodes().nodes[0]
    assert (first.draining, first.drained_by) == (True, "")
    assert [event.text for event in ann.events(follow=False) if event.kind == "DrainBegun"] == [
        "somebody drains node node-1: nothing new goes there, and what runs there leaves"
    ]
    for forbidden in (lambda: ann.drain_node("node-2"), lambda: ann.undrain_node("node-1")):
        with pytest.raises(NotAllowed):
            forbidden()
