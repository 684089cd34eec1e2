"""The proxy of endpoints as a process: one at a time, found again, started again, on a port that is nobody else's."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx
import pytest
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched import file_lock
from llmsched.errors import ClusterError
from llmsched.executors import endpoint_proxy
from llmsched.executors.endpoint_proxy import EndpointProxy
from llmsched.executors.port import Connected, Disconnected, EndpointSeen
from llmsched.executors.ports import is_free
from llmsched.gateway import proxy, upstreams


@pytest.fixture
def home(tmp_path):
    (tmp_path / "logs").mkdir()
    yield tmp_path
    endpoint_proxy.end(tmp_path)


@asynccontextmanager
async def kept(home, port=0, stop=False):
    """A proxy that a controller keeps for a while."""
    keeper = EndpointProxy(home, port)
    keeper.start()
    try:
        yield keeper
    finally:
        await keeper.close(stop=stop)


async def until_runs(home, but=0, note=proxy.NOTES[0]):
    async with asyncio.timeout(PATIENCE_S):
        while (found := endpoint_proxy.running(home, note)) is None or found.pid == but:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


def test_it_outlives_its_controller_is_taken_on_by_the_next_and_ends_when_told(home):
    async def main():
        async with kept(home) as keeper:
            first = await until_runs(home)
            assert first.port == keeper.port
        assert endpoint_proxy.running(home) == first
        async with kept(home, first.port, stop=True) as keeper:
            async with httpx.AsyncClient(base_url=keeper.url) as client:
                assert (await client.get("/v1/models")).status_code == 503, "there is no gateway"
            assert endpoint_proxy.running(home) == first
        assert endpoint_proxy.running(home) is None
        wait_until(lambda: is_free(first.port, endpoint_proxy.HOST), what="the port is free")

    asyncio.run(main())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_takes_the_place_of_one_that_is_gone_or_hangs(home, monkeypatch, how):
    monkeypatch.setattr(endpoint_proxy, "HANGS_AFTER_S", 0.2 if how == signal.SIGSTOP else 60)
    monkeypatch.setattr(endpoint_proxy, "WATCH_EVERY_S", 0.05)
    monkeypatch.setattr(endpoint_proxy, "PAUSE_S", (0.05, 0.05))

    async def main():
        async with kept(home):
            first = await until_runs(home)
            os.kill(first.pid, how)
            second = await until_runs(home, but=first.pid)
            assert second.port == first.port and has_ended(first.pid)

    asyncio.run(main())


def test_while_one_is_gone_the_other_one_answers_at_the_same_port(home, monkeypatch):
    monkeypatch.setattr(endpoint_proxy, "PAUSE_S", (60.0, 60.0))

    async def main():
        async with kept(home, stop=True) as keeper:
            both = [await until_runs(home, note=note) for note in proxy.NOTES]
            assert [one.port for one in both] == [keeper.port] * 2
            os.kill(both[0].pid, signal.SIGKILL)
            wait_until(lambda: has_ended(both[0].pid), what="it is gone")
            async with httpx.AsyncClient(base_url=keeper.url, headers={"connection": "close"}) as client:
                answered = [await client.get("/v1/models") for _ in range(20)]
            assert {one.json()["error"]["code"] for one in answered} == {"starting"}

    asyncio.run(main())


def test_it_leads_to_as_many_gateways_as_there_are(home):
    keeper, told = EndpointProxy(home), []
    deliver = keeper.in_front_of(told.append)
    places = (("127.0.0.1", 1), ("127.0.0.1", 2))
    deliver(EndpointSeen("", places))
    deliver(EndpointSeen("one of two gateways does not answer"))
    assert upstreams.Upstreams(home).places() == list(places)
    assert [one.places for one in told] == [(), ()]
    asyncio.run(keeper.close(stop=False))


def test_one_on_another_port_than_the_one_asked_for_is_replaced(home, monkeypatch):
    monkeypatch.setattr(endpoint_proxy, "PAUSE_S", (0.05, 0.05))

    async def main():
        async with kept(home):
            first = await until_runs(home)
        async with kept(home) as keeper:
            second = await until_runs(home, but=first.pid)
            assert second.port == keeper.port != first.port

    asyncio.run(main())


def test_it_ends_with_its_home(home):
    async def main():
        async with kept(home):
            return (await until_runs(home)).pid

    pid = asyncio.run(main())
    elsewhere = home.with_name("elsewhere")
    home.rename(elsewhere)
    wait_until(lambda: has_ended(pid), what="it ends")
    elsewhere.rename(home)


def test_it_ends_when_controller_and_gateway_are_gone_for_long_and_not_before(home, monkeypatch):
    """Both killed with -9, and nobody says `down`: it stayed for ever."""
    monkeypatch.setattr(proxy, "LEFT_S", 0.2)
    monkeypatch.setattr(proxy, "BEAT_EVERY_S", 0.01)
    looks = []
    is_held = file_lock.is_held
    monkeypatch.setattr(proxy.file_lock, "is_held", lambda file: looks.append(None) or is_held(file))

    async def main():
        serving = asyncio.create_task(proxy.serve(home, proxy.listening_socket(0), asyncio.Event()))

        async def stays(seconds=1.0):
            looks.clear()
            until = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < until or not looks:
                assert not serving.done()
                await asyncio.sleep(0.01)

        with (home / proxy.LED).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            await stays()
            async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as gateway:
                (home / proxy.GATEWAY).write_text(json.dumps(gateway.sockets[0].getsockname()))
                fcntl.flock(lock, fcntl.LOCK_UN)
                await stays()
        await asyncio.wait_for(serving, PATIENCE_S)

    asyncio.run(main())


BIND = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
for option in (0, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as mine:
            if option:
                mine.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                mine.bind((host, int(sys.argv[1])))
                mine.listen()
                print("listens", option, host)
            except OSError:
                pass
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_nobody_else_can_listen_on_its_port_while_there_is_a_controller(home):
    with EndpointProxy(home)._held as held:
        port = held.getsockname()[1]
        tried = subprocess.run(
            [sys.executable, "-c", BIND, str(port), "65534"], capture_output=True, text=True, check=True
        )
        assert tried.stdout == ""
        with pytest.raises(OSError):
            held.accept()  # and it takes no connection of the proxy's
        with proxy.listening_socket(port) as ours:
            assert ours.getsockname()[1] == port


def test_a_port_that_is_somebody_elses_is_refused(home):
    refused = pytest.raises(ClusterError, match="cannot be used for endpoints: Address already in use")
    with socket.create_server(("127.0.0.1", 0)) as theirs, refused:
        EndpointProxy(home, theirs.getsockname()[1])


def test_only_the_proxy_hears_where_the_gateway_is(home):
    heard = []
    keeper = EndpointProxy(home)
    urls = {"dashboard": "http://127.0.0.1:1", "endpoint": "http://127.0.0.1:23456"}
    keeper.in_front_of(heard.append)(Connected("cluster", urls, ()))
    assert heard[0].urls == {**urls, "endpoint": keeper.url}
    assert upstreams.Upstreams(home).places() == [("127.0.0.1", 23456)]
    keeper._held.close()


def test_a_proxy_that_does_not_start_is_told_beside_what_is_told_of_the_gateway(home, monkeypatch):
    monkeypatch.setattr(endpoint_proxy, "COMMAND", ("sh", "-c", "echo the disk is full; exit 1"))
    monkeypatch.setattr(endpoint_proxy, "PAUSE_S", (0.01, 0.01))
    heard = []

    async def main():
        keeper = EndpointProxy(home)
        told = keeper.in_front_of(lambda seen: heard.append(seen.trouble) if isinstance(seen, EndpointSeen) else None)
        keeper.start()
        async with asyncio.timeout(PATIENCE_S):
            while not heard:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            told(EndpointSeen("the gateway was not well"))
            told(Disconnected("the bridge is gone, and what it said of the gateway with it"))
            told(EndpointSeen("the gateway does not answer"))
            monkeypatch.undo()
            while heard[-1] != "the gateway does not answer":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            told(EndpointSeen(""))
        await keeper.close(stop=True)

    asyncio.run(main())
    mine = "the proxy before the gateway does not start: requests to endpoints fail until it does"
    assert heard == [mine, mine, mine, mine, "the gateway does not answer", ""]
