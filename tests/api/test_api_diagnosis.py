"""What slows a workload: each finding from the facts it needs, and silence said aloud where facts are missing."""

from __future__ import annotations

from typing import Any

import pytest
from live import Live
from waiting import wait_until

from llmsched.api import diagnosis
from llmsched.api.diagnosis import spent
from llmsched.core import decisions, facts
from llmsched.core.workload import Placement
from llmsched.executors.fake import Script
from llmsched.executors.port import Progress, Stalled
from llmsched.spec import http_models

NOWHERE: Placement = ()


@pytest.fixture
def endless(fresh: Live) -> Live:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    return fresh


def train(name: str, gpus: int = 1, workers: Any = 1, **section: Any) -> dict[str, Any]:
    body = section or {"loop": "mine.train:loop"}
    accelerators = {"accelerators": [f"A100:{gpus}"]}
    return {"name": name, "kind": "train", "workers": workers, "resources": accelerators, "train": body}


def report(controller: Live, name: str, **data: Any) -> None:
    """As the running gang would, and wait until it is known."""

    async def say() -> None:
        controller.executor.cluster.say(Progress(f"{name}/0", 1, data))

    controller.do(say())
    wait_until(lambda: set(data) <= set(controller.client().status(name).progress))


def codes(view: http_models.DiagnosisView) -> dict[str, http_models.Finding]:
    return {finding.code: finding for finding in view.findings}


def test_data_and_stragglers_are_found_in_what_the_ranks_report(endless: Live) -> None:
    client = endless.client()
    client.apply([train("slow", workers=2)])
    endless.hear("Bound", "slow")
    report(
        endless,
        "slow",
        step=10,
        total_steps=100,
        data_wait=0.4,
        rank_step_s=0.5,
        slowest_rank=1,
        slowest_rank_step_s=1.0,
    )
    found = codes(client.diagnose("slow"))
    assert "40% of each step" in found["data"].message
    assert "cpus" in found["data"].advice
    assert "rank 1 takes 2.0 times as long" in found["straggler"].message
    report(endless, "slow", data_wait=0.01, slowest_rank_step_s=0.55)
    view = client.diagnose("slow")
    assert not codes(view).keys() & {"data", "straggler"}
    assert view.numbers["step"] == 10


def test_what_nobody_measured_is_said_and_not_taken_for_well(endless: Live) -> None:
    client = endless.client()
    client.apply([train("silent")])
    endless.hear("Bound", "silent")
    view = client.diagnose("silent")
    assert view.findings == []
    assert any("waits for data" in gap for gap in view.unknown)
    assert any("each rank" in gap for gap in view.unknown)
    assert any("GPU memory" in gap for gap in view.unknown)
    report(endless, "silent", data_wait=0.0, slowest_rank_step_s=0.1, rank_step_s=0.1)
    assert not any("data" in gap or "rank" in gap for gap in client.diagnose("silent").unknown)


def test_more_gpus_a_worker_than_our_loop_uses_are_found(endless: Live) -> None:
    client = endless.client()
    data = [{"path": "/data/rows.jsonl"}]
    client.apply([train("wide", gpus=4, base_model="hf://org/unknown", datasets=data)])
    endless.hear("Bound", "wide")
    found = codes(client.diagnose("wide"))
    assert "4 GPUs" in found["oversized"].message
    assert "A100:1" in found["oversized"].advice


@pytest.mark.parametrize(("kind", "is_told"), [("train", True), ("serve", False), ("task", False)])
def test_only_what_saves_is_advised_to_save_more_often(kind: str, is_told: bool) -> None:
    found: list[str] = []
    times = diagnosis.Times(waited=0.0, ran=600.0, losses=2, preemptions=2, last_loss="gone")
    diagnosis._history(times, kind, lambda code, message, advice: found.append(advice))
    assert len(found) == 2 and all(("checkpoint.every" in advice) is is_told for advice in found)


def test_what_waits_is_told_why_and_what_runs_small_that_it_could_grow(endless: Live) -> None:
    client = endless.client()
    client.apply([train("first", gpus=4)])
    endless.hear("Bound", "first")
    client.apply([train("elastic", gpus=4, workers="1..2")])
    endless.hear("Bound", "elastic")
    client.apply([train("late", gpus=4)])
    waits = client.diagnose("late")
    assert (waits.phase, [finding.code for finding in waits.findings]) == ("waiting", ["waits_nodes"])
    assert "runs with 1 of at most 2" in codes(client.diagnose("elastic"))["small"].message


def test_a_name_that_is_nobodys_is_404(endless: Live) -> None:
    from llmsched.errors import RequestError

    with pytest.raises(RequestError, match='no workload "nobody"'):
        endless.client().diagnose("nobody")


def test_seconds_are_counted_from_the_history() -> None:
    launch = decisions.Launch("a/0", 1, NOWHERE)
    history: list[tuple[float, Any]] = [
        (10, launch),
        (14, facts.Bound(14, "a/0", 1)),
        (44, decisions.Preempt("a/0", 1, 5.0, "fair_share")),
        (46, facts.Released(46, "a/0", 1)),
        (66, launch),
        (67, facts.Bound(67, "a/0", 2)),
        (70, facts.Lost(70, "a/0", 2, "its node went away")),
    ]
    submitted = facts.Submitted.__new__(facts.Submitted)  # its content does not matter here
    entries = [(1, 0.0, submitted), *((seq, at, entry) for seq, (at, entry) in enumerate(history, 2))]
    times = spent(entries, until=80.0)
    assert (times.waited, times.starting, times.ran) == (10 + 20 + 10, 4 + 1, 32 + 3)
    assert (times.preemptions, times.losses, times.last_loss) == (1, 1, "its node went away")


def test_what_does_not_move_is_told_by_status_why_diagnose_and_story_until_it_moves_again(endless: Live) -> None:
    client = endless.client()
    client.apply([train("early", workers=2)])
    endless.hear("Bound", "early")
    why = "rank 1 has returned, and rank 0 has waited for over 20 s (all_reduce, called in bl.py:15)"

    async def say(message: str) -> None:
        for _ in range(3):  # said again by a bridge that was started anew: known already
            endless.executor.cluster.say(Stalled("early/0", 1, message))

    endless.do(say(why))
    wait_until(lambda: client.status("early").gangs[0].stalled == why)
    assert client.status("early").message == f"does not move: {why}"
    assert f"it does not move: {why}" in client.why("early").gangs[0].text
    assert why in codes(client.diagnose("early"))["stalled"].message
    endless.do(say(""))
    wait_until(lambda: client.status("early").gangs[0].stalled == "")
    assert "stalled" not in codes(client.diagnose("early"))
    told = [line.text for line in client.story("early").lines if "move" in line.text]
    assert told == [f"does not move: {why}", "moves again"]
