"""The store's promises, of the real one and of the one in memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import threading
from concurrent.futures import wait
from contextlib import contextmanager

import pytest
from waiting import PATIENCE_S

from llmsched.core.decisions import Launch
from llmsched.core.facts import Bound, Cancelled, Published, Submitted, Tick
from llmsched.core.workload import Placed, Workload
from llmsched.errors import Bug, StoreError
from llmsched.store.journal import Batch, StaleEpoch, Written, workload_of
from llmsched.store.memory import MemoryStore
from llmsched.store.reading import moment_of, read_only
from llmsched.store.schema import migrations
from llmsched.store.sqlite import SqliteStore
from llmsched.store.tables import ArchiveQuery, ArchiveRow, IdempotencyRow, SnapshotRow


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "state.sqlite")
    made.open()
    made.take_over("test", made.lease())
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.sqlite"


def opened(path, owner="test"):
    store = SqliteStore(path)
    store.open()
    store.take_over(owner, store.lease())
    return store


def put(store, *entries, at=1.0, rows=()):
    return store.commit(Batch(at, entries, rows)).result(PATIENCE_S)


def submitted(name, at=1.0):
    return Submitted(at, Workload(name, name, "task", ()))


@contextmanager
def full_disk(limit_bytes):
    """The kernel refuses to make any file of this process longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_sequence_numbers_have_no_gap(store):
    assert [w.seq for w in put(store, Tick(1.0), Tick(2.0))] == [1, 2]
    assert [w.seq for w in put(store, Tick(3.0))] == [3]
    assert [w.seq for w in store.read()] == [1, 2, 3]
    assert [w.entry for w in store.read(after=1, limit=1)] == [Tick(2.0)]


def test_entries_of_one_workload_are_found_by_its_id(store):
    launch = Launch("a/0", 1, (Placed("workers", "n1", 0),))
    put(store, submitted("a"), submitted("b"), launch, Bound(2.0, "a/0", 1), Tick(3.0), Cancelled(4.0, "b"))
    assert [w.seq for w in store.read(workload="a")] == [1, 3, 4]
    assert [w.entry for w in store.read(workload="a", after=3)] == [Bound(2.0, "a/0", 1)]


def test_a_publication_belongs_to_the_story_of_its_origin():
    assert workload_of(Published(1.0, "qwen", "adapter", "sql", "/uri", "sql-lora@2")) == "sql-lora@2"
    assert workload_of(Bound(1.0, "sql-lora@2/0", 1)) == "sql-lora@2"
    assert workload_of(Tick(1.0)) is None


def test_rows_are_replaced_whole_and_found_by_the_start_of_their_key(store):
    first = IdempotencyRow("ann", "k1", "aa", "{}", 1.0)
    put(store, rows=[first, IdempotencyRow("bob", "k1", "bb", "{}", 1.0)])
    put(store, rows=[first._replace(response='{"x":1}')])
    assert store.row(IdempotencyRow, "ann", "k1").response == '{"x":1}'
    assert [row.user for row in store.rows(IdempotencyRow)] == ["ann", "bob"]
    assert [row.request for row in store.rows(IdempotencyRow, "bob")] == ["bb"]
    assert store.row(IdempotencyRow, "eve", "k1") is None


def test_an_older_epoch_writes_nothing(store):
    put(store, Tick(1.0))
    mine, store._epoch = store._epoch, store._epoch - 1
    with pytest.raises(StaleEpoch):
        put(store, Tick(2.0), rows=[IdempotencyRow("a", "b", "c", "{}", 1.0)])
    with pytest.raises(StaleEpoch):
        put(store)
    store._epoch = mine
    assert [w.entry for w in store.read()] == [Tick(1.0)]
    assert store.rows(IdempotencyRow) == []


def test_only_one_of_two_takes_the_lease_it_saw(store):
    seen = store.lease()
    store.take_over("first", seen)
    with pytest.raises(StaleEpoch):
        store.take_over("second", seen)
    assert store.lease().owner == "first"


def test_every_commit_even_an_empty_one_shows_that_the_owner_lives(store):
    before = store.lease()
    put(store)
    after = store.lease()
    assert after.epoch == before.epoch
    assert after.renewals > before.renewals


