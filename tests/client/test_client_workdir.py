from __future__ import annotations

import io
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsched.api.workdirs import check
from llmsched.client import sources
from llmsched.client.workdir import pack
from llmsched.errors import SpecError
from llmsched.spec.load import load_json


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


def test_the_file_that_is_applied_is_no_part_of_the_work_it_describes(tmp_path: Path) -> None:
    """Before, another priority in a spec that lies in its workdir made other work of what ran."""
    folder = fill(tmp_path, "main.py", "spec.yaml", "jobs/spec.yaml")
    before = pack(folder, folder / "spec.yaml")
    assert names(before.content) == ["jobs/spec.yaml", "main.py"]
    assert before.note().endswith("; leaves out spec.yaml")
    (folder / "spec.yaml").write_text("priority: 3")
    assert pack(folder, Path(os.path.relpath(folder / "spec.yaml"))).sha256 == before.sha256
    assert "spec.yaml" in names(pack(folder, folder / "jobs" / "spec.yaml").content)
    alone = fill(tmp_path / "alone", "a.yaml")
    check(io.BytesIO(pack(alone, alone / "a.yaml").content))  # nothing is left, and that may travel


def test_too_much_is_refused_with_what_is_large(tmp_path: Path) -> None:
    fill(tmp_path, "main.py")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(SpecError, match=r"2\.0 MB +1 file   model/\n") as refused:
        pack(tmp_path, limit_bytes=1_000_000)
    assert "The largest file is model/weights.bin, 2.0 MB." in str(refused.value)
    assert "Write what stays at home into .llmschedignore" in refused.value.hint
    (tmp_path / ".llmschedignore").write_text("model/\n")
    packed = pack(tmp_path, limit_bytes=1_000_000)
    assert names(packed.content) == [".llmschedignore", "main.py"]
    assert packed.note() == "ships 2 files of its workdir, 14 B; leaves out model/"


def test_too_many_files_are_refused_before_they_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsched.client.workdir.WORKDIR_FILES_AT_MOST", 3)
    fill(tmp_path, "main.py", "frames/1.png", "frames/2.png", "frames/3.png")
    with pytest.raises(SpecError, match=r"in 4 files; at most 105 MB and 3 files are shipped"):
        pack(tmp_path)


def test_what_a_run_needs_is_not_left_out_because_git_does_not_keep_it(tmp_path: Path) -> None:
    fill(
        tmp_path, "data/train.jsonl", "main.py", "logs/a.txt", "runs/1/log", "__pycache__/a.pyc", "b/__pycache__/c.pyc"
    )
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / ".rayignore").write_text("/runs\n*.txt\n")
    packed = pack(tmp_path)
    assert names(packed.content) == [".gitignore", ".rayignore", "data/train.jsonl", "main.py"]
    assert packed.note().startswith("ships 4 files of its workdir, ")
    assert packed.note().endswith("; leaves out __pycache__ (2), *.txt, /runs")
    assert packed.leaves_out("runs/1/log") == "/runs" and not packed.leaves_out("data/train.jsonl")


def test_what_a_spec_names_and_a_pattern_leaves_out_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "data/train.jsonl", "venv/model/config.json")
    (tmp_path / ".llmschedignore").write_text("data\n")
    leaves_out = pack(tmp_path).leaves_out

    def spec(model: str, data: str) -> Any:
        section = {"base_model": model, "datasets": [{"path": data}]}
        return load_json({"name": "t", "kind": "train", "workdir": ".", "train": section})

    sources.check_shipped(spec("hf://org/data", "file:///data"), leaves_out)
    with pytest.raises(SpecError) as refused:
        sources.check_shipped(spec("venv/model", "./data/*.jsonl"), leaves_out)
    said = str(refused.value)
    assert 'venv/model is left out of the workdir by "venv". Name it otherwise' in said
    assert 'data/*.jsonl is left out of the workdir by "data". Take that out of .llmschedignore' in said


LETTERS = "ab/*?[]!\\ #-."
PATHS = ["a/b/a", "a/b/b", "a/a", "a/ab", "b/b/a", "b/a/b", "ba/a", "ab", "aab", "a.b", "#", "!a", "a-b", "[", "a b"]


@settings(max_examples=60)
@given(st.lists(st.text(LETTERS, max_size=7), max_size=6))
@example(["/a", "!a/b", "b/**", "**/a", "a/**/b", "a/", "[!a]b", "[]a]", "\\#", "\\!a", "# a", "a\\ ", "*.b"])
@example(["**", "!a/"])
@example(["*", "!*/", "!a/b/"])
def test_patterns_mean_what_they_mean_to_git(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("git")
    git = ["git", "-C", str(folder), "-c", "core.excludesFile="]
    subprocess.run([*git, "init", "-q"], check=True)
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / ".gitignore").write_text("".join(f"{line}\n" for line in lines))
    listed = subprocess.run([*git, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"],
                            check=True, capture_output=True, text=True).stdout  # fmt: skip
    (folder / ".gitignore").rename(folder / ".llmschedignore")
    ours = {*names(pack(folder).content)} - {".llmschedignore"}
    assert ours == {*listed.split("\0")} - {"", ".gitignore"}


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
