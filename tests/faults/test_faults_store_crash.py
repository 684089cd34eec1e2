"""Killed with -9 before any statement of the store: what was acknowledged is there once, and nothing is half there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

from waiting import PATIENCE_S

from llmsched.core.facts import Submitted, Tick
from llmsched.core.workload import Workload
from llmsched.store import sqlite as store_module
from llmsched.store.journal import Batch
from llmsched.store.sqlite import SqliteStore
from llmsched.store.tables import IdempotencyRow

BATCHES = 3
FORK = multiprocessing.get_context("fork")


def entries_of(n):
    return [Submitted(float(n), Workload(f"w{n}", f"w{n}", "task", ())), Tick(float(n))]


def scripted_run(path: Path, acknowledged: Path, kill_at: int, statements: list[int]) -> None:
    """Open, take over, commit BATCHES batches and close; die before statement `kill_at` (0: never)."""

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
    try:
        store = SqliteStore(path)
        store.open()
        store.take_over("script", store.lease())
        for n in range(BATCHES):
            row = IdempotencyRow("ann", f"k{n}", "hash", "{}", float(n))
            store.commit(Batch(float(n), entries_of(n), [row])).result()
            with acknowledged.open("a") as file:
                file.write(f"{n}\n")
        store.close()
    finally:
        store_module.sqlite3.connect = real


def test_a_kill_at_any_statement_loses_nothing_that_was_acknowledged(tmp_path):
    for first in ("warm", "whole"):  # a process reads the schema once more for its first store
        counted = [0]
        (tmp_path / first).mkdir()
        scripted_run(tmp_path / first / "state.sqlite", tmp_path / first / "acks", 0, counted)
    points = counted[0]
    assert points > 30  # the script really goes through open, take-over, commits and close

    for kill_at in range(1, points + 1):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        path, acks = folder / "state.sqlite", folder / "acks"
        child = FORK.Process(target=scripted_run, args=(path, acks, kill_at, [0]))
        child.start()
        child.join(PATIENCE_S)
        assert child.exitcode == -signal.SIGKILL, f"point {kill_at}"

        acknowledged = len(acks.read_text().split()) if acks.exists() else 0
        store = SqliteStore(path)
        store.open()
        found = [written.entry for written in store.read()]
        whole = len(found) // 2
        assert found == [entry for n in range(whole) for entry in entries_of(n)], f"point {kill_at}"
        assert acknowledged <= whole <= acknowledged + 1, f"point {kill_at}"
        assert [row.key for row in store.rows(IdempotencyRow)] == [f"k{n}" for n in range(whole)]
        epoch = store.take_over("after", store.lease())
        assert store.commit(Batch(9.0, [Tick(9.0)])).result()[0].seq == 2 * whole + 1
        assert epoch in (1, 2)
        store.close()
