"""Who may keep a connection open: whoever shows a token, as long as it is one; everybody else for a moment."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S, wait_until

from llmsched import connections
from llmsched.api import home
from llmsched.errors import LlmschedError
from llmsched.executors.fake import Script

TASK = {"name": "streams", "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:0.1"]}}


def test_a_thousand_silent_connections_keep_nobody_out(fresh: Live) -> None:
    connections.make_room()
    place = urlsplit(fresh.url)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((place.hostname, place.port))) for _ in range(1_050)]
        silent[-1].sendall(b"GET /api/v1/health HTTP/1.1\r\nhost: 127.0.0.1\r\n")  # and says no more
        with fresh.client() as client:
            assert client.health().status == "ready"
        assert silent[0].recv(1) == b"", "the one that waits for longest is closed"


def test_one_that_says_nothing_is_closed_after_a_while(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WAIT_AT_MOST_S", 0.05)
    place = urlsplit(fresh.url)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as silent:
        assert silent.recv(1) == b""


def revoke(live: Live, token: str) -> None:
    kept = [one for one in home.made_records(live.home) if one.sha256 != home.digest(token)]
    home.save_records(live.home, kept)


def expire(live: Live, token: str) -> None:
    """As if its last day had come while it was in use."""
    made = home.made_records(live.home)
    over = [replace(one, expires=time.time() - 1) if one.sha256 == home.digest(token) else one for one in made]
    home.save_records(live.home, over)


@pytest.mark.parametrize("stream", ["events", "logs", "exec"])
@pytest.mark.parametrize(("ends", "said"), [(revoke, "not known here"), (expire, "has expired")])
def test_a_stream_ends_with_the_token_that_opened_it(fresh: Live, stream: str, ends: Any, said: str) -> None:
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    token = fresh.token_of("ann", "submitter")
    with fresh.client(token) as client:
        client.apply([TASK])
    wait_until(lambda: fresh.executor.cluster.running())
    method, path, body = {
        "events": ("GET", "/api/v1/events", None),
        "logs": ("GET", "/api/v1/workloads/streams/logs?follow=true", None),
        "exec": ("POST", "/api/v1/workloads/streams/exec", {"command": ["sleep"]}),
    }[stream]
    headers = {"authorization": f"Bearer {token}"}
    with httpx.stream(method, fresh.url + path, headers=headers, json=body, timeout=PATIENCE_S) as response:
        assert response.status_code == 200
        ends(fresh, token)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in response.iter_bytes():
                pass
    wait_until(lambda: not fresh.executor.cluster.commands)
    with fresh.client(token) as client, pytest.raises(LlmschedError, match=said):
        client.health()
