"""A disk that really is full: the kernel refuses to write, reads go on, and nothing that was promised is gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager

import pytest
from waiting import PATIENCE_S

from llmsched.control import controller as controller_module
from llmsched.control.controller import Controller
from llmsched.control.recovery import fold
from llmsched.errors import StoreError
from llmsched.executors.fake import FakeExecutor, NodeKind
from llmsched.spec.load import load_json
from llmsched.store.sqlite import SqliteStore


@contextmanager
def full_disk(limit_bytes):
    """No file of this process may become longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def spec(name, letters=0):
    envs = {f"E{n}": "x" * 4000 for n in range(letters // 4000)}
    return load_json({"name": name, "kind": "task", "task": {"run": ["true"]}, "envs": envs})


async def until(condition):
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


def test_a_full_disk_degrades_the_controller_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(controller_module, "TRY_AGAIN_S", 0.05)

    async def story():
        path = tmp_path / "state.sqlite"
        controller = Controller(SqliteStore(path), FakeExecutor([NodeKind(2)]), storage="/storage")
        running = asyncio.create_task(controller.run())
        await until(lambda: controller.health.status == "ready")
        await controller.submit([spec("before")], user="ann")
        await until(lambda: controller.state.workloads["before"].phase == "running")
        kept = []
        with full_disk(max(file.stat().st_size for file in tmp_path.iterdir()) + 40_000):
            with pytest.raises(StoreError):
                for n in range(50):
                    await controller.submit([spec(f"big-{n}", 40_000)], user="ann")
                    kept.append(f"big-{n}")
            assert controller.health.status == "degraded"
            assert "before" in controller.state.workloads  # what is known can be seen
            assert controller.entries(0, "before")
            with pytest.raises(StoreError) as refused:
                await controller.cancel("before", "ann")
            assert (refused.value.code, refused.value.http_status) == ("degraded", 503)
        await until(lambda: controller.health.status == "ready")
        await controller.submit([spec("after")], user="ann")
        assert list(controller.state.workloads) == ["before", *kept, "after"]
        await controller.stop()
        await running
        store = SqliteStore(path)
        store.open()
        assert list(fold(store)[0].workloads) == ["before", *kept, "after"]
        store.close()

    asyncio.run(story())


def killed_after(path):
    async def life():
        controller = Controller(SqliteStore(path), FakeExecutor([NodeKind(2)]), storage="/storage")
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        await controller.submit([spec("before")], user="ann")
        os.kill(os.getpid(), signal.SIGKILL)
        await running

    asyncio.run(life())


@pytest.mark.parametrize("room", [1_000, 100_000])
def test_a_controller_that_was_killed_starts_on_a_full_disk_to_be_read_and_goes_on_when_there_is_room(
    tmp_path, monkeypatch, room
):
    monkeypatch.setattr(controller_module, "TRY_AGAIN_S", 0.05)
    path = tmp_path / "state.sqlite"
    child = multiprocessing.get_context("fork").Process(target=killed_after, args=(path,))
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == -signal.SIGKILL

    async def story():
        controller = Controller(SqliteStore(path), FakeExecutor([NodeKind(2)]), storage="/storage")
        with full_disk(min(room, path.with_name("state.sqlite-wal").stat().st_size)):
            running = asyncio.create_task(controller.run())
            await until(lambda: controller.started.is_set() or running.done())
            assert controller.health.status == "degraded"
            assert "before" in controller.state.workloads
            assert controller.entries(0, "before")
            with pytest.raises(StoreError) as refused:
                await controller.submit([spec("during")], user="ann")
            assert refused.value.code == "degraded"
        await until(lambda: controller.health.status == "ready")
        await controller.submit([spec("after")], user="ann")
        assert list(controller.state.workloads) == ["before", "after"]
        await controller.stop()
        await running

    asyncio.run(story())
