"""A data set that grows: each row is taken once, when it is whole, whoever looks and however often."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmsched.data.growth import Growth
from llmsched.data.parts import File, Reader, cut
from llmsched.data.rows import Bad, DataError


def texts(folder: Path, files: list[File]) -> list[str]:
    reader = Reader(folder, files)
    return [
        row.why if isinstance(row, Bad) else str(row["text"]) for part in cut(files, 3) for _, row in reader.read(part)
    ]


def test_lines_are_taken_when_their_end_is_there_and_keep_their_numbers(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"text": "one"}\n\n{"text": "tw')
    growth = Growth(tmp_path, "data", [])
    (first,) = growth.look(1.0)
    assert (first.rows, first.lines, first.new_lines, first.since) == (1, 0, 2, 1.0)
    with log.open("a") as file:
        file.write('o"}\n{"text": "three"}\n')
    (second,) = growth.look(3.0)
    assert (second.rows, second.lines, second.since) == (2, 2, 1.0), "since the look before it, at the earliest"
    assert growth.look(5.0) == []
    found = [first, second]
    assert [number for part in cut(found, 9) for number, _ in Reader(tmp_path, found).read(part)] == [1, 3, 4]
    assert texts(tmp_path, found) == ["one", "two", "three"]


def test_a_last_line_without_an_end_is_taken_once_nobody_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    growth = Growth(tmp_path, "data", [])
    assert [file.rows for file in growth.look(1.0)] == [1]
    (last,) = growth.look(2.0)
    assert (last.rows, last.lines, last.new_lines) == (1, 1, 0)
    with (tmp_path / "a.txt").open("a") as file:
        file.write("\nthree\n")
    found = [last, *growth.look(3.0)]
    assert [number for part in cut(found, 9) for number, _ in Reader(tmp_path, found).read(part)] == [2, 3]


def test_half_a_row_waits_for_its_other_half_however_long_its_writer_keeps_it(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"text": "one"}\n{"text": "tw')
    growth = Growth(log, "log.jsonl", [])
    found = [file for at in range(1, 9) for file in growth.look(float(at))]
    with log.open("a") as file:
        file.write('o"}')
    found += [file for at in range(9, 12) for file in growth.look(float(at))]
    assert texts(tmp_path, found) == ["one", "two"], "whole, though its line has no end"


def test_another_file_is_taken_whole_once_it_rests_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    growth = Growth(tmp_path, "data", [])
    assert growth.look(0.0) == [], "an empty folder is no mistake"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    assert growth.look(5.0) == []
    whole, broken = growth.look(10.0)
    assert (whole.rows, whole.lines, whole.since) == (2, None, 0.0)
    assert broken.rows == 0 and "b.parquet cannot be read" in broken.why
    assert growth.look(15.0) == []
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"data: a.parquet has changed since .* only lines of .jsonl and .txt can be"):
        growth.look(20.0)


def test_a_file_that_has_been_cut_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"text": "one"}\n{"text": "two"}\n')
    growth = Growth(log, "log.jsonl", [])
    files = growth.look(1.0)
    log.write_text('{"text": "new"}\n')
    with pytest.raises(DataError, match=r"log.jsonl has changed .*it had 32 bytes, and has 16"):
        growth.look(2.0)
    with pytest.raises(DataError, match=r"has been cut: it had 32 bytes"):
        texts(tmp_path, files)


@pytest.mark.parametrize("others", ['{"text": "new"}\n{"text": "old"}\n', '{"text": "another one"}\n' * 3])
def test_another_file_under_the_name_of_one_is_refused_at_any_size(tmp_path: Path, others: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"text": "one"}\n{"text": "two"}\n')
    growth = Growth(log, "log.jsonl", [])
    files = growth.look(1.0)
    replaced = tmp_path / "replaced"
    replaced.write_text(others)
    os.utime(replaced, ns=(1, 1))
    replaced.rename(log)
    for looks in (growth, Growth(log, "log.jsonl", files)):  # who saw the first one, and who takes over
        with pytest.raises(DataError, match=r"log.jsonl is another file than when its rows were read"):
            looks.look(2.0)


def test_a_copy_with_more_lines_under_the_same_name_is_as_good_as_the_lines(tmp_path: Path) -> None:
    log, copy = tmp_path / "log.txt", tmp_path / "copy"
    log.write_text("one\n" * 3000)
    growth = Growth(log, "log.txt", [])
    assert [file.rows for file in growth.look(1.0)] == [3000]
    copy.write_text("one\n" * 3000 + "two\n")
    copy.rename(log)
    assert [file.rows for file in growth.look(2.0)] == [1]


def test_a_line_that_is_too_long_ends_it_and_many_lines_come_in_stretches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmsched.data.growth.STRETCH", 64)
    log = tmp_path / "log.txt"
    log.write_text("".join(f"row {n}\n" for n in range(40)))
    files = Growth(log, "log.txt", []).look(1.0)
    assert len(files) > 4 and texts(tmp_path, files) == [f"row {n}" for n in range(40)]
    log.write_text("x" * 200)
    with pytest.raises(DataError, match=r"log.txt: line 1 is longer than"):
        Growth(log, "log.txt", []).look(1.0)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_writes_and_however_often_somebody_else_takes_over_each_row_is_taken_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmsched.data.growth.STRETCH", 100)
    rng, files, written = random.Random(seed), [], []
    growth = Growth(tmp_path, "data", [])
    for now in range(40):
        name = rng.choice(["a.jsonl", "b.txt", f"{now}.csv"])
        rows = [f"{name} {now} {n}" for n in range(rng.randrange(6))]
        with (tmp_path / name).open("a") as file:
            if name.endswith(".csv"):
                file.write("text\n")
            for row in rows:
                file.write(f"{json.dumps({'text': row})}\n" if name == "a.jsonl" else f"{row}\n")
        written += rows
        if rng.random() < 0.2:
            growth = Growth(tmp_path, "data", files)
        files += growth.look(float(now))
    for _ in range(2):
        files += growth.look(50.0)
    assert sorted(texts(tmp_path, files)) == sorted(written)


def test_a_file_whose_kind_nobody_can_tell_is_told_of_once_however_it_grows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "app.log").write_text("started\n")
    growth = Growth(tmp_path / "*", "data", [])
    assert [file.name for file in growth.look(1.0)] == ["a.jsonl"]
    (strange,) = growth.look(2.0)
    assert strange.rows == 0 and strange.why.startswith("app.log: cannot read '.log'")
    (tmp_path / "app.log").write_text("started\nstopped\n")
    assert growth.look(3.0) == growth.look(4.0) == []


def test_what_came_beside_a_file_that_is_wrong_is_taken_and_told_of(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    growth = Growth(tmp_path, "data", [])
    growth.look(1.0)
    (tmp_path / "b.jsonl").write_text('{"text": "other"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "new"}\n')
    assert [file.name for file in growth.look(2.0)] == ["a.jsonl"]
    with pytest.raises(DataError, match="b.jsonl has changed"):
        growth.look(3.0)
