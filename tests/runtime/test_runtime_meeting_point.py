"""The port at which the ranks meet is held from before it is told; a rank has the threads that it asked for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from llmsched.runtime import train


def test_nobody_can_take_the_meeting_port_between_its_choice_and_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    address, port = train._open_meeting_point()
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind((address, port))
    store: Any = train._store(address, port, 0, 1)
    try:
        assert store.port == port
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((address, port))
        store.set("here", "0")
        assert train._store(address, port, 1, 1).get("here") == b"0"
    finally:
        del store


def test_two_gangs_of_one_machine_never_meet_at_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    held, ports = [], set()
    for _ in range(20):
        ports.add(train._open_meeting_point()[1])
        held.append(train._meeting_point)
    assert len(ports) == 20
    for one in held:
        assert one is not None
        one.close()
    monkeypatch.setattr(train, "_meeting_point", None)


def test_a_rank_has_the_threads_that_its_worker_asked_for_as_a_machine_is_shared_with_others(monkeypatch):
    """Each training took all CPUs of the machine, whatever it had asked for: beside others a step of LoRA on SmolLM2
    took 12 seconds of CPU instead of two."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    asked = [(1, 1.0), (1, 0.5), (2, 3.0), (2, 6.0), (1, 0.0), (2, 0.001)]
    assert [train._threads(here, cpus) for here, cpus in asked] == [1, 1, 3, 4, 8, 4]
