"""How an attempt ended: only what says that it succeeded has."""

import json

import pytest

from llmsched.runtime import Context, artifact, enter, progress, receipt


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
