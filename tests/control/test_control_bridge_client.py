"""The child process at the end of the pipe may do what it likes: work goes on, and control finds it again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from control_harness import ANN, phase, task, until
from waiting import PATIENCE_S

from llmsched.control.controller import Controller
from llmsched.errors import ClusterError
from llmsched.executors.bridge_client import BridgeClient
from llmsched.executors.port import StopOrder
from llmsched.store.memory import MemoryStore

BRIDGE = Path(__file__).with_name("folder_bridge.py")


@pytest.fixture
def world(tmp_path):
    folder = tmp_path / "world"
    folder.mkdir()
    return folder


def client(world, kind=BridgeClient, address="127.0.0.1:6000", pause_s=(0.01, 0.05), **more):
    return kind(
        address,
        storage="/storage",
        home=world.parent,
        command=(sys.executable, str(BRIDGE), str(world)),
        pause_s=pause_s,
        **more,
    )


@asynccontextmanager
async def controlling_through(bridge, store=None):
    controller = Controller(store or MemoryStore(), bridge, storage="/storage")
    running = asyncio.create_task(controller.run())
    try:
        await until(lambda: bool(controller.state.nodes) or running.done())
        yield controller
    finally:
        await controller.stop()
        await asyncio.wait_for(running, PATIENCE_S)


def launches(world):
    return (world / "launches").read_text().split()


def starts(world):
    return (world / "starts").read_text().splitlines()


def test_orders_go_through_the_pipe_and_its_answers_come_back(world):
    async def story():
        bridge = client(world)
        async with controlling_through(bridge) as controller:
            assert controller.urls == {"dashboard": "http://127.0.0.1:1"}
            await controller.submit([task("hello", envs={"MODE": "quiet"})], user=ANN)
            await until(lambda: phase(controller, "hello") == "running")
            assert '"MODE": "quiet"' in (world / "llms+hello+0+1").read_text()
            await controller.cancel("hello", ANN)
            await until(lambda: phase(controller, "hello") == "cancelled")
            pid = bridge.pid
        assert starts(world) == [f"{pid} 127.0.0.1:6000"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(story())


def test_a_killed_bridge_is_replaced_and_adopts_what_runs(world):
    async def story():
        bridge = client(world)
        async with controlling_through(bridge) as controller:
            await controller.submit([task("steady")], user=ANN)
            await until(lambda: phase(controller, "steady") == "running")
            os.kill(bridge.pid, signal.SIGKILL)
            await until(lambda: not controller.health.cluster.connected)
            assert "SIGKILL" in controller.health.cluster.message
            await controller.submit([task("meanwhile")], user=ANN)
            await until(lambda: phase(controller, "meanwhile") == "running")
            assert phase(controller, "steady") == "running"
            assert launches(world) == ["llms/steady/0/1", "llms/meanwhile/0/1"]
            assert controller.state.gangs["steady/0"].restarts == 0

    asyncio.run(story())


@pytest.mark.parametrize("how", ["busy", "stopped"])
def test_a_bridge_that_hangs_is_killed_and_replaced(world, how):
    """One that still does something is given more time than one that is stopped: here the rest of the test's."""

    async def story():
        patience = 3.0 if how == "busy" else 3600.0
        bridge = client(world, ping_every_s=0.05, pong_within_s=1.5, pong_of_busy_within_s=patience)
        async with controlling_through(bridge) as controller:
            await controller.submit([task("steady")], user=ANN)
            await until(lambda: phase(controller, "steady") == "running")
            first = bridge.pid
            if how == "busy":
                (world / "hang").touch()
            else:
                os.kill(first, signal.SIGSTOP)
            await until(lambda: not controller.health.cluster.connected)
            assert "did not answer" in controller.health.cluster.message
            (world / "hang").unlink(missing_ok=True)
            await until(lambda: controller.health.cluster.connected)
            assert bridge.pid != first
            with pytest.raises(ProcessLookupError):
                os.kill(first, 0)
            await until(lambda: phase(controller, "steady") == "running")
            assert launches(world) == ["llms/steady/0/1"]

    asyncio.run(story())


def test_a_cluster_that_is_not_there_is_tried_again_and_said(world):
    async def story():
        (world / "refuse").touch()
        bridge = client(world)
        controller = Controller(MemoryStore(), bridge, storage="/storage")
        running = asyncio.create_task(controller.run())
        await until(lambda: "no cluster at that address" in controller.health.cluster.message)
        assert controller.health.status == "starting"
        (world / "refuse").unlink()
        await until(lambda: controller.health.status == "ready")
        assert len(starts(world)) >= 2
        await controller.stop()
        await running

    asyncio.run(story())


def test_a_ray_that_was_gone_is_joined_as_soon_as_it_listens_again(world):
    """However long the pause has grown meanwhile: here it never ends."""

    probed = []

    class Probing(BridgeClient):
        async def _is_refused(self):
            probed.append(await super()._is_refused())
            return probed[-1]

    async def story():
        (world / "refuse").touch()
        with socket.socket() as head:
            head.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{head.getsockname()[1]}"
            bridge = client(world, kind=Probing, address=address, pause_s=(3600.0, 3600.0))
            controller = Controller(MemoryStore(), bridge, storage="/storage")
            running = asyncio.create_task(controller.run())
            await until(lambda: True in probed)
            (world / "refuse").unlink()
            head.listen()
            await until(lambda: controller.health.status == "ready")
            await controller.stop()
            await running

    asyncio.run(story())


def test_nothing_starts_on_a_cluster_that_lets_in_whoever_asks_until_it_is_closed(world):
    async def story():
        (world / "open").touch()
        bridge = client(world)
        controller = Controller(MemoryStore(), bridge, storage="/storage")
        running = asyncio.create_task(controller.run())
        await until(lambda: controller.health.status == "insecure" and len(starts(world)) >= 3)
        assert "whoever asks" in controller.health.message
        await controller.submit([task("held")], user=ANN)
        assert not (world / "launches").exists()
        (world / "open").unlink()
        await until(lambda: controller.health.status == "ready" and (world / "launches").exists())
        await controller.stop()
        await running

    asyncio.run(story())


def test_an_order_without_a_bridge_is_an_error_that_says_so(world):
    async def story():
        bridge = client(world)
        with pytest.raises(ClusterError) as raised:
            await bridge.stop(StopOrder("a/0", 1, 1, "task", "stop", 1.0))
        assert raised.value.code == "disconnected"
        await bridge.close()

    asyncio.run(story())


def test_a_command_that_does_not_exist_is_said_and_not_fatal(world):
    async def story():
        bridge = BridgeClient(
            "127.0.0.1:1", storage="/storage", home=world.parent, command=("/no/such/python",), pause_s=(0.01, 0.05)
        )
        heard = []
        await bridge.start(heard.append, 1)
        await until(lambda: len(heard) >= 2)
        assert "could not be started" in heard[0].message
        await bridge.close()

    asyncio.run(story())
