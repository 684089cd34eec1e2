"""The same promises for a folder and for S3 (moto's server on loopback)."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from llmsched.runtime import storage as module
from llmsched.runtime.storage import LocalStorage, Storage, StorageError, check_key


def test_what_was_written_is_read_back_and_listed(store: Storage) -> None:
    store.write("sentiment/0/1/receipt.json", b"{}")
    store.write("sentiment/0/1/receipt.json", b'{"a": 1}')
    store.append("sentiment/0/1/progress.jsonl", b"one\n")
    store.append("sentiment/0/1/progress.jsonl", b"two\n")
    assert store.read("sentiment/0/1/receipt.json") == b'{"a": 1}'
    assert store.read("sentiment/0/1/progress.jsonl") == b"one\ntwo\n"
    assert store.list() == store.list("sentiment/0") == ["sentiment/0/1/progress.jsonl", "sentiment/0/1/receipt.json"]
    assert store.size("sentiment/0/1/receipt.json") == 8
    assert store.size("sentiment/0/9/receipt.json") is None
    with pytest.raises(FileNotFoundError):
        store.read("sentiment/0/9/receipt.json")


def test_delete_takes_a_key_or_all_that_is_under_it_and_is_fine_when_absent(store: Storage) -> None:
    for key in ("a/x", "a/b/y", "ab/z"):
        store.write(key, b".")
    store.delete("a")
    store.delete("a")
    assert store.list() == ["ab/z"]
    store.delete("ab/z")
    assert store.list() == []


def test_only_the_first_of_two_conditional_creations_wins(store: Storage) -> None:
    assert store.write_if_absent("r", b"first")
    assert not store.write_if_absent("r", b"second")
    assert store.read("r") == b"first"


def test_a_swap_needs_the_version_that_was_read(store: Storage) -> None:
    assert store.compare_and_swap("p", None, b"1")
    assert not store.compare_and_swap("p", None, b"2")
    found = store.read_versioned("p")
    assert found is not None and found[0] == b"1"
    assert store.compare_and_swap("p", found[1], b"2")
    assert not store.compare_and_swap("p", found[1], b"3")
    store.delete("p")
    assert not store.compare_and_swap("p", found[1], b"4")
    assert store.read_versioned("p") is None


def test_a_folder_goes_in_whole_and_comes_out_the_same(store: Storage, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.bin").write_bytes(b"x" * 1000)
        (folder / "b.json").write_text("{}")

    store.write("k/leftover", b"from a try that failed")
    files = store.put_folder("k", write)
    assert sorted(files) == ["b.json", "deep/a.bin"] and files["deep/a.bin"]["size"] == 1000
    assert store.list() == ["k/b.json", "k/deep/a.bin"]
    for _ in range(2):
        folder = store.fetch_folder("k", tmp_path / "cache")
        assert module.describe(folder) == files


def test_a_file_is_fetched_anew_once_it_has_changed(store: Storage, tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        store.write("data/train.jsonl", content)
        assert store.fetch_file("data/train.jsonl", tmp_path / "cache").read_bytes() == content
        folder = store.fetch_folder("data", tmp_path / "cache")
        assert (folder / "train.jsonl").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        store.fetch_file("data/test.jsonl", tmp_path / "cache")


def test_a_folder_whose_writer_fails_leaves_nothing(store: Storage) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put_folder("k", write)
    assert store.list() == []


def test_concurrent_swaps_on_a_folder_lose_no_update(tmp_path: Path) -> None:
    store = Storage.at(tmp_path)
    store.write("n", b"0")

    def add() -> None:
        for _ in range(25):
            while True:
                found = store.read_versioned("n")
                assert found
                if store.compare_and_swap("n", found[1], str(int(found[0]) + 1).encode()):
                    break

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("n") == b"100"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a\\b", "a\0b", "./a", "a/"])
def test_a_key_cannot_leave_the_root(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a storage key"):
        check_key(key)
    with pytest.raises(ValueError, match="not a storage key"):
        Storage.at(tmp_path).write(key, b"")


def test_an_unknown_scheme_says_what_is_possible() -> None:
    with pytest.raises(StorageError, match=r"expected a folder, file:// or s3://"):
        Storage.at("gs://bucket/x")
    with pytest.raises(StorageError, match=r"expected s3://bucket/prefix"):
        Storage.at("s3:///x")


def test_a_missing_bucket_says_what_to_check(store: Storage) -> None:
    if store.uri.startswith("s3://"):
        with pytest.raises(StorageError, match="Check that the bucket exists"):
            Storage.at("s3://nobody-made-this/x").read("k")
    else:
        assert Storage.at(f"file://{store.uri}").uri == store.uri


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "socket"])
def test_what_is_no_file_below_the_root_is_not_read(tmp_path: Path, kind: str) -> None:
    """Work writes into a storage what it likes; who reads there may be somebody else."""
    outside, place = tmp_path / "outside", LocalStorage(tmp_path / "storage")
    outside.mkdir()
    (outside / "log").write_text("canary-56")
    place.write("a/b", b"fine")
    if kind == "link":
        (place.root / "a" / "log").symlink_to(outside / "log")
    elif kind == "folder":
        (place.root / "a" / "c").symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(place.root / "a" / "log")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.root / "a" / "log"))
    key = "a/c/log" if kind == "folder" else "a/log"
    for read in (lambda: place.read(key), lambda: place.read_from(key, 0, 100), lambda: place.read_versioned(key)):
        with pytest.raises(OSError, match=r"not followed|is no file|No such device"):
            read()
    assert place.read("a/b") == b"fine"
