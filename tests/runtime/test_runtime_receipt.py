"""How an attempt ended: only what says that it succeeded has."""

import json
import os

import pytest

from llmsched.runtime import Context, artifact, enter, progress, receipt
from llmsched.runtime.storage import NOTE_BYTES, LocalStorage

# What a workload can put where a note of ours belongs, beside words of its own.
IN_ITS_PLACE = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "a pipe, which never ends": os.mkfifo,
    "a folder": os.mkdir,
    "more than any memory holds": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


def test_a_receipt_reads_back_as_it_was_written():
    said = receipt.Receipt("succeeded", step=7, artifact="file:///a", metrics={"loss": 0.5}, attempt=2, epoch=3)
    assert receipt.parse(said.dump()) == said


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"outcome": "SUCCEEDED"}',
        b'{"outcome": ["succeeded"]}',
        b'{"outcome": "succeeded", "event": 7}',
        b"[" * 100_000,
    ],
)
def test_one_that_cannot_be_read_is_a_failure_and_says_so(written):
    found = receipt.parse(written)
    assert found.outcome == "failed" and "its receipt cannot be read" in found.message


def test_numbers_and_words_of_one_that_somebody_forged_are_made_valid():
    forged = {"outcome": "failed", "message": "\ud800\x1b", "step": 10**400, "metrics": {"\udce9": 1, "a": 10**400}}
    found = receipt.parse(json.dumps({**forged, "artifact": 7, "more": 1}).encode())
    assert (found.message, found.metrics, found.artifact) == ("\\ud800\\x1b", {"\\udce9": 1.0}, "7")


def test_metrics_of_any_name_and_size_are_kept(tmp_path):
    with enter(Context.alone(tmp_path)):
        artifact.metrics(**{"caf\udce9": 1.0, "total": 10**400})
        progress.report(note="caf\udce9")
    result = artifact.read_result(str(tmp_path), "by-hand/0", 1, 1)
    assert result["metrics"] == {"caf\\udce9": 1.0, "total": "1e400"}
    assert '"note": "caf\\\\udce9"' in (tmp_path / "by-hand/0/1/progress.jsonl").read_text()


@pytest.mark.parametrize("written", ["{", "[]", '{"epoch": 1, "metrics": 7}', '{"epoch": 1, "artifact": {}}'])
def test_a_result_that_somebody_else_wrote_is_told_apart_from_none(tmp_path, written):
    folder = tmp_path / "a/0/1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(written)
    with pytest.raises(artifact.ResultUnreadable, match="cannot be read"):
        artifact.read_result(str(tmp_path), "a/0", 1, 1)


@pytest.mark.parametrize("put", IN_ITS_PLACE.values(), ids=IN_ITS_PLACE)
def test_whatever_stands_in_the_place_of_a_receipt_or_a_result_is_read_at_once_as_a_failure(tmp_path, put):
    folder, order = tmp_path / "a/0/1", {"storage": str(tmp_path), "gang": "a/0", "attempt": 1, "epoch": 1}
    folder.mkdir(parents=True)
    put(folder / "receipt.json")
    put(folder / "result.json")
    storage = LocalStorage(tmp_path)
    found = receipt.read(storage, "a/0/1")
    assert found is not None and found.outcome == "failed" and "its receipt cannot be read" in found.message
    with pytest.raises(artifact.ResultUnreadable, match="cannot be read"):
        artifact.read_result(str(tmp_path), "a/0", 1, 1)
    said = receipt.write(storage, order, receipt.Receipt("succeeded"))
    assert said.outcome == "failed"


def test_what_is_not_there_is_no_receipt_and_the_longest_of_ours_is_read(tmp_path):
    storage = LocalStorage(tmp_path)
    assert receipt.read(storage, "a/0/1") is None
    numbers = {f"metric-{number:04}" + "x" * 180: 1e300 for number in range(1000)}
    said = receipt.Receipt("succeeded", message="x" * 4_000, metrics=numbers)
    storage.write("a/0/1/receipt.json", said.dump())
    assert len(said.dump()) < NOTE_BYTES and receipt.read(storage, "a/0/1") == said
