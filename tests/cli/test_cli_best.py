"""A search as people see it: plan, status, top and best, against a real controller."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from live import Live, command_line, live
from waiting import wait_until

from llmsched.errors import RequestError
from llmsched.executors.fake import Script
from llmsched.executors.port import Ended, Progress

SEARCH = {
    "name": "sweep",
    "kind": "tune",
    "resources": {"accelerators": "A100:1"},
    "tune": {"train": {"loop": "a.b:c"}, "space": {"lr": {"grid": [0.1, 0.2, 0.3]}}, "metric": "loss"},
}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Live]:
    with live(tmp_path) as running:
        running.executor.cluster.script = lambda _: Script(runs_for_s=None)
        yield running


def trials_of(controller: Live) -> None:
    """Three trials were asked for: one has succeeded, one was stopped, one runs."""
    cluster, client = controller.executor.cluster, controller.client()
    client.apply(SEARCH)
    wait_until(lambda: client.status("sweep").phase == "running")

    async def said(act: Callable[[], None]) -> None:
        act()

    def ask(id: str, **body: object) -> None:
        controller.do(said(lambda: cluster.ask("llms/sweep/0/1", id, json.dumps(body))))
        wait_until(lambda: ("llms/sweep/0/1", id) in cluster.answers)

    values = [{"name": f"t{n}", "values": {"train.config.lr": n / 10}} for n in (1, 2, 3)]
    ask("1", ask="submit", specs=[*values[:2], {**values[2], "goes_on_from": "t1", "at_step": 40}])
    for n in (1, 2, 3):
        wait_until(lambda n=n: client.status(f"sweep.t{n}").phase == "running")  # type: ignore[misc]
        controller.do(said(lambda n=n: cluster.say(Progress(f"sweep.t{n}/0", 1, {"step": n, "loss": 1 / n}))))  # type: ignore[misc]
    ask("2", ask="end", names=["t2"])
    attempt = cluster.attempts["llms/sweep.t1/0/1"]
    controller.do(said(lambda: cluster._end(attempt, Ended("sweep.t1/0", 1, "succeeded", metrics={"loss": 0.9}))))
    wait_until(lambda: client.status("sweep.t1").ended and client.status("sweep.t2").ended)


def test_best_shows_trials_by_their_metric_and_lists_have_those_that_last_below_their_search(
    controller: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials_of(controller)
    run: Callable[..., Result] = command_line(controller, monkeypatch)
    client = controller.client()
    table = client.trials("sweep")
    assert [(one.name, one.value, one.phase) for one in table.trials] == [
        ("t3", pytest.approx(1 / 3), "running"),
        ("t2", 0.5, "cancelled"),
        ("t1", 0.9, "succeeded"),
    ]
    assert table.best == "t1" and table.total == 3 and table.trials[2].values == {"train.config.lr": 0.1}
    shown = run("best", "sweep").output.splitlines()
    assert shown[0] == "sweep: 2 of 3 trials have ended (running)."
    assert shown[2].endswith("goes on from t1 at step 40")
    assert shown[3].split() == ["t2", "cancelled", "0.5", "2", "0.2", "stopped", "early"]

    listed = [one.id for one in client.workloads().workloads]
    assert listed == ["sweep.t3", "sweep"], "those that have ended are in the table"
    assert {one.id for one in client.workloads(parent="sweep").workloads} == {"sweep.t1", "sweep.t2", "sweep.t3"}
    status = run("status").output.splitlines()
    assert status[1].startswith("sweep ") and status[2].startswith("  .t3 ")
    assert "llmsched best sweep" in run("status", "sweep").output
    assert "asked by   sweep" in run("status", "sweep.t3").output
    assert " sweep " in run("top", "--once").output and "   .t3 " in run("top", "--once").output
    assert "no trials" in run("best", "sweep.t3").output
    assert not any(one.workload.startswith("sweep.") for one in client.models())


def test_plan_says_how_much_a_search_is_and_refuses_what_no_trial_could_have(controller: Live) -> None:
    client = controller.client()
    (planned,) = client.plan(SEARCH)
    assert planned.reads == [
        "3 trials, at most 3 at once, each with 1 GPU: at most 3 GPUs",
        "the result is of the one with the minimum loss; each to its end",
    ]
    wrong = SEARCH | {"resources": {"accelerators": "H100:1"}}
    (refused,) = client.plan(wrong)
    assert refused.outcome == "refused" and "no such accelerator" in refused.reason.message  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="no such accelerator"):
        client.apply(wrong)


def test_the_best_of_what_is_no_search_is_refused(controller: Live) -> None:
    client = controller.client()
    client.apply({"name": "plain", "kind": "train", "train": {"loop": "a.b:c"}})
    reads = {"name": "s", "kind": "serve", "serve": {"model": {"source": "run://plain/best"}}}
    with pytest.raises(RequestError, match="plain is no search"):
        client.apply(reads)
    made = client.apply([SEARCH, reads | {"serve": {"model": {"source": "run://sweep/best"}}}])
    assert made.ids == ["sweep", "s"]
