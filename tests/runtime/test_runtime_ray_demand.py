"""What waits in a gang's own Ray for more than the gang has is told, and what waits for its turn is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from llmsched.runtime.ray_demand import Watch, in_vain

USAGE = {"GPU": [1.0, 2.0], "CPU": [0.0, 2.0], "memory": [0.0, 4e9], "node:10.0.0.1": [0.0, 1.0]}


def status(demand: list[Any] | None = None, groups: list[Any] | None = None) -> dict[str, Any]:
    bundles = [[{"strategy": "PACK", "bundles": one}, 1] for one in groups or ()]
    return {"usage": USAGE, "resourceDemand": demand or [], "pgDemand": bundles, "requestDemand": []}


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (status([[{"GPU": 1.0}, 40]]), ""),  # forty, one after the other
        (status([[{"GPU": 4.0}, 1]]), "4 GPUs; its gang has 2"),
        (status([[{"GPU": 2.0}, 1]]), "2 GPUs on one node; a node of its gang has 1"),
        (status([[{"CPU": 3.0}, 1]]), "3 CPUs; its gang has 2"),
        (status([[{"memory": 8e9}, 1]]), "8 GB of memory; its gang has 4 GB of memory"),
        (status([[{"accelerator_type:H100": 0.001}, 1]]), "0.001 accelerator_type:H100; its gang has 0"),
        (status(groups=[[[{"GPU": 1.0, "CPU": 1.0}, 2]]]), ""),
        (status(groups=[[[{"GPU": 1.0}, 4]]]), "4 GPUs; its gang has 2"),  # a trainer of four workers
        (status(groups=[[[{"CPU": 1.0}, 1], [{"GPU": 1.0}, 3]]]), "3 GPUs; its gang has 2"),
        ({}, ""),
    ],
)
def test_it_is_told_of_what_can_never_begin_and_of_nothing_else(waits: dict[str, Any], said: str) -> None:
    assert in_vain(waits, gpus_of_a_node=1) == said


@pytest.fixture
def answers() -> Iterator[list[bytes]]:
    said: list[bytes] = []

    class Head(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["authorization"] == "Bearer secret" and self.path == "/api/cluster_status"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said[-1])

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Head) as server:
        said.append(f"http://127.0.0.1:{server.server_port}".encode())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield said
        server.shutdown()


def test_ray_s_head_is_asked_seldom(answers: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(answers[0].decode(), "secret", [{"gpus": 1}, {"gpus": 1}])
    answers.append(b'{"data": {"clusterStatus": null}}')
    assert watch.read() == ""
    load = {"data": {"clusterStatus": {"loadMetricsReport": status([[{"GPU": 4.0}, 1]])}}}
    answers.append(json.dumps(load).encode())
    assert watch.read() == "", "asked a moment ago"
    monkeypatch.setattr(watch, "_asked_at", float("-inf"))
    assert watch.read() == "4 GPUs; its gang has 2"
