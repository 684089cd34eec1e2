"""Uploads: in a file, not in memory; a few at once of each user; what nobody refers to goes after a while."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S

from llmsched.api import workdirs
from llmsched.errors import SpecError
from llmsched.runtime.storage import Storage


def packed(size: int, name: str = "data", salt: int = 0) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, bytes([salt]) * size)
    return content.getvalue()


def send(live: Live, content: bytes, token: str = "", sha256: str = "") -> httpx.Response:
    name = sha256 or hashlib.sha256(content).hexdigest()
    headers = {"authorization": f"Bearer {token or live.token}", "content-type": "application/zip"}
    pieces = (content[at : at + (1 << 16)] for at in range(0, len(content), 1 << 16))  # nor does the sender copy it
    return httpx.put(f"{live.url}/api/v1/workdirs/{name}", content=pieces, headers=headers, timeout=PATIENCE_S)


def test_twelve_large_uploads_at_once_all_arrive_and_take_little_memory(fresh: Live) -> None:
    size = 8 << 20
    contents = [packed(size, salt=n) for n in range(12)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda content: send(fresh, content), contents))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [answer.status_code for answer in answers] == [200] * 12
    assert peak - before < 2 * size, "twelve in memory would be 96 MiB"
    storage = Storage.at(fresh.controller.storage)
    for content in contents:
        assert storage.read(workdirs.key(hashlib.sha256(content).hexdigest())) == content
    assert not any((Path(fresh.controller.storage) / ".staging").iterdir())


def test_a_zip_of_more_files_than_any_workdir_has_is_refused_before_it_is_listed() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("one", "")
    whole = content.getvalue()
    begin = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entry = whole[begin:end]
    count = 600_000
    tail = bytearray(whole[end:])
    tail[12:16] = (len(entry) * count).to_bytes(4, "little")  # the length of the list; its count may say anything
    for many in (b"".join([whole[:begin], entry * count, bytes(tail)]),):
        tracemalloc.start()
        with pytest.raises(SpecError, match="more than 50000 files"):
            workdirs.check(io.BytesIO(many))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * workdirs.LIST_LIMIT


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip", packed(1)[:-5]])
def test_what_is_no_zip_is_refused_and_leaves_nothing(fresh: Live, content: bytes) -> None:
    answer = send(fresh, content)
    assert (answer.status_code, answer.json()["code"]) == (422, "workdir")
    answer = send(fresh, packed(3), sha256="0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (422, "workdir")
    assert Storage.at(fresh.controller.storage).list("workdirs") == []


def test_a_user_may_keep_so_much_that_is_not_used(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdirs, "UNUSED_BYTES_OF_USER", 1000)
    ann, bob = fresh.token_of("ann", "submitter"), fresh.token_of("bob", "submitter")
    first = packed(1001)
    assert send(fresh, first, ann).status_code == 200
    assert send(fresh, packed(5), ann).status_code == 429
    assert send(fresh, packed(5), bob).status_code == 200
    task = {"name": "a", "kind": "task", "task": {"run": ["true"]}}
    with fresh.client(ann) as client:
        client.apply([{**task, "workdir": f"sha256:{hashlib.sha256(first).hexdigest()}"}])
    assert send(fresh, packed(7), ann).status_code == 200


def test_what_no_workload_refers_to_is_removed_a_day_after_it_was_last_asked_for(tmp_path: Path) -> None:
    storage, now = Storage.at(tmp_path), 1_000_000.0
    names = {}
    for salt, what in enumerate(("used", "old", "asked")):
        content = packed(10, salt=salt)
        names[what] = hashlib.sha256(content).hexdigest()
        workdirs.keep(storage, names[what], io.BytesIO(content), "ann", now)
    storage.write(workdirs.key("f" * 64), b"of before there were notes")
    parcels = [json.dumps({"workdir": f"sha256:{names['used']}"})]
    clock = [now]
    uploads = workdirs.Uploads(lambda: storage, lambda: parcels, lambda: clock[0])
    assert uploads.sweep(parcels) == []
    clock[0] += workdirs.KEPT_UNUSED_S + 1
    storage.write(f"workdirs/{names['asked']}.json", json.dumps({"by": "ann", "size": 1, "at": clock[0]}).encode())
    assert uploads.sweep(parcels) == sorted([names["old"], "f" * 64], key=lambda name: (name != names["old"], name))
    left = storage.list("workdirs")
    assert [name for name in left if name.endswith(".zip")] == sorted(
        workdirs.key(names[what]) for what in ("used", "asked")
    )


@pytest.mark.parametrize("way", ["link", "folder", "long", "words", "name"])
def test_what_work_puts_beside_the_uploads_fails_nobodys_upload(fresh: Live, way: str) -> None:
    """The uploads lie where work may write: a link there ended every upload, a file of 20 GB the controller."""
    folder = Path(fresh.controller.storage) / "workdirs"
    folder.mkdir(parents=True)
    (folder / f"{'a' * 64}.zip").write_bytes(b"")
    note = folder / f"{'a' * 64}.json"
    if way == "link":
        note.symlink_to("/etc/shadow")
    elif way == "folder":
        (note / "in").mkdir(parents=True)
    elif way == "long":
        note.touch()
        os.truncate(note, 1 << 40)
    elif way == "words":
        note.write_text('{"by": "ann", "size": 1e999, "at": "\\ud800"}')
    else:
        (folder / "caf\udce9.zip").touch()
        (folder / "x" / "y").mkdir(parents=True)
        (folder / "x" / "y" / "z.zip").touch()
    assert send(fresh, packed(5)).status_code == 200
    uploads = workdirs.Uploads(lambda: Storage.at(fresh.controller.storage), list)
    assert uploads.sweep([]) == []
