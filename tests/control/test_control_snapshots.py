"""A start goes by the newest snapshot; folding everything shows whether it may."""

from __future__ import annotations

import pytest

from llmsched.control.archive import StoreArchive
from llmsched.control.housekeeping import spelled
from llmsched.control.recovery import fold, fold_all
from llmsched.core.facts import NodeJoined, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.snapshot import freeze
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.errors import StoreError
from llmsched.store.journal import Batch
from llmsched.store.memory import MemoryStore


def begun():
    store = MemoryStore()
    store.take_over("test", store.lease())
    group = Group("workers", 1, (Option(None, Resources(1000)),))
    workload = Workload("a", "a", "task", (group,))
    entries = [NodeJoined(1.0, Node("n", Resources(4000, 8000))), Submitted(2.0, workload), Tick(3.0)]
    store.commit(Batch(3.0, entries)).result()
    state = State()
    for entry in entries:
        state.apply(entry)
    return store, state


def test_a_snapshot_and_what_came_after_is_all_of_it_folded():
    store, state = begun()
    store.commit(Batch(3.0, (), [spelled(freeze(state), StoreArchive(store), 3, 3.0)])).result()
    store.commit(Batch(4.0, [Tick(4.0)])).result()
    assert fold(store)[0].digest() == fold_all(store)[0].digest()
    assert fold(store)[1] == fold_all(store)[1] == 4


def test_a_snapshot_of_an_older_model_of_the_state_is_taken_all_the_same():
    store, state = begun()
    row = spelled(freeze(state), StoreArchive(store), 3, 3.0)
    store.commit(Batch(3.0, (), [row._replace(digest="what it was with a field less")])).result()
    assert fold(store)[0].digest() == fold_all(store)[0].digest() == state.digest()


def test_a_snapshot_that_is_not_what_its_entries_make_is_found():
    store, state = begun()
    state.apply(Tick(9.0))
    store.commit(Batch(3.0, (), [spelled(freeze(state), StoreArchive(store), 3, 3.0)])).result()
    with pytest.raises(StoreError, match="the snapshot of entry 3 is not what its entries make"):
        fold_all(store)


def test_what_is_compacted_is_folded_from_the_snapshot_that_holds_it():
    store, state = begun()
    store.commit(Batch(3.0, (), [spelled(freeze(state), StoreArchive(store), 3, 3.0)])).result()
    store.commit(Batch(4.0, [Tick(4.0)])).result()
    assert store.compact(3, 100).result() == 3
    assert fold_all(store)[0].digest() == fold(store)[0].digest()
