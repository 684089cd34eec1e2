"""A start goes by the newest snapshot; folding everything shows whether it may."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from subprocess import PIPE

import psutil
import pytest
from waiting import PATIENCE_S

from llmsched.control import snapshot_maker
from llmsched.control.archive import StoreArchive
from llmsched.control.recovery import fold, fold_all
from llmsched.control.snapshot_maker import folded, in_process, spelled
from llmsched.core.facts import NodeJoined, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.errors import StoreError
from llmsched.store.journal import Batch
from llmsched.store.memory import MemoryStore
from llmsched.store.sqlite import SqliteStore

WORKLOAD = Workload("a", "a", "task", (Group("workers", 1, (Option(None, Resources(1000)),)),))
ENTRIES = [NodeJoined(1.0, Node("n", Resources(4000, 8000))), Submitted(2.0, WORKLOAD), Tick(3.0)]


def begun():
    store = MemoryStore()
    store.take_over("test", store.lease())
    store.commit(Batch(3.0, ENTRIES)).result()
    state = State()
    for entry in ENTRIES:
        state.apply(entry)
    return store, state


@contextmanager
def running(path):
    store = SqliteStore(path)
    store.open()
    try:
        store.take_over("test", store.lease())
        yield store
    finally:
        store.close()


def test_a_snapshot_and_what_came_after_is_all_of_it_folded():
    store, state = begun()
    store.commit(Batch(3.0, (), [spelled(state, StoreArchive(store), 3, 3.0)])).result()
    store.commit(Batch(4.0, [Tick(4.0)])).result()
    assert fold(store)[0].digest() == fold_all(store)[0].digest()
    assert fold(store)[1] == fold_all(store)[1] == 4


def test_a_snapshot_of_an_older_model_of_the_state_is_taken_all_the_same():
    store, state = begun()
    row = spelled(state, StoreArchive(store), 3, 3.0)
    store.commit(Batch(3.0, (), [row._replace(digest="what it was with a field less")])).result()
    assert fold(store)[0].digest() == fold_all(store)[0].digest() == state.digest()


def test_a_snapshot_that_is_not_what_its_entries_make_is_found():
    store, state = begun()
    state.apply(Tick(9.0))
    store.commit(Batch(3.0, (), [spelled(state, StoreArchive(store), 3, 3.0)])).result()
    with pytest.raises(StoreError, match="the snapshot of entry 3 is not what its entries make"):
        fold_all(store)


def test_what_is_compacted_is_folded_from_the_snapshot_that_holds_it():
    store, state = begun()
    store.commit(Batch(3.0, (), [spelled(state, StoreArchive(store), 3, 3.0)])).result()
    store.commit(Batch(4.0, [Tick(4.0)])).result()
    assert store.compact(3, 100).result() == 3
    assert fold_all(store)[0].digest() == fold(store)[0].digest()


def put(store, entries):
    return store.commit(Batch(entries[-1].at, entries)).result()[-1].seq


def test_a_process_beside_the_controller_makes_what_folding_gives_of_any_entry(tmp_path):
    with running(tmp_path / "state.sqlite") as store:
        put(store, ENTRIES)
        put(store, [Tick(4.0)])
        expected = folded(store, 3, 9.0)
        assert asyncio.run(in_process(store.path)(3, 9.0)) == expected
        store.commit(Batch(9.0, (), [expected])).result()
        assert asyncio.run(in_process(store.path)(4, 9.0)) == folded(store, 4, 9.0)  # from the snapshot before it
        assert fold(store)[0].digest() == fold_all(store)[0].digest()


def test_what_keeps_it_from_being_made_is_said(tmp_path):
    with running(tmp_path / "state.sqlite") as store:
        put(store, ENTRIES)
        with pytest.raises(StoreError, match="entry 7 is not there: the last one is 3"):
            asyncio.run(in_process(store.path)(7, 9.0))
        with pytest.raises(StoreError, match=r"there is no journal at .*/none\.sqlite"):
            asyncio.run(in_process(tmp_path / "none.sqlite")(3, 9.0))


def test_its_process_ends_when_nobody_waits_for_it_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_maker, "LONGEST_S", 0.0)
    with running(tmp_path / "state.sqlite") as store:
        put(store, ENTRIES)
        with pytest.raises(StoreError, match="not made within 0 s"):
            asyncio.run(in_process(store.path)(3, 9.0))
    assert not [each for each in psutil.Process().children() if "snapshot_maker" in " ".join(each.cmdline())]


def test_its_process_leaves_with_a_controller_that_is_killed():
    waits = "import signal; from llmsched.control.snapshot_maker import leave_with_parent as leave; leave(); "
    child = subprocess.Popen(
        [sys.executable, "-c", waits + "print(1, flush=True); signal.pause()"], stdin=PIPE, stdout=PIPE
    )
    with child:
        assert child.stdout.read(1) == b"1" and child.poll() is None
        child.stdin.close()  # as the system does for whoever is killed
        assert child.wait(PATIENCE_S) == 1


def test_an_entry_that_nothing_can_take_in_keeps_nobody_from_a_snapshot(monkeypatch):
    store, state = begun()
    put(store, [Tick(4.0)])
    apply = State.apply

    def breaks(self, entry):
        if entry == Tick(4.0):
            raise RuntimeError("broken")
        apply(self, entry)

    monkeypatch.setattr(State, "apply", breaks)
    assert folded(store, 4, 9.0).digest == state.digest()
