"""A data set in parts: each row is in one of them, whatever kind of file it is in and in whatever order they come."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmsched.data.parts import Reader, count, cut
from llmsched.data.rows import Bad, DataError

ROWS = [{"text": f"row {n}"} for n in range(11)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text(LINES[:36] + "\n{ not JSON\n" + LINES[36:])
    (tmp_path / "b.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in ROWS))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet", row_group_size=4)
    (tmp_path / "e.txt").write_text("\n".join(row["text"] for row in ROWS))
    return tmp_path


def test_every_row_is_in_one_part_and_a_part_says_the_same_in_any_order(folder: Path) -> None:
    files = count(folder, "data")
    assert [file.name for file in files] == ["a.jsonl", "b.csv", "c.jsonl.gz", "d.parquet", "e.txt"]
    assert [file.rows for file in files] == [12, 11, 11, 11, 11], "a row that cannot be read is one"
    parts = cut(files, 4)
    assert [part.number for part in parts] == list(range(15))
    reader = Reader(folder, files)
    read = {part: list(reader.read(part)) for part in parts}
    for file in range(len(files)):
        texts = [
            row["text"] for part in parts if part.file == file for _, row in read[part] if not isinstance(row, Bad)
        ]
        assert texts == [row["text"] for row in ROWS]
    assert [number for number, row in read[parts[0]] if isinstance(row, Bad)] == [4], "its line in the file"
    shuffled = parts.copy()
    random.Random(7).shuffle(shuffled)
    assert {part: list(reader.read(part)) for part in shuffled} == read
    assert list(Reader(folder, files).read(parts[-1])) == read[parts[-1]]


def test_a_pattern_and_a_single_file_are_data_sets_too(folder: Path) -> None:
    for place, names in (("*.csv", ["b.csv"]), ("e.txt", ["e.txt"]), ("[ab].*", ["a.jsonl", "b.csv"])):
        files = count(folder / place, place)
        assert [file.name for file in files] == names
        assert sum(len(list(Reader(folder / place, files).read(part))) for part in cut(files, 5)) == sum(
            file.rows for file in files
        )


def test_a_file_that_has_lost_rows_and_a_data_set_without_any_are_refused(folder: Path) -> None:
    files = count(folder / "e.txt", "e.txt")
    (folder / "e.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"e.txt has 2 rows, and had more before"):
        list(Reader(folder / "e.txt", files).read(cut(files, 100)[0]))
    (folder / "e.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"data set e.txt: no rows"):
        count(folder / "e.txt", "e.txt")
