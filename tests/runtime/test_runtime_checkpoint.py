"""The checkpoint protocol: whole or not there, moved only by the current attempt, passed over when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsched.runtime import Context, artifact, checkpoint, enter
from llmsched.runtime.checkpoint import Stale
from llmsched.runtime.storage import Storage


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(text)

    return write


def at(folder: Path, attempt: int = 1, epoch: int = 1, **spec: Any) -> Context:
    return Context.alone(folder, {"checkpoint": spec} if spec else {}, attempt=attempt, epoch=epoch)


def content(found: checkpoint.Checkpoint) -> str:
    return (checkpoint.fetch(found) / "state.json").read_text()


def test_the_next_attempt_finds_the_newest_checkpoint(tmp_path: Path) -> None:
    with enter(at(tmp_path)):
        assert checkpoint.latest() is None
        checkpoint.save(10, writer("ten"), fraction=0.25)
        checkpoint.save(20, writer("twenty"), fraction=0.5)
    with enter(at(tmp_path, attempt=2)):
        found = checkpoint.latest()
        assert found is not None
        assert (found.step, found.fraction, found.attempt) == (20, 0.5, 1)
        assert content(found) == "twenty"


def test_it_holds_on_every_storage_also_when_the_newest_was_changed(store: Storage, tmp_path: Path) -> None:
    with enter(at(tmp_path, attempt=1, uri=store.uri)):
        checkpoint.save(1, writer("good"))
        newest = checkpoint.save(2, writer("bad!"))
    store.write(f"{newest.removeprefix(store.uri).strip('/')}/state.json", b"baD!")
    for rank in (0, 1):
        local = tmp_path / f"local-{rank}"
        spec = {"checkpoint": {"uri": store.uri}}
        with enter(Context.alone(tmp_path, spec, attempt=2, rank=rank, world_size=2, local_dir=local)):
            found = checkpoint.latest()
            assert found is not None and found.step == 1 and content(found) == "good"
    with enter(at(tmp_path, attempt=1, uri=store.uri)), pytest.raises(Stale):
        checkpoint.save(3, writer("late"))


def test_only_published_ones_beyond_keep_are_deleted(tmp_path: Path) -> None:
    with enter(at(tmp_path, keep=2)):
        for step in (1, 2, 3, 4):
            checkpoint.save(step, writer(str(step)))
    folder = tmp_path / "by-hand/0/checkpoints/1-1"
    assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-4"]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "manifest", "manifest-gone"])
def test_a_damaged_checkpoint_is_passed_over_and_said(harm: str, tmp_path: Path, capsys: Any) -> None:
    with enter(at(tmp_path)):
        checkpoint.save(1, writer("good"))
        checkpoint.save(2, writer("bad!"))
    folder = tmp_path / "by-hand/0/checkpoints/1-1/step-2"
    match harm:
        case "flip":
            (folder / "state.json").write_text("baD!")
        case "cut":
            (folder / "state.json").write_text("ba")
        case "gone":
            (folder / "state.json").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "manifest-gone":
            (folder / "manifest.json").unlink()
    with enter(at(tmp_path, attempt=2)):
        found = checkpoint.latest()
        assert found is not None and found.step == 1 and content(found) == "good"
    assert "checkpoint of step 2 cannot be used" in capsys.readouterr().err
    assert "cannot be used" in (tmp_path / "by-hand/0/2/progress.jsonl").read_text()


def test_a_stale_attempt_cannot_publish_once_the_next_one_has_looked(tmp_path: Path) -> None:
    old, new = at(tmp_path), at(tmp_path, attempt=2, epoch=2)
    with enter(old):
        checkpoint.save(1, writer("one"))
    with enter(new):
        assert checkpoint.latest() is not None
    with enter(old), pytest.raises(Stale, match="attempt 2 .* has taken over"):
        checkpoint.save(2, writer("late"))
    with enter(at(tmp_path, attempt=3)):
        found = checkpoint.latest()
        assert found is not None and content(found) == "one"


def test_what_a_lost_attempt_never_published_is_swept(tmp_path: Path) -> None:
    with enter(at(tmp_path)):
        checkpoint.save(1, writer("one"))
        orphan = tmp_path / "by-hand/0/checkpoints/1-1/step-2"
        orphan.mkdir()
        (orphan / "half.safetensors").write_bytes(b"half")
    with enter(at(tmp_path, attempt=2)):
        found = checkpoint.latest()
        assert found is not None and found.step == 1
    assert not orphan.exists()


def test_a_crash_before_the_pointer_moved_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with enter(at(tmp_path)):
        checkpoint.save(1, writer("one"))
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(2, fails)
        found = checkpoint.latest()
        assert found is not None and found.step == 1


def test_saving_the_same_step_twice_changes_nothing(tmp_path: Path) -> None:
    with enter(at(tmp_path)):
        first = checkpoint.save(1, writer("one"))
        assert checkpoint.save(1, writer("other")) == first
        pointer = json.loads((tmp_path / "by-hand/0/latest.json").read_text())
        assert [entry["step"] for entry in pointer["published"]] == [1]
        found = checkpoint.latest()
        assert found is not None and content(found) == "one"


def test_resume_never_starts_anew_and_a_checkpoint_uri_of_ones_own_is_used(tmp_path: Path) -> None:
    with enter(at(tmp_path / "main", uri=str(tmp_path / "own"))):
        assert checkpoint.save(1, writer("one")).startswith(str(tmp_path / "own"))
        assert checkpoint.latest() is not None
    with enter(at(tmp_path / "main", uri=str(tmp_path / "own"), resume="never")):
        assert checkpoint.latest() is None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with enter(Context.alone(tmp_path, rank=1, world_size=2)):
        checkpoint.save(1, writer("one"))
        artifact.save(writer("result"))
        artifact.metrics(loss=1.0)
    assert not any(tmp_path.iterdir())


def test_the_result_is_known_once_it_is_whole(tmp_path: Path) -> None:
    with enter(at(tmp_path)) as _:
        artifact.metrics(**{"eval.loss": 0.5})
        uri = artifact.save(writer("result"))
        artifact.metrics(**{"eval.accuracy": 0.9})
    left = artifact.read_result(str(tmp_path), "by-hand/0", 1, 1)
    assert left["artifact"] == uri and left["metrics"] == {"eval.loss": 0.5, "eval.accuracy": 0.9}
    assert (Path(uri) / "state.json").read_text() == "result"
    assert artifact.read_result(str(tmp_path), "by-hand/0", 1, 2) == {"artifact": None, "metrics": {}}
    assert artifact.read_result(str(tmp_path), "by-hand/0", 2, 1) == {"artifact": None, "metrics": {}}


def test_a_gang_that_was_given_anothers_checkpoint_goes_on_from_a_copy_of_its_own(tmp_path: Path) -> None:
    def of(gang: str, attempt: int = 1) -> Context:
        return Context.alone(tmp_path, gang=gang, attempt=attempt)

    with enter(of("search/0")):
        assert checkpoint.inherit("heir/0", "donor/0") is None, "it has none yet"
    with enter(of("donor/0")):
        checkpoint.save(7, writer("seven"))
    with enter(of("search/0")):
        assert checkpoint.inherit("heir/0", "donor/0") == 7 == checkpoint.inherit("other/0", "donor/0")
        checkpoint.disinherit("other/0")
    with enter(of("donor/0")):
        for step in (8, 9, 10, 11):
            checkpoint.save(step, writer("later"))
    with enter(of("heir/0")):
        found = checkpoint.latest()
        assert found is not None and (found.step, content(found)) == (7, "seven")
        checkpoint.save(8, writer("eight"))
    with enter(of("heir/0", attempt=2)):
        found = checkpoint.latest()
        assert found is not None and content(found) == "eight"
    with enter(of("other/0")):
        assert checkpoint.latest() is None
