"""fsck: a home that is whole, and each way in which one is not, planted on purpose."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmsched.api import fsck, home
from llmsched.cli.main import cli
from llmsched.control.controller import Controller
from llmsched.control.vault import Vault
from llmsched.errors import StoreError
from llmsched.executors.fake import FakeExecutor, NodeKind, Script
from llmsched.spec.load import load_json
from llmsched.store.seal import Seal
from llmsched.store.sqlite import SqliteStore


def task(name: str, gpus: int) -> Any:
    body = {"name": name, "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": [f"A100:{gpus}"]}}
    return load_json(body)


async def lived_in(folder: Path) -> None:
    """A controller that ran there: something that ended, something that runs, something that waits, a secret."""
    home.prepare(folder)
    executor = FakeExecutor([NodeKind(2, "A100")])
    executor.cluster.script = lambda order: Script(runs_for_s=0.0 if order.gang.startswith("short") else None)
    store = SqliteStore(folder / "state.sqlite")
    vault = Vault(store, home.secret_key_file(folder), lambda: 1.0)
    controller = Controller(store, executor, storage=str(folder / "storage"), vault=vault)
    running = asyncio.create_task(controller.run())
    await controller.started.wait()
    await vault.put("ann", "TOKEN", "canary-31", "ann")
    await controller.submit([task("short", 1)], user="ann", idempotency_key="key-1")
    await controller.submit([task("long", 1), task("large", 2)], user="ann")
    async for _ in controller.follow():
        state = controller.state
        if state.workloads["short"].phase == "succeeded" and state.workloads["long"].phase == "running":
            break
    await controller.stop()
    await running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    asyncio.run(lived_in(tmp_path / "home"))
    monkeypatch.setenv("LLMSCHED_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def checked(folder: Path, **more: Any) -> dict[str, fsck.Check]:
    return {check.name: check for check in fsck.examine(folder, **more)}


def broken(folder: Path, **more: Any) -> list[str]:
    return [check.name for check in checked(folder, **more).values() if check.result == "broken"]


def change(folder: Path, *statements: str) -> None:
    """As one does who has the file: past its guards, which stand there again afterwards."""
    with sqlite3.connect(folder / "state.sqlite") as db:
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert db.execute(statement).rowcount > 0
        for _, made in guards:
            db.execute(made)
    db.close()


def reshape(folder: Path, *statements: str) -> None:
    """Another schema than ours."""
    with sqlite3.connect(folder / "state.sqlite") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_a_home_that_is_whole_and_its_controller_may_run(folder: Path) -> None:
    assert {check.result for check in checked(folder).values()} == {"ok"}
    done = CliRunner().invoke(cli, ["fsck", "--json"])
    assert done.exit_code == 0
    assert [one["result"] for one in json.loads(done.output)["checks"]] == ["ok"] * 8

    async def beside() -> list[str]:
        controller = Controller(SqliteStore(folder / "state.sqlite"), FakeExecutor([NodeKind(2, "A100")]), storage="/s")
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        found = await asyncio.to_thread(broken, folder)
        await controller.stop()
        await running
        return found

    assert asyncio.run(beside()) == []


def test_an_entry_that_was_changed(folder: Path) -> None:
    change(folder, "UPDATE journal SET body = replace(body, 'large', 'ample') WHERE body LIKE '%large%'")
    assert broken(folder) == ["journal"]
    assert "is damaged" in checked(folder)["journal"].detail
    assert checked(folder)["state"].result == "unknown"
    done = CliRunner().invoke(cli, ["fsck"])
    assert done.exit_code == 5
    assert "broken" in done.output and "backup" in done.output


def test_an_entry_that_is_gone(folder: Path) -> None:
    change(folder, "DELETE FROM journal WHERE seq = 4")
    assert broken(folder) == ["journal"]
    assert "lacks entry 4" in checked(folder)["journal"].detail


@pytest.mark.parametrize(
    ("statement", "check", "said"),
    [
        ("DELETE FROM journal WHERE seq > (SELECT max(seq) - 3 FROM journal)", "journal", "its last 3 are gone"),
        ("UPDATE journal SET workload = 'large' WHERE workload = 'short'", "journal", "is damaged"),
        ("UPDATE journal SET at = at + 1 WHERE seq = 2", "journal", "entry 2 of"),
        ("UPDATE journal SET epoch = 7 WHERE seq = 2", "journal", "entry 2 of"),
        ("UPDATE idempotency SET response = '[]'", "tables", "the row of ann, key-1 was changed or forged"),
        ("UPDATE idempotency SET at = at - 1", "tables", "was changed or forged"),
        ("DELETE FROM idempotency", "tables", "idempotency: rows are missing, too many, or from an earlier time (0"),
        ("INSERT INTO idempotency VALUES ('ann', 'k', 'r', '[]', 1.0, 'c')", "tables", "ann, k was changed or forged"),
        ("UPDATE progress SET data = '{}'", "tables", "progress: the row of"),
        ("DELETE FROM secrets", "tables", "secrets: rows are missing"),
        ("UPDATE lease SET epoch = 9", "head", "does not go with the key"),
        ("DELETE FROM lease", "head", "has no lease"),
        ("UPDATE head SET seq = seq - 3", "head", "does not go with the key"),
    ],
)  # fmt: skip
def test_whatever_is_changed_without_the_key_is_found(folder: Path, statement: str, check: str, said: str) -> None:
    change(folder, statement)
    found = checked(folder)
    assert found[check].result == "broken" and said in found[check].detail, found[check].detail
    assert CliRunner().invoke(cli, ["fsck"]).exit_code == 5


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("progress", "DELETE FROM progress"),
        ("idempotency", "DELETE FROM idempotency"),
        ("idempotency", "UPDATE idempotency SET checksum = 'none of ours'"),
        ("secrets", "DELETE FROM secrets"),
        ("archive", "INSERT INTO archive VALUES ('a', 'a', 1, 'task', 'q', 'u', 'failed', 1, 1, NULL, '', x'00', 'c')"),
    ],
)
def test_a_store_that_lacks_rows_or_has_more_is_not_started_on(folder: Path, table: str, statement: str) -> None:
    change(folder, statement)
    with pytest.raises(StoreError, match=f"other rows than were written: {table}") as raised:
        SqliteStore(folder / "state.sqlite").open()
    assert "restore --accept-loss" in (raised.value.hint or "")
    if table == "idempotency":
        assert CliRunner().invoke(cli, ["restore", "--accept-loss"]).exit_code == 0
        asyncio.run(goes_on(folder))


FORGETS = "CREATE TRIGGER helpful AFTER INSERT ON progress BEGIN DELETE FROM idempotency; END"
RESHAPED = [
    (FORGETS, "the trigger helpful is not ours"),
    ("DROP TRIGGER journal_keeps_all", "the trigger journal_keeps_all is missing"),
    ("DROP INDEX one_launch_an_attempt", "the index one_launch_an_attempt is missing"),
    ("CREATE UNIQUE INDEX one_at_a_time ON journal (at, seq)", "the index one_at_a_time is not ours"),
    ("CREATE TABLE notes (text TEXT)", "the table notes is not ours"),
    ("CREATE VIEW seen AS SELECT * FROM journal", "the view seen is not ours"),
    ("DROP TABLE secrets", "the table secrets is missing"),
    ("ALTER TABLE archive ADD COLUMN more TEXT", "the table archive was changed"),
    ("ALTER TABLE progress DROP COLUMN data", "the table progress was changed"),
    ("ALTER TABLE secrets RENAME COLUMN by TO at_last", "the table secrets was changed"),
    ("PRAGMA user_version = 0", "it has no schema of ours (version 0)"),
    ("PRAGMA user_version = -3", "it has schema -3"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "said"), RESHAPED)
def test_another_schema_is_found_and_is_not_started_on_and_can_be_mended(
    folder: Path, statement: str, said: str
) -> None:
    reshape(folder, statement)
    assert checked(folder)["schema"].result == "broken"
    assert said in checked(folder)["schema"].detail
    assert CliRunner().invoke(cli, ["fsck"]).exit_code == 5
    with pytest.raises(StoreError, match=re.escape(said)) as raised:
        SqliteStore(folder / "state.sqlite").open()
    assert "restore --accept-loss" in (raised.value.hint or "")
    done = CliRunner().invoke(cli, ["restore", "--accept-loss"])
    if "COLUMN data" in statement or "COLUMN by" in statement:
        assert done.exit_code == 5 and "no such column" in done.output  # what it held nobody can know
        return
    assert done.exit_code == 0, done.output
    assert checked(folder)["schema"].result == "ok"
    asyncio.run(goes_on(folder))


async def goes_on(folder: Path) -> None:
    """A controller starts there, and finds what was submitted before."""
    store = SqliteStore(folder / "state.sqlite")
    controller = Controller(store, FakeExecutor([NodeKind(2, "A100")]), storage="/s")
    running = asyncio.create_task(controller.run())
    await controller.started.wait()
    assert [*controller.state.workloads] == ["short", "long", "large"]
    await controller.stop()
    await running


def test_statistics_of_sqlite_are_no_other_schema(folder: Path) -> None:
    reshape(folder, "ANALYZE")
    assert broken(folder) == []


def test_an_entry_that_was_forged_with_a_checksum_of_ones_own(folder: Path) -> None:
    forged = Seal(b"0" * 32).link("", (1, 1, 1.0, "Tick", None, '{"at":1.0}'))
    change(folder, f"UPDATE journal SET kind = 'Tick', body = '{{\"at\":1.0}}', checksum = '{forged}' WHERE seq = 3")
    assert broken(folder) == ["journal"]


def test_a_row_that_was_put_back_from_before(folder: Path) -> None:
    """Its checksum is right: it was this row once."""
    with sqlite3.connect(folder / "state.sqlite") as db:
        old = db.execute("SELECT * FROM secrets").fetchone()
    db.close()

    async def changed_since() -> None:
        store = SqliteStore(folder / "state.sqlite")
        store.open()
        store.take_over("test", store.lease())
        await Vault(store, home.secret_key_file(folder), lambda: 2.0).put("ann", "TOKEN", "canary-32", "ann")
        store.close()

    asyncio.run(changed_since())
    assert broken(folder) == []
    change(folder, f"UPDATE secrets SET sealed = '{old[2]}', at = {old[4]!r}, checksum = '{old[5]}'")
    assert "from an earlier time" in checked(folder)["tables"].detail


def test_pages_that_were_overwritten(folder: Path) -> None:
    size = (folder / "state.sqlite").stat().st_size
    with (folder / "state.sqlite").open("r+b") as file:
        for at in range(4096, size, 4096):
            file.seek(at)
            file.write(b"\xff" * 12)
    assert broken(folder)[0] in ("pages", "store")
    assert CliRunner().invoke(cli, ["fsck"]).exit_code == 5


def test_no_store_or_none_at_all(folder: Path) -> None:
    (folder / "state.sqlite").write_bytes(b"not a database")
    assert broken(folder) == ["store"]
    (folder / "state.sqlite").unlink()
    assert checked(folder)["store"].detail.startswith("there is no journal at")


def test_a_key_that_is_another_one_shows_no_value(folder: Path) -> None:
    key = folder / "secret-key"
    key.write_text("0" * 64)
    assert broken(folder) == ["secrets"]
    key.write_bytes(b"\xff\x00")
    assert "holds no key" in checked(folder)["secrets"].detail
    key.unlink()
    assert "is gone" in checked(folder)["secrets"].detail
    assert "canary-31" not in CliRunner().invoke(cli, ["fsck"]).output


def test_what_is_open_to_others(folder: Path) -> None:
    (folder / "token").chmod(0o644)
    assert broken(folder) == ["permissions"]
    assert f"{folder / 'token'} is open to others (644)" in checked(folder)["permissions"].detail


def test_of_work_that_was_pretended_no_files_are_expected(folder: Path) -> None:
    assert checked(folder, files=True)["files"].result == "broken"
    home.record_isolation(folder, home.Isolation(storage=str(folder / "storage")))
    assert checked(folder, files=True)["files"].result == "ok"
    assert "--fake-nodes" in checked(folder, files=True)["files"].detail


WRITTEN_BY_WORK = (
    "{",
    "[]",
    "7",
    '{"published": []}',
    '{"published": {}}',
    '{"published": [7]}',
    '{"published": [{"key": "../../etc"}]}',
    '{"published": [{"key": ""}]}',
    "[" * 100_000,
)


def test_results_and_checkpoints_that_are_gone(folder: Path) -> None:
    result = folder / "storage" / "short" / "0" / "1" / "artifact"
    result.mkdir(parents=True)
    (result / "model.safetensors").write_bytes(b"12345")
    gang = folder / "storage" / "long" / "0"
    (gang / "1" / "5").mkdir(parents=True)
    (gang / "1" / "5" / "state.pt").write_bytes(b"12345")
    manifest = {"step": 5, "files": {"state.pt": {"size": 5, "sha256": ""}}}
    (gang / "1" / "5" / "manifest.json").write_text(json.dumps(manifest))
    (gang / "latest.json").write_text(json.dumps({"published": [{"key": "long/0/1/5", "step": 5}]}))

    def with_files(state: Any) -> list[str]:
        state.workloads["short"].artifact = str(result)
        state.gangs["long/0"].checkpoint_at = 3.0
        return list(fsck.missing(state, str(folder / "storage")))

    from llmsched.control import recovery
    from llmsched.store.reading import moment_of

    with moment_of(folder / "state.sqlite") as moment:
        state, _ = recovery.fold(moment)
    assert with_files(state) == []
    (gang / "1" / "5" / "state.pt").write_bytes(b"1234")
    assert with_files(state) == ["long/0: state.pt of its checkpoint of step 5 has 4 bytes, expected 5"]
    (gang / "1" / "5" / "state.pt").unlink()
    (result / "model.safetensors").unlink()
    assert with_files(state) == [
        f"short: its result {result} is gone",
        "long/0: state.pt of its checkpoint of step 5 is missing",
    ]
    for written in WRITTEN_BY_WORK:
        (gang / "latest.json").write_text(written)
        assert "what names its checkpoint is damaged" in with_files(state)[1], written
    (gang / "latest.json").unlink()
    (gang / "latest.json").symlink_to("/etc/passwd")
    assert "what names its checkpoint is damaged" in with_files(state)[1]
    (gang / "latest.json").unlink()
    (gang / "latest.json").write_text(json.dumps({"published": [{"key": "long/0/1/5", "step": "\x1b[31m"}]}))
    assert "\x1b" not in with_files(state)[1]
    for files in ([], {"state.pt": 5}, {"state.pt": {"size": "much"}}, {"../../etc/passwd": {"size": 1}}, {"a": {}}):
        (gang / "1" / "5" / "manifest.json").write_text(json.dumps({"files": files}))
        assert "what names its checkpoint is damaged" in with_files(state)[1], files
    for elsewhere in ("/", "file:///", "s3://", "ftp://x/y", "a/..", "\0"):
        state.workloads["short"].artifact = elsewhere
        list(fsck.missing(state, str(folder / "storage")))
    (gang / "latest.json").unlink()
    assert "its checkpoint is gone" in with_files(state)[1]
