"""`models pull`: the result of a run as a folder, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live import Live
from waiting import wait_until

from llmsched.cli.main import cli
from llmsched.client import pull
from llmsched.errors import ClusterError
from llmsched.executors.fake import Script

TRAIN = {"base_model": "package:models/tiny", "datasets": [{"path": "/data/a.jsonl"}]}


def written(folder: Path, **files: bytes) -> None:
    about = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "manifest.json": json.dumps({"files": about}).encode()}.items():
        (folder / name).write_bytes(data)


def test_a_model_is_fetched_by_name_and_version_and_checked(controller: Live, tmp_path: Path) -> None:
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["models", "pull", *words], env=env)

    client = controller.client()
    client.apply([{"name": "pulled", "kind": "train", "train": TRAIN}])
    wait_until(lambda: client.status("pulled").phase == "succeeded")
    (made,) = client.models("pulled")
    written(Path(made.artifact), weights=b"x" * 3_000_000, config=b"{}")
    done = run("pulled", str(tmp_path / "new" / "model"))
    assert done.exit_code == 0 and "3 files, 3.0 MB" in done.output
    assert (tmp_path / "new" / "model" / "weights").read_bytes() == b"x" * 3_000_000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    again = run("pulled@1", str(tmp_path / "new" / "model"))
    assert again.exit_code == 2 and "is there already" in again.output
    other = run("pulled@7", str(tmp_path / "other"))
    assert other.exit_code == 3 and "has no version 7; it has: 1" in other.output
    (Path(made.artifact) / "weights").write_bytes(b"y" * 3_000_000)
    broken = run("pulled", str(tmp_path / "broken"))
    assert broken.exit_code == 4 and "weights is not as it was written" in broken.output
    assert not (tmp_path / "broken").exists()
    for file in Path(made.artifact).iterdir():
        file.unlink()
    assert "is not in the storage any more" in run("pulled", str(tmp_path / "gone")).output


def test_the_rows_of_a_batch_are_fetched_by_its_name(controller: Live, tmp_path: Path) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, steps=1)
    client = controller.client()
    client.apply([{"name": "rows", "kind": "batch", "batch": {"input": {"path": "/data/a.jsonl"}, "map": "mine:f"}}])
    wait_until(lambda: client.status("rows").phase == "succeeded")
    where = Path(str(client.status("rows").artifact))
    where.mkdir(parents=True, exist_ok=True)
    (where / "part-000000.jsonl").write_text("{}\n")
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    done = CliRunner().invoke(cli, ["models", "pull", "rows", str(tmp_path / "rows")], env=env)
    assert done.exit_code == 0 and "run://rows is in" in done.output
    assert (tmp_path / "rows" / "part-000000.jsonl").read_text() == "{}\n"
    none = CliRunner().invoke(cli, ["models", "pull", "nobody", str(tmp_path / "x")], env=env)
    assert none.exit_code == 3 and 'there is no model "nobody"' in none.output


def test_a_result_that_lies_elsewhere_is_not_handed_out(tmp_path: Path) -> None:
    from llmsched.api.archive import within
    from llmsched.errors import RequestError

    inside = f"{tmp_path}/storage/a/0/artifact/1-1"
    assert within(inside, f"{tmp_path}/storage", "a") == inside
    for artifact in (None, "/etc", f"{tmp_path}/storage2/a", f"{tmp_path}/storage/../secret", "s3://other/x"):
        with pytest.raises(RequestError):
            within(artifact, f"{tmp_path}/storage", "a")


def test_an_adapter_whose_base_came_along_names_it_where_it_lies_now(tmp_path: Path) -> None:
    import asyncio

    stored = {
        "adapter_config.json": b'{"r": 2, "base_model_name_or_path": "/storage/a/base"}',
        "base/config.json": b"{}",
    }
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in stored.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, BytesIO(content))

    async def chunks():  # type: ignore[no-untyped-def]
        yield data.getvalue()

    asyncio.run(pull.unpack(chunks(), tmp_path / "model"))
    about = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert about == {"r": 2, "base_model_name_or_path": str(tmp_path / "model" / "base")}


def test_a_name_that_leads_out_of_the_folder_stays_inside_or_is_refused(tmp_path: Path) -> None:
    import asyncio

    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        about = tarfile.TarInfo("../out")
        archive.addfile(about)

    async def chunks():  # type: ignore[no-untyped-def]
        yield data.getvalue()

    with pytest.raises(ClusterError, match="no whole result"):
        asyncio.run(pull.unpack(chunks(), tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []
