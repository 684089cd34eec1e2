"""The door to a task's own Ray: what is behind it comes up once, when somebody first wants it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from waiting import PATIENCE_S

from llmsched.runtime import containment, environment, gang_ray, own_ray_worker
from llmsched.runtime.gang_ray import Door, envs_of, own

HERE = "127.0.0.1"


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that answers each line with the same."""
    listening = socket.create_server((HERE, 0))

    def answer() -> None:
        while True:
            try:
                comer, _ = listening.accept()
            except OSError:
                return
            with comer, comer.makefile("rwb") as stream:
                for line in stream:
                    stream.write(line)
                    stream.flush()

    threading.Thread(target=answer, daemon=True).start()
    yield f"{HERE}:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def ask(address: str, word: bytes) -> bytes:
    """The answer; b"" when he is sent away."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as there, there.makefile("rwb") as stream:
        stream.write(word)
        stream.flush()
        try:
            return stream.readline()
        except ConnectionResetError:
            return b""


def test_nothing_comes_up_that_nobody_wants() -> None:
    started: list[str] = []
    door = Door(HERE, lambda: started.append("one") or "")  # type: ignore[func-returns-value]
    door.close()
    assert started == []
    with pytest.raises(OSError):
        ask(door.address, b"is anybody there\n")


def test_all_who_come_are_led_to_the_one_that_the_first_had_started(echo: str) -> None:
    started: list[str] = []
    may_come_up = threading.Event()

    def start() -> str:
        started.append("one")
        may_come_up.wait(PATIENCE_S)
        return echo

    door, heard = Door(HERE, start), []
    comers = [threading.Thread(target=lambda n=n: heard.append(ask(door.address, b"%d\n" % n))) for n in range(3)]
    for comer in comers:
        comer.start()
    may_come_up.set()
    for comer in comers:
        comer.join(PATIENCE_S)
    assert sorted(heard) == [b"0\n", b"1\n", b"2\n"]
    assert started == ["one"]
    assert ask(door.address, b"later\n") == b"later\n"
    door.close()


def test_where_none_comes_up_the_comers_are_sent_away_and_do_not_wait() -> None:
    door = Door(HERE, lambda: "")
    assert [ask(door.address, b"x\n") for _ in range(2)] == [b"", b""]
    door.close()


def test_one_that_is_gone_lets_its_comer_go(echo: str) -> None:
    with socket.create_server((HERE, 0)) as held:
        nobody = f"{HERE}:{held.getsockname()[1]}"
    door = Door(HERE, lambda: nobody)
    assert ask(door.address, b"x\n") == b""
    door.close()


def test_a_command_finds_its_own_ray_and_nothing_of_the_shared_one() -> None:
    around = own(
        {"RAY_ADDRESS": "shared:1", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_AUTH_TOKEN": "a", "PATH": "/bin"}
    )
    assert around == {"PATH": "/bin"}
    given = envs_of("10.0.0.1:7", "b")
    assert (given["RAY_ADDRESS"], given["RAY_AUTH_TOKEN"], given["RAY_AUTH_MODE"]) == ("10.0.0.1:7", "b", "token")


def test_its_workers_begin_with_what_finds_their_own_ray_whoever_started_the_one_that_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gang_ray, "_labels", dict)
    beside = containment.envs_of("llms/a/0/1@c")  # of the worker in the shared Ray
    made = gang_ray.node({"cpus": 1.0}, "secret", {**beside, "MODE": "mine"}, None)
    try:
        assert made.envs[containment.FIRST] == "llmsched.runtime.own_ray_worker.enter"
        assert (made.envs[containment.OWNER], made.envs["MODE"]) == (beside[containment.OWNER], "mine")
    finally:
        made.clean()


def test_a_worker_finds_the_ray_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "another:1")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:7"))
    monkeypatch.setattr(environment, "has_accelerator", lambda: True)
    own_ray_worker.enter()
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:7"
