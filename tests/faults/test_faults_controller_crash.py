"""A controller killed with -9 in the middle of anything: every answer it gave still holds, and work is not doubled."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from llmsched.control import lease
from llmsched.control.controller import Controller
from llmsched.control.recovery import fold
from llmsched.core.facts import Submitted
from llmsched.core.invariants import violations
from llmsched.executors.fake import FakeCluster, FakeExecutor, NodeKind, Script
from llmsched.spec.load import load_json
from llmsched.store import sqlite as store_module
from llmsched.store.sqlite import SqliteStore

NAMES = [f"w{n}" for n in range(6)]
FORK = multiprocessing.get_context("fork")


def spec(name):
    return load_json(
        {
            "name": name,
            "kind": "task",
            "resources": {"accelerators": ["A100:1"]},
            "task": {"run": ["true"]},
        }
    )


def controller_on(path: Path) -> Controller:
    cluster = FakeCluster(
        [NodeKind(2, "A100")],
        script=lambda order: Script(runs_for_s=None if order.workload == "w0" else 0.005, steps=1),
    )
    return Controller(SqliteStore(path), FakeExecutor(cluster=cluster), storage="/storage")


async def submit_all(path: Path, acknowledged: Path) -> None:
    controller = controller_on(path)
    running = asyncio.create_task(controller.run())
    await controller.started.wait()
    for name in NAMES:
        (applied,) = await controller.submit([spec(name)], user="ann", idempotency_key=f"key-{name}")
        with acknowledged.open("a") as file:
            file.write(json.dumps(applied.model_dump()) + "\n")
    await controller.cancel("w0", "ann")
    await controller.stop()
    await running


def killed_run(path: Path, acknowledged: Path, kill_at: int) -> None:
    """Dies before the store's statement number `kill_at`."""
    statements = [0]

    def count(_statement: str) -> None:
        statements[0] += 1
        if statements[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    real = sqlite3.connect

    def traced(*args, **kwargs):
        db = real(*args, **kwargs)
        db.set_trace_callback(count)
        return db

    store_module.sqlite3.connect = traced
    asyncio.run(submit_all(path, acknowledged))


@pytest.mark.parametrize("kill_at", range(35, 140, 8))
def test_every_answer_holds_after_a_kill(tmp_path, kill_at, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 10 * PATIENCE_S)
    path, acks = tmp_path / "state.sqlite", tmp_path / "acks"
    child = FORK.Process(target=killed_run, args=(path, acks, kill_at))
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == -signal.SIGKILL
    acknowledged = [json.loads(line) for line in acks.read_text().splitlines()] if acks.exists() else []

    store = SqliteStore(path)
    store.open()
    state, _ = fold(store)
    kept = [written.entry.workload.id for written in store.read() if isinstance(written.entry, Submitted)]
    store.close()
    assert kept == NAMES[: len(kept)]  # in order, each once
    assert len(acknowledged) <= len(kept) <= len(acknowledged) + 1
    assert violations(state) == []

    async def go_on() -> None:
        controller = controller_on(path)
        running = asyncio.create_task(controller.run())
        await asyncio.wait_for(controller.started.wait(), PATIENCE_S)  # the lease of a dead process is free at once
        for name in NAMES:  # a client that heard nothing asks again, with its key
            (applied,) = await controller.submit([spec(name)], user="ann", idempotency_key=f"key-{name}")
            assert (applied.id, applied.outcome) == (name, "created")
        assert list(controller.state.workloads) == NAMES
        assert violations(controller.state) == []
        await controller.stop()
        await running

    asyncio.run(go_on())
