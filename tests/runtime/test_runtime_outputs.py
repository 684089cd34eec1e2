"""What a program writes below its working folder: the next attempt finds it, and it is the result in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsched.runtime import Context, artifact, enter, outputs
from llmsched.runtime.outputs import Outputs
from llmsched.runtime.storage import Storage


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


class Gang:
    """One gang's attempts, each in a folder of its own, with `train.py` as what is given."""

    def __init__(self, store: Storage, tmp_path: Path) -> None:
        self.store, self._tmp = store, tmp_path

    def begin(self, attempt: int, node: int = 0) -> tuple[Outputs, Path]:
        folder = self._tmp / f"work-{attempt}-{node}"
        write(folder, {"train.py": "code"})
        return Outputs({"gang": "t/0", "attempt": attempt, "epoch": 1, "storage": self.store.uri}, folder), folder

    def who(self, attempt: int) -> Context:
        return Context.alone(self._tmp, gang="t/0", attempt=attempt, storage=self.store.uri)

    def result(self, attempt: int) -> dict[str, str] | None:
        left = artifact.read_result(self.store.uri, "t/0", attempt, 1)["artifact"]
        if left is None:
            return None
        return read(self.store.fetch_folder(f"t/0/artifact/{attempt}-1", self._tmp / f"result-{attempt}"))


@pytest.fixture
def gang(store: Storage, tmp_path: Path) -> Gang:
    return Gang(store, tmp_path)


def test_what_an_attempt_wrote_is_there_for_the_next_one_and_the_result_in_the_end(gang: Gang) -> None:
    one, folder = gang.begin(1)
    write(folder, {"out/checkpoint-5/a": "5", "__pycache__/x.pyc": "no", ".llmsched-done-0": ""})
    one.keep(0)
    one.publish(1)
    two, folder = gang.begin(2)
    assert read(folder) == {"train.py": "code", "out/checkpoint-5/a": "5"}
    write(folder, {"out/checkpoint-9/a": "9", "train.py": "edited by itself"})
    two.keep(0)
    two.become_the_result(gang.who(2), 1)
    assert gang.result(2) == {"out/checkpoint-5/a": "5", "out/checkpoint-9/a": "9", "train.py": "edited by itself"}
    assert not [name for name in gang.store.list("t/0") if "outputs" in name]  # once is enough


def test_who_wrote_nothing_or_named_another_result_gets_none_of_it(gang: Gang) -> None:
    one, folder = gang.begin(1)
    one.keep(0)
    one.become_the_result(gang.who(1), 1)
    assert gang.result(1) is None
    two, folder = gang.begin(2)
    write(folder, {"scratch": "x"})
    with enter(gang.who(2)):
        artifact.save(lambda folder: write(folder, {"model": "mine"}))
    two.keep(0)
    two.become_the_result(gang.who(2), 1)
    assert gang.result(2) == {"model": "mine"}


def test_the_folders_of_several_nodes_become_one_and_worker_0_has_the_last_word(gang: Gang) -> None:
    nodes = [gang.begin(1, node) for node in range(3)]
    write(nodes[0][1], {"out/state": "of 0", "out/shard-0": "0"})
    write(nodes[2][1], {"out/state": "of 2", "out/shard-2": "2"})
    for part, (one, _) in enumerate(nodes):
        one.keep(part)
    nodes[0][0].publish(3)
    for node in range(2):
        assert read(gang.begin(2, node)[1]) == {
            "train.py": "code", "out/state": "of 0", "out/shard-0": "0", "out/shard-2": "2",
        }  # fmt: skip


def test_an_attempt_that_is_over_does_not_overwrite_what_a_newer_one_wrote(gang: Gang) -> None:
    old, folder = gang.begin(1)
    write(folder, {"a": "old"})
    new, newer = gang.begin(2)
    write(newer, {"a": "new"})
    for one in (new, old):
        one.keep(0)
        one.publish(1)
    assert read(gang.begin(3)[1])["a"] == "new"


def test_no_link_is_followed_and_too_much_is_said(gang: Gang, tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "elsewhere", {"theirs": "x"})
    one, folder = gang.begin(1)
    (folder / "file").symlink_to(tmp_path / "elsewhere/theirs")
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    assert one.keep(0) == "" and not gang.store.list("t/0/outputs")
    monkeypatch.setattr(outputs, "AT_MOST_BYTES", 10)
    write(folder, {"large": "x" * 11})
    assert "are not kept: more than" in one.keep(0) and not gang.store.list("t/0/outputs")


@pytest.mark.parametrize("text", ["", "[]", '{"key": "../../other", "parts": ["x"]}', '{"attempt": 3}'])
def test_a_pointer_that_somebody_overwrote_counts_as_none(gang: Gang, text: str) -> None:
    gang.store.write("t/0/outputs.json", text.encode())
    assert read(gang.begin(1)[1]) == {"train.py": "code"}
