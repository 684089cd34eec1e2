"""The line between a replica and the processes of its deployments on other nodes: who comes in, and who does not."""

import socket
import threading

import pytest

from llmsched.runtime import serve_door
from llmsched.runtime.serve_door import Door, NoKey, connection_of, new_key, reach


def test_who_shows_the_key_comes_in_and_nobody_after():
    key = new_key()
    door = Door("127.0.0.1", key)
    there = reach(door.address, key)
    here = door.let_in(5)
    one, other = connection_of(here), connection_of(there)
    one.send_bytes(b"x" * 100_000)
    assert len(other.recv_bytes()) == 100_000
    with pytest.raises(OSError):
        reach(door.address, key)
    one.close()
    other.close()


def test_who_does_not_know_the_key_learns_nothing_and_keeps_nobody_out(monkeypatch):
    monkeypatch.setattr(serve_door, "WAITING_AT_MOST", 3)
    key = new_key()
    door = Door("127.0.0.1", key)
    silent = [socket.create_connection(door.address) for _ in range(6)]
    with pytest.raises(OSError):  # cut without a word, after its challenge
        reach(door.address, new_key())
    there = reach(door.address, key)
    door.let_in(5).close()
    there.close()
    for one in silent:
        one.settimeout(5)
        said = b""
        while more := one.recv(64):
            said += more
        assert len(said) in (0, 32)  # a challenge, at most
        one.close()


def test_an_answer_that_was_heard_before_opens_no_other_door():
    key = new_key()
    door, heard = Door("127.0.0.1", key), []
    between = socket.create_server(("127.0.0.1", 0))

    def pass_on():
        one, _ = between.accept()
        far = socket.create_connection(door.address)
        one.sendall(far.recv(32))
        heard.append(one.recv(64, socket.MSG_WAITALL))
        far.sendall(heard[0])
        one.sendall(far.recv(32))
        far.close()
        one.close()

    threading.Thread(target=pass_on).start()
    reach(between.getsockname()[:2], key).close()
    between.close()
    door.let_in(5).close()
    other = Door("127.0.0.1", key)
    again = socket.create_connection(other.address)
    again.settimeout(5)
    assert len(again.recv(32)) == 32
    again.sendall(heard[0])
    assert again.recv(32) == b""
    again.close()
    other.close()


def test_who_is_reached_must_know_the_key_too():
    listening = socket.create_server(("127.0.0.1", 0))

    def pretend():
        one, _ = listening.accept()
        one.sendall(b"n" * 32)
        one.recv(64, socket.MSG_WAITALL)
        one.sendall(b"w" * 32)
        one.close()

    threading.Thread(target=pretend).start()
    with pytest.raises(NoKey):
        reach(listening.getsockname()[:2], new_key())
    listening.close()


def test_a_door_that_nobody_comes_to_says_so_and_closes():
    door = Door("127.0.0.1", new_key())
    with pytest.raises(TimeoutError):
        door.let_in(0.01)
    with pytest.raises(OSError):
        socket.create_connection(door.address, 1)