# --- on disk only -----------------------------------------------------------------------------------------------


def test_what_was_committed_is_there_after_reopening(path):
    store = opened(path)
    put(store, submitted("größe"), at=1.5)
    store.close()
    again = opened(path)
    assert again.read() == [Written(1, 1.5, submitted("größe"))]
    again.close()


def test_a_second_controller_fences_the_first(path):
    first = opened(path, "first")
    put(first, Tick(1.0))
    second = opened(path, "second")
    with pytest.raises(StaleEpoch, match="another controller|epoch 1 is over"):
        put(first, Tick(2.0))
    assert [w.seq for w in put(second, Tick(3.0))] == [2]
    first.close()
    assert second.lease().owner == "second"
    second.close()


def test_a_missing_store_stops_the_start(path):
    store = opened(path)
    put(store, submitted("a"))
    store.close()
    for left in path.parent.glob("state.sqlite*"):
        left.unlink()
    with pytest.raises(StoreError) as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_missing"
    path.touch()
    with pytest.raises(StoreError, match="missing"):
        SqliteStore(path).open()


def copied(path, target):
    """The files as they are, while nothing has them open."""
    target.mkdir()
    for file in path.parent.glob("state.*"):
        shutil.copy(file, target / file.name)


def put_back(path, names):
    for name in names:
        (path.parent / name).unlink(missing_ok=True)
        if (path.parent / "before" / name).exists():
            shutil.copy(path.parent / "before" / name, path.parent / name)


