"""A storage is one journal's: another one would take its receipts and results for those of its own work."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsched.api.storage_claim import NOTE, claim, identity
from llmsched.errors import RequestError
from llmsched.runtime.storage import LocalStorage

OURS, THEIRS = identity(b"ours"), identity(b"theirs")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def test_whoever_comes_first_has_it_and_may_come_again(storage: LocalStorage) -> None:
    for is_new in (True, True, False):
        claim(storage, OURS, is_new=is_new)
    assert storage.read(NOTE).decode() == OURS


def test_a_new_journal_does_not_begin_where_another_one_s_results_are(storage: LocalStorage) -> None:
    claim(storage, THEIRS, is_new=True)
    with pytest.raises(RequestError, match="has what the work of another llmsched left") as refused:
        claim(storage, OURS, is_new=True)
    assert refused.value.code == "storage_taken"
    assert storage.read(NOTE).decode() == THEIRS


@pytest.mark.parametrize("note", ["a link", "long", "theirs"])
def test_what_work_writes_there_stops_no_journal_that_knows_its_work(storage: LocalStorage, note: str) -> None:
    if note == "a link":
        (storage.root / NOTE).symlink_to("/etc/hostname")
    else:
        storage.write(NOTE, b"x" * 5000 if note == "long" else THEIRS.encode())
    claim(storage, OURS, is_new=False)
    assert storage.read(NOTE).decode() == OURS
