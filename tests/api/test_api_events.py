"""The event stream as the contract has it: whole for whoever is slow, taken up again where it was, never an error."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S

from llmsched.executors.fake import Script
from llmsched.spec import http_models

MANY = 200


@pytest.fixture
def http(controller: Live) -> httpx.Client:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    return httpx.Client(
        base_url=f"{controller.url}/api/v1",
        headers={"authorization": f"Bearer {controller.token}"},
        timeout=PATIENCE_S,
    )


def numbers(answer: httpx.Response) -> Any:
    return (int(line[3:]) for line in answer.iter_lines() if line.startswith("id:"))


def specs(prefix: str) -> list[dict[str, Any]]:
    return [{"name": f"{prefix}{n}", "kind": "task", "task": {"run": ["true"]}} for n in range(MANY)]


def test_whoever_is_slow_is_late_and_misses_nothing(controller: Live, http: httpx.Client) -> None:
    with http.stream("GET", "/events", params={"after": 0}) as answer:
        slow = numbers(answer)
        first = next(slow)
        client = controller.client()
        for prefix in ("a", "b", "c"):  # while nobody reads
            client.apply(specs(prefix))
        last = client.health().seq
        heard = [first, *itertools.takewhile(lambda seq: seq < last, slow)]
    told = [event.seq for event in client.events(follow=False) if event.seq < last]
    assert heard == told and len(heard) > 3 * MANY


def test_the_header_says_where_to_go_on_before_the_query_and_what_lies_ahead_is_empty(http: httpx.Client) -> None:
    asked = {"after": 0, "follow": False}
    whole = list(numbers(http.get("/events", params=asked)))
    resumed = http.get("/events", params=asked, headers={"last-event-id": str(whole[0])})
    assert list(numbers(resumed))[: len(whole) - 1] == whole[1:]
    ahead = http.get("/events", params={"after": 10**9, "follow": False})
    assert (ahead.status_code, ahead.text) == (200, "")


def test_a_full_queue_may_be_asked_again_and_a_size_out_of_range_may_not(fresh: Live) -> None:
    headers = {"authorization": f"Bearer {fresh.token}"}
    http = httpx.Client(base_url=f"{fresh.url}/api/v1", headers=headers, timeout=PATIENCE_S)
    http.put("/config", json={"config": {"limits": {"max_pending_per_queue": 2}}})
    all_of_it = {"workers": 2, "resources": {"accelerators": ["A100:4"]}}
    last = {"name": "last", "kind": "task", "task": {"run": ["true"]}, **all_of_it}
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    fresh.client().apply([{**last, "name": "first"}])
    fresh.hear("Bound", "first")
    for name in ("one", "two"):
        fresh.client().apply([{**last, "name": name}])
    full = http.post("/apply", json={"specs": [last]})
    assert (full.status_code, http_models.ErrorBody.model_validate(full.json()).code) == (429, "queue_full")
    outside = http.post("/workloads/first/scale", json={"size": 9})
    assert (outside.status_code, http_models.ErrorBody.model_validate(outside.json()).code) == (409, "over_limit")
    (planned,) = fresh.client().plan([last])
    assert planned.reason is not None and (planned.outcome, planned.reason.code) == ("refused", "queue_full")