def test_an_older_copy_of_the_store_stops_the_start_also_of_the_same_epoch(path):
    store = opened(path)
    put(store, submitted("a"))
    store.close()
    copied(path, path.parent / "before")
    store = SqliteStore(path)
    store.open()
    store.take_over("test", store.lease())
    put(store, *(submitted(f"b{n}") for n in range(5)))
    store.close()
    put_back(path, ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"])
    with pytest.raises(StoreError, match="has 1 entries, and at least 6 were written and acknowledged") as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_old"
    assert "llmsched restore --accept-loss" in raised.value.hint


def killed_after_writing(path):
    store = opened(path)
    for n in range(60):
        put(store, submitted(f"w{n}"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_store_whose_wal_is_gone_stops_the_start(path):
    store = opened(path)
    put(store, submitted("a"))
    store.close()
    child = multiprocessing.get_context("fork").Process(target=killed_after_writing, args=(path,))
    child.start()
    child.join(PATIENCE_S)
    for name in ("state.sqlite-wal", "state.sqlite-shm"):
        (path.parent / name).unlink()
    with pytest.raises(StoreError, match="has 1 entries, and at least 61") as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_old"


@pytest.mark.parametrize("left", [["state.key"], ["state.head"]])
def test_a_store_that_is_lost_with_its_note_or_its_key_does_not_start_empty(path, left):
    store = opened(path)
    put(store, submitted("a"))
    store.close()
    for file in path.parent.glob("state.*"):
        if file.name not in left:
            file.unlink()
    with pytest.raises(StoreError) as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_missing"


@pytest.mark.parametrize(("name", "code"), [("state.key", "store_key"), ("state.head", "store_head")])
def test_without_its_key_or_its_note_nothing_is_believed(path, name, code):
    store = opened(path)
    put(store, submitted("a"))
    store.close()
    (path.parent / name).unlink()
    with pytest.raises(StoreError) as raised:
        SqliteStore(path).open()
    assert raised.value.code == code


@pytest.mark.parametrize("table", ["lease", "head"])
def test_a_lease_or_head_that_is_gone_is_damage_and_no_crash(path, table):
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"DELETE FROM {table}")
    db.close()
    with pytest.raises(StoreError) as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_damaged"


def test_a_note_that_was_torn_leaves_the_one_before(path):
    store = opened(path)
    put(store, submitted("a"))
    put(store, submitted("b"))
    store.close()
    content = bytearray((path.parent / "state.head").read_bytes())
    newest = max((0, 512), key=lambda at: json.loads(content[at : at + 512].split(b" ", 1)[1])[0])
    content[newest + 40 : newest + 60] = b"x" * 20
    (path.parent / "state.head").write_bytes(content)
    again = opened(path)
    assert len(again.read()) == 2
    again.close()


def test_what_is_compacted_is_gone_and_the_rest_still_linked(path):
    store = opened(path)
    put(store, *(submitted(f"w{n}") for n in range(10)))
    put(store, rows=[SnapshotRow(seq, 1.0, "digest", b"body") for seq in (2, 6)])
    with pytest.raises(Bug, match="in no snapshot"):
        store.compact(7, 100).result()
    assert store.compact(6, 4).result() == 4
    assert store.compact(6, 4).result() == 2
    assert store.compact(6, 4).result() == 0
    store.close()
    again = opened(path)
    assert again.floor() == 6
    assert [written.seq for written in again.read(after=6)] == [7, 8, 9, 10]
    with pytest.raises(StoreError) as raised:
        again.read()
    assert raised.value.code == "compacted"
    assert [w.seq for w in put(again, Tick(2.0))] == [11]
    again.close()


def test_nobody_else_can_read_any_file_of_it_at_any_moment(path):
    seen = set()
    real = sqlite3.connect

    def connect(*args, **kwargs):
        db = real(*args, **kwargs)
        db.set_trace_callback(lambda _: seen.update((f.name, f.stat().st_mode & 0o077) for f in path.parent.iterdir()))
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        store = opened(path)
        put(store, submitted("a"))
        store.close()
    assert {"state.sqlite", "state.sqlite-wal", "state.key", "state.head"} <= {name for name, _ in seen}
    assert {mode for _, mode in seen} == {0}


def test_a_write_that_is_wrong_takes_no_other_with_it(path):
    store = opened(path)
    futures = [store.commit(Batch(1.0, [Tick(float(n))])) if n != 3 else store.compact(999, 999) for n in range(6)]
    wait(futures)
    assert isinstance(futures[3].exception(), Bug)
    assert [f.result()[0].entry for n, f in enumerate(futures) if n != 3] == [Tick(float(n)) for n in (0, 1, 2, 4, 5)]
    store.close()


def test_rows_that_are_too_old_go_and_are_not_missed(store):
    put(store, rows=[IdempotencyRow("ann", f"k{n}", "hash", "[]", float(n)) for n in range(5)])
    old = store.older(IdempotencyRow, 3.0)
    assert old == [("ann", "k0"), ("ann", "k1"), ("ann", "k2")]
    store.remove(IdempotencyRow, old).result()
    assert [row.key for row in store.rows(IdempotencyRow)] == ["k3", "k4"]
    if isinstance(store, SqliteStore):
        with moment_of(store.path) as moment:
            assert moment.broken_tables() == []


def ended(n, user="ann", queue="q", kind="task", artifact=None):
    return ArchiveRow(f"w{n}", f"w{n}", 1, kind, queue, user, "succeeded", float(n), n + 0.5, artifact, "\n", b"")


def test_the_archive_is_read_page_by_page_and_only_what_is_asked_for(store):
    put(store, rows=[ended(n, "ann" if n % 2 else "bob", "red" if n % 3 else "blue") for n in range(12)])
    page = store.archived(ArchiveQuery(5))
    assert [row.id for row in page] == ["w11", "w10", "w9", "w8", "w7"]
    following = store.archived(ArchiveQuery(5, after_age=(page[-1].submitted_at, page[-1].id)))
    assert [row.id for row in following] == ["w6", "w5", "w4", "w3", "w2"]
    assert [row.id for row in store.archived(ArchiveQuery(3, user="bob"))] == ["w10", "w8", "w6"]
    assert [row.id for row in store.archived(ArchiveQuery(4, user="bob", queues=("blue",)))] == [
        "w10",
        "w9",
        "w8",
        "w6",
    ]


def test_models_and_runs_of_the_archive_come_by_name_and_from_the_newest_down(store):
    runs = [ended(n)._replace(name="m", run=n, kind="train", artifact=f"/m/{n}" if n != 3 else None) for n in (1, 2, 3)]
    put(store, rows=[*runs, ended(9, kind="train", artifact="/a")._replace(name="a")])
    assert [row.run for row in store.archived(ArchiveQuery(1, name="m"))] == [3]
    assert [row.run for row in store.archived(ArchiveQuery(9, name="m", results=True))] == [2, 1]
    assert [row.id for row in store.archived(ArchiveQuery(2, models=True))] == ["w9", "w2"]
    assert [row.id for row in store.archived(ArchiveQuery(2, models=True, after_run=("m", 2)))] == ["w1"]


def test_a_newer_schema_is_refused(path):
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
    db.close()
    with pytest.raises(StoreError) as raised:
        SqliteStore(path).open()
    assert raised.value.code == "store_newer"


def test_a_file_that_is_no_store_is_refused(path):
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(path).open()


def test_a_flipped_bit_in_the_journal_is_noticed(path):
    store = opened(path)
    put(store, submitted("alpha"), Tick(2.0))
    store.close()
    with sqlite3.connect(path) as db:
        (guard,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'journal_is_append_only'").fetchone()
        db.execute("DROP TRIGGER journal_is_append_only")
        db.execute("UPDATE journal SET body = replace(body, 'alpha', 'alphA') WHERE seq = 1")
        db.execute(guard)
    db.close()
    store = opened(path)
    with pytest.raises(StoreError, match="entry 1 of .* is damaged"):
        store.read()
    store.close()


def test_a_lost_entry_is_noticed(path):
    store = opened(path)
    put(store, Tick(1.0), Tick(2.0), Tick(3.0))
    store.close()
    with sqlite3.connect(path) as db:
        (guard,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'journal_keeps_all'").fetchone()
        db.execute("DROP TRIGGER journal_keeps_all")
        db.execute("DELETE FROM journal WHERE seq = 2")
        db.execute(guard)
    db.close()
    store = opened(path)
    with pytest.raises(StoreError, match="lacks entry 2"):
        store.read()
    store.close()


def test_the_journal_cannot_be_rewritten(path):
    store = opened(path)
    put(store, Tick(1.0))
    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="only grows"):
        db.execute("DELETE FROM journal")
    db.close()
    store.close()


def test_an_attempt_is_launched_once(path):
    store = opened(path)
    put(store, Launch("a/0", 1, ()))
    with pytest.raises(Bug):
        put(store, Launch("a/0", 1, ()))
    put(store, Launch("a/0", 2, ()))
    assert len(store.read()) == 2
    store.close()


def test_a_full_disk_loses_nothing_and_writing_goes_on_when_there_is_room(path):
    store = opened(path)
    put(store, submitted("before"))
    size = max(file.stat().st_size for file in path.parent.glob("state.sqlite*"))
    with full_disk(size + 4096):
        with pytest.raises(StoreError) as raised:
            for n in range(100):
                put(store, submitted(f"big-{n}-" + "x" * 20_000))
        assert raised.value.code == "store_failed"
        assert store.read(limit=1)[0].entry == submitted("before")  # reads go on
    kept = len(store.read())
    assert [w.seq for w in put(store, submitted("after"))] == [kept + 1]
    store.close()


def test_writers_in_many_threads_share_transactions_and_lose_nothing(path):
    store = opened(path)
    futures = []

    def write(n):
        futures.extend(store.commit(Batch(1.0, [submitted(f"{n}-{k}")])) for k in range(25))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(futures, PATIENCE_S)
    assert sorted(future.result()[0].seq for future in futures) == list(range(1, 201))
    assert len(store.read()) == 200
    store.close()


def test_a_journal_can_be_read_by_others_while_it_is_written(path):
    store = opened(path)
    put(store, submitted("a"))
    lease = store.lease()
    assert read_only(path) == store.read()
    assert store.lease() == lease
    put(store, submitted("b"))
    assert len(read_only(path)) == 2
    store.close()
    assert len(read_only(path)) == 2
    with pytest.raises(StoreError, match="there is no journal"):
        read_only(path.with_name("nothing.sqlite"))


def test_only_its_owner_may_read_the_file(path):
    store = opened(path)
    assert path.stat().st_mode & 0o077 == 0
    store.close()
