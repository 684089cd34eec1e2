"""Data sets on S3 (moto's server on loopback): files, folders, splits and patterns, as on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsched.data.rows import BadRows, DataError
from llmsched.runtime import storage
from workloads import datasets
from workloads.sources import BadInput

OBJECTS = {
    "d/": "",  # as a console makes a folder
    "d/train.jsonl": "a",
    "d/test.jsonl": "b",
    "deep/x/train/0.jsonl": "d",
    "deep/x/test/0.jsonl": "e",
    "plain/a.jsonl": "f",
    "logs/2025-1.jsonl": "g",
    "logs/2026-1.jsonl": "h",
    "logs/2026-2.jsonl": "i",
    "a #1/x.jsonl": "j",
    "one.jsonl": "k",
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache into which is fetched from s3://data."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("LLMSCHED_CACHE", str(cache))
        storage._s3_client.cache_clear()
        client = storage._s3_client()
        client.create_bucket(Bucket="data")
        for key, text in OBJECTS.items():
            client.put_object(Bucket="data", Key=key, Body=f'{{"text": "{text}"}}\n'.encode() if text else b"")
        yield cache
    storage._s3_client.cache_clear()
    server.stop()


def texts(path: str, split: str | None = None) -> str:
    rows = datasets.raw({"path": path, "split": split}, None, BadRows(path))
    return "".join(row["text"] for row in rows)


@pytest.mark.parametrize(
    ("path", "split", "found"),
    [
        ("s3://data/d", "train", "a"),
        ("s3://data/d/", "test", "b"),
        ("s3://data/deep", "test", "e"),
        ("s3://data/plain", "test", "f"),
        ("s3://data/one.jsonl", "test", "k"),
        ("s3://data/a #1", None, "j"),
        ("s3://data", "test", "be"),
        ("s3://data/*.jsonl", None, "k"),
        ("s3://data/d*/t*.jsonl", None, "ba"),
        ("s3://data/deep/**/0.jsonl", None, "ed"),
    ],
)
def test_a_path_means_what_it_would_on_a_disk(bucket: Path, path: str, split: str | None, found: str) -> None:
    assert texts(path, split) == found


def test_of_a_pattern_only_what_begins_like_it_is_fetched(bucket: Path) -> None:
    before = {*bucket.iterdir()}
    assert texts("s3://data/logs/2026-*.jsonl") == "hi"
    (made,) = {*bucket.iterdir()} - before
    assert {one.name for one in made.iterdir()} == {"2026-1.jsonl", "2026-2.jsonl"}


@pytest.mark.parametrize(
    ("path", "split", "words"),
    [
        ("s3://data/d", "validation", "has files of the splits test, train, and none of 'validation'"),
        ("s3://data/none", None, "s3://data/none: nothing there"),
        ("s3://data/d/none*", None, "s3://data/d: nothing there whose name begins with 'none'"),
        ("s3://nobody/x", None, "The specified bucket does not exist"),
        ("s3://data/d/../x", None, "s3://data/d/../x: nothing there"),
    ],
)
def test_what_is_not_there_is_said_in_our_words(bucket: Path, path: str, split: str | None, words: str) -> None:
    with pytest.raises((BadInput, DataError)) as error:
        texts(path, split)
    assert words in str(error.value)


def test_rows_that_would_be_learnt_and_evaluated_are_refused_where_plan_could_not_see_them(bucket: Path) -> None:
    def sets(*paths: str) -> list[dict[str, Any]]:
        return [{"path": path, "split": split} for path, split in zip(paths, ("train", "test"), strict=True)]

    datasets.check_apart(sets("s3://data/d", "s3://data/d/"), "test", None)
    datasets.check_apart(sets("s3://data/plain", "s3://data/one.jsonl"), "test", None)
    for path in ("s3://data/plain", "s3://data/one.jsonl", "s3://data/deep/x/test"):
        with pytest.raises(BadInput, match=f'"test" and "train" are the same rows: {path} has no splits'):
            datasets.check_apart(sets(path, path), "test", None)
