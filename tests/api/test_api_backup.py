"""The drill: a backup under load, the home destroyed, the backup put back; what is lost is said, nothing is doubled."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmsched.api import backup, fsck, home
from llmsched.cli.main import cli
from llmsched.control.controller import Controller
from llmsched.errors import LlmschedError, RequestError, StoreError
from llmsched.executors.fake import FakeCluster, FakeExecutor, NodeKind, Script
from llmsched.spec.load import load_json
from llmsched.store.sqlite import SqliteStore


def task(name: str, gpus: int = 1) -> Any:
    body = {"name": name, "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": [f"A100:{gpus}"]}}
    return load_json(body)


@asynccontextmanager
async def living(folder: Path, cluster: FakeCluster) -> Any:
    home.prepare(folder)
    controller = Controller(
        SqliteStore(folder / "state.sqlite"), FakeExecutor(cluster=cluster), storage=str(folder / "storage")
    )
    running = asyncio.create_task(controller.run())
    started = asyncio.ensure_future(controller.started.wait())
    await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        started.cancel()
        await running  # says why
    yield controller
    await controller.stop()
    await running


async def runs(controller: Controller, name: str) -> None:
    async for _ in controller.follow():
        if controller.state.workloads[name].phase == "running":
            return


def broken(folder: Path) -> list[str]:
    return [f"{one.name}: {one.detail}" for one in fsck.examine(folder) if one.result != "ok"]


@pytest.mark.parametrize("name", ["kept", "kept.tar", "kept.tar.gz"])
def test_a_backup_under_load_brings_back_all_that_was_acknowledged_until_then(tmp_path: Path, name: str) -> None:
    folder, kept = tmp_path / "home", tmp_path / name
    cluster = FakeCluster([NodeKind(4, "A100")], script=lambda order: Script(runs_for_s=None))

    async def life() -> tuple[list[str], int]:
        async with living(folder, cluster) as controller:
            await controller.submit([task("first")], user="ann")
            await runs(controller, "first")
            before: list[str] = []
            made = asyncio.create_task(asyncio.to_thread(backup.make, folder, kept))
            number = 0
            while not made.done():
                await controller.submit([task(f"w{number}", 4)], user="ann", idempotency_key=f"k{number}")
                number += 1
            before = [f"w{n}" for n in range(number)]
            await made
            await controller.submit([task("later")], user="ann")
            await runs(controller, "later")
            return before, controller.health.epoch

    submitted, epoch = asyncio.run(life())
    if kept.is_file():
        with tarfile.open(kept) as tar:
            assert {member.mode & 0o077 for member in tar.getmembers()} == {0}
    assert kept.stat().st_mode & 0o077 == 0
    for file in folder.glob("state.*"):
        if file.name != "state.head":
            file.unlink()

    done = backup.restore(folder, kept)
    assert done.lost > 0 and done.moved_to is not None and done.epoch > epoch
    assert broken(folder) == []

    async def again() -> None:
        async with living(folder, cluster) as controller:
            known = [*controller.state.workloads]
            assert known[0] == "first" and known[1:] == submitted[: len(known) - 1]  # in order, without a gap
            assert controller.health.epoch > epoch
            await runs(controller, "first")
            (applied,) = await controller.submit([task("later")], user="ann")
            assert applied.outcome == "created"  # it is lost, and that was said
            await runs(controller, "later")
            assert sorted(cluster.running()) == ["llms/first/0/1", "llms/later/0/1"]  # adopted, and none twice

    asyncio.run(again())
    assert broken(folder) == []


def test_a_backup_that_was_changed_is_not_put_back(tmp_path: Path) -> None:
    folder, kept = tmp_path / "home", tmp_path / "kept"

    async def life() -> None:
        async with living(folder, FakeCluster([NodeKind(1, "A100")])) as controller:
            await controller.submit([task("one")], user="ann")

    asyncio.run(life())
    backup.make(folder, kept)
    with pytest.raises(RequestError, match="is there already"):
        backup.make(folder, kept)
    content = (kept / "state.sqlite").read_bytes()
    (kept / "state.sqlite").write_bytes(content.replace(b'"name":"one"', b'"name":"two"'))
    with pytest.raises(StoreError, match="is not whole"):
        backup.restore(folder, kept)
    assert broken(folder) == []  # what is here was not touched
    with pytest.raises(RequestError, match="is no backup"):
        backup.restore(folder, tmp_path / "elsewhere")
    (kept / "state.key").unlink()
    with pytest.raises(RequestError, match="no state.key"):
        backup.restore(folder, kept)


def test_the_operator_may_accept_a_loss_and_is_told_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "home"
    monkeypatch.setenv("LLMSCHED_HOME", str(folder))

    async def life(*names: str) -> None:
        async with living(folder, FakeCluster([NodeKind(1, "A100")])) as controller:
            await controller.submit([task(name) for name in names], user="ann")

    asyncio.run(life("one"))
    older = (folder / "state.sqlite").read_bytes()
    asyncio.run(life("two", "three"))
    (folder / "state.sqlite").write_bytes(older)
    with pytest.raises(StoreError, match="were written and acknowledged"):
        asyncio.run(life())
    assert CliRunner().invoke(cli, ["restore"]).exit_code == 2
    done = CliRunner().invoke(cli, ["restore", "--accept-loss"])
    assert done.exit_code == 0 and "are lost" in done.output
    assert broken(folder) == []
    asyncio.run(life("four"))
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "state.sqlite").unlink()
    with pytest.raises(LlmschedError, match="is missing"):
        asyncio.run(life())
    assert CliRunner().invoke(cli, ["restore", "--accept-loss"]).exit_code == 0
    asyncio.run(life("five"))
    assert broken(folder) == []


def test_a_home_of_which_all_of_the_store_is_gone_does_not_begin_anew_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home"
    monkeypatch.setenv("LLMSCHED_HOME", str(folder))

    async def life(*names: str) -> int:
        async with living(folder, FakeCluster([NodeKind(1, "A100")])) as controller:
            await controller.submit([task(name) for name in names], user="ann")
            assert [*controller.state.workloads] == [*names]
            return controller.health.epoch

    epoch = asyncio.run(life("one"))
    for file in folder.glob("state.*"):
        file.unlink()
    with pytest.raises(StoreError, match=r"is missing, but a cluster was run from it \(began says so\)") as raised:
        asyncio.run(life())
    assert "llmsched restore BACKUP" in raised.value.hint and "--accept-loss" in raised.value.hint
    assert not (folder / "state.sqlite").exists()
    assert CliRunner().invoke(cli, ["restore", "--accept-loss"]).exit_code == 0
    assert asyncio.run(life("two")) > epoch + 1  # whatever still acts for the lost time is fenced out
    assert broken(folder) == []


def test_the_note_of_how_a_home_was_started_shows_that_it_was_used(tmp_path: Path) -> None:
    home.record_isolation(home.prepare(tmp_path / "home"), home.Isolation())
    store = SqliteStore(tmp_path / "home" / "state.sqlite", proofs=home.proofs_of_use(tmp_path / "home"))
    with pytest.raises(StoreError, match="isolation.json says so"):
        store.open()
    backup.accept_loss(tmp_path / "home")
    store.open()
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_backup_that_a_disk_has_no_room_for_is_no_traceback_and_leaves_nothing(tmp_path: Path) -> None:
    folder, small = tmp_path / "home", tmp_path / "small"
    small.mkdir()
    asyncio.run(begin(folder))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", small], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(StoreError, match="small"):
            backup.make(folder, small / "kept")
        assert list(small.iterdir()) == []
        kept = tmp_path / "kept"
        backup.make(folder, kept)
        with pytest.raises(StoreError, match="kept"):
            backup.restore(small / "home", kept)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


async def begin(folder: Path) -> None:
    async with living(folder, FakeCluster([NodeKind(4, "A100")])) as controller:
        await controller.submit([task("a")], user="ann")


@pytest.mark.parametrize("place", ["/proc/kept", "/dev/null/kept", "/proc/kept.tar"])
def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path, place: str) -> None:
    asyncio.run(begin(tmp_path / "home"))
    with pytest.raises((StoreError, RequestError), match="kept"):
        backup.make(tmp_path / "home", Path(place))


def test_what_is_moved_aside_twice_in_one_second_is_there_twice(tmp_path: Path) -> None:
    for written in ("first", "second"):
        (tmp_path / "state.sqlite").write_text(written)
        backup._move_aside(tmp_path)
    assert sorted(file.read_text() for file in tmp_path.glob("replaced-*/state.sqlite")) == ["first", "second"]
