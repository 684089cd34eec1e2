from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from llmsched.api.workdirs import check
from llmsched.client.workdir import pack
from llmsched.errors import SpecError


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def fill(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_the_same_files_have_the_same_name_whatever_their_dates_and_order(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", "b.py", "a/c.py", "a.txt")
    two = fill(tmp_path / "two", "a.txt", "a/c.py", "b.py")
    os.utime(two / "b.py", (1e9, 1e9))
    assert pack(one) == pack(two)
    (two / "b.py").write_text("changed")
    assert pack(one).sha256 != pack(two).sha256


def test_what_nobody_wants_on_a_worker_stays_at_home(tmp_path: Path) -> None:
    folder = fill(tmp_path, "main.py", "pkg/x.py", "data/small.csv", ".git/config", ".venv/bin/python")
    fill(folder, "pkg/__pycache__/x.pyc", "node_modules/a.js", ".env", "key.pem")
    assert names(pack(folder).content) == ["data/small.csv", "main.py", "pkg/x.py"]


def test_too_much_is_refused_with_what_is_large(tmp_path: Path) -> None:
    fill(tmp_path, "main.py")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(SpecError, match=r"2\.0 MB  model/weights.bin"):
        pack(tmp_path, limit_bytes=1_000_000)


def test_scripts_stay_executable_and_the_server_accepts_what_was_packed(tmp_path: Path) -> None:
    fill(tmp_path, "run.sh", "plain.py")
    (tmp_path / "run.sh").chmod(0o755)
    content = pack(tmp_path).content
    modes = {one.filename: one.external_attr >> 16 & 0o777 for one in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    assert modes == {"run.sh": 0o755, "plain.py": 0o644}
    check(io.BytesIO(content))


def test_a_link_inside_is_its_file_and_a_link_outside_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "code", "real.py")
    (folder / "alias.py").symlink_to("real.py")
    assert names(pack(folder).content) == ["alias.py", "real.py"]
    (folder / "leak").symlink_to("/etc/passwd")
    with pytest.raises(SpecError, match="leak"):
        pack(folder)


def test_a_workdir_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a folder"):
        pack(tmp_path / "absent")


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\x1b]0;owned\x07", b"caf\xe9/in.txt"])
def test_a_file_whose_name_is_no_text_is_refused_by_its_name(tmp_path: Path, name: bytes) -> None:
    """An archive of a Windows machine has such names: it was a traceback."""
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(SpecError, match="a name that is no text") as refused:
        pack(tmp_path)
    str(refused.value).encode()  # it can be printed
    assert "\x1b" not in str(refused.value)
