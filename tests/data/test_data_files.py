"""Files as people have them: dialects, compressions, encodings, folders and patterns give the same rows."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmsched.data import files, reading
from llmsched.data.rows import BadRows, DataError, OnBadRow, Rows

ROWS = [{"text": "good; very, \tgood", "label": "pos"}, {"text": 'a "bad"\u2028film', "label": "neg"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(
    place: Path,
    on_bad_row: OnBadRow = "refuse",
    encoding: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Rows:
    bad = BadRows(place.name, on_bad_row)
    return reading.read(place, place.name, bad, encoding=encoding, split=split, limit=limit)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("A.JSONL", LINES),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n")),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.json", json.dumps({"version": 2, "data": ROWS}).encode()),
        ("a.json", json.dumps({name: [row[name] for row in ROWS] for name in ("text", "label")}).encode()),
        ("rows", LINES),
        ("train.data", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.zst", bytes(pyarrow.compress(LINES, codec="zstd", asbytes=True))),
        ("a.jsonl", LINES.decode().encode("utf-16")),
        ("a.csv", 'text,label\n"good; very, \tgood",pos\n"a ""bad""\u2028film",neg\n'.encode()),
        ("a.csv", 'text;label\r\n"good; very, \tgood";pos\r\n"a ""bad""\u2028film";neg'.encode("utf-8-sig")),
        (
            "a.csv.gz",
            gzip.compress('label,text\npos,"good; very, \tgood"\nneg,"a ""bad""\u2028film"\n'.encode(), mtime=0),
        ),
        ("a.tsv", 'text\tlabel\n"good; very, \tgood"\tpos\n"a ""bad""\u2028film"\tneg\n'.encode()),
    ],
)
def test_every_dialect_gives_the_same_rows(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read(tmp_path / name)) == ROWS


def test_parquet_and_arrow_give_them_too_with_lists_and_without_the_fillers_of_objects(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": None}, {"role": "tool", "content": "x", "name": "f"}]}]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    arrow = str(tmp_path / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(arrow, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")  # as `datasets` writes it beside
    for place in (tmp_path / "a.parquet", tmp_path / "*.arrow"):
        assert list(read(place)) == rows
    assert len(read(tmp_path)) == 2


def test_a_quotation_mark_in_a_tsv_is_a_letter_where_it_is_not_a_quotation(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"good film\tpos\n"so" he said\tneg\n')
    assert [row["text"] for row in read(tmp_path / "a.tsv")] == ['"good film', '"so" he said']


def test_a_number_of_a_table_stays_the_text_it_is_and_a_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code,text\n007,1.50\n1e3," + "x" * 300_000 + "\n")
    rows = read(tmp_path / "a.csv")
    assert [row["code"] for row in rows] == ["007", "1e3"] and len(rows[1]["text"]) == 300_000


def test_a_text_file_is_cut_at_newlines_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("  one\u2028still one\r\ntwo\fstill\x85two\n\nthree".encode())
    assert [row["text"] for row in read(tmp_path / "a.txt")] == ["  one\u2028still one", "two\fstill\x85two", "three"]


def test_another_encoding_is_seen_and_said_or_named_or_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\n“café” – déjà vu,pos\n".encode("cp1252"))
    rows = read(file)
    assert rows[0]["text"] == "“café” – déjà vu" and "read as cp1252" in rows.notes[0]
    file.write_bytes("text,label\nхороший фильм,pos\n".encode("cp1251"))
    with pytest.raises(DataError, match="a.csv is not UTF-8; say what it is with encoding:"):
        read(file)
    assert read(file, encoding="cp1251")[0]["text"] == "хороший фильм"


@pytest.mark.parametrize("broken", [b'{"text": "caf\xc3', b'{"text": "\x9d\x81"}', b"\xff\xfe"])
def test_a_broken_line_among_those_of_utf_8_breaks_no_other(broken: bytes, tmp_path: Path) -> None:
    file, line = tmp_path / "a.jsonl", json.dumps({"text": "café"}, ensure_ascii=False).encode()
    for good in (line, b'{"text": "cafe"}'):
        file.write_bytes(b"\n".join([*[good] * 30, broken, good]))
        rows = read(file, "skip")
        assert {row["text"] for row in rows} <= {"café", "cafe", "\xff\xfe"} and len(rows) == 31
        assert "row 31 of a.jsonl" in " ".join(rows.notes)


def test_a_folder_gives_its_files_in_order_and_of_splits_the_one_asked_for(tmp_path: Path) -> None:
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test.jsonl", "_cache.jsonl", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "README.md").write_text("not data")
    assert [row["text"] for row in read(tmp_path, split="train")] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert [row["text"] for row in read(tmp_path, split="eval")] == ["test.jsonl"]
    assert [row["text"] for row in read(tmp_path / "t*-0000?.jsonl")] == ["train-00000.jsonl", "train-00001.jsonl"]
    with pytest.raises(DataError, match="files of the splits test, train, and none of 'validation'"):
        read(tmp_path, split="validation")
    with pytest.raises(DataError, match="no file matches"):
        read(tmp_path / "*.csv")


def test_one_broken_row_among_many_is_named_with_its_file_or_left_out_and_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"text": str(number)}) for number in range(1, 20_001)]
    lines[12_344] = '{"text": "cut'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"row 12,345 of a.jsonl is not JSON .*on_bad_row: skip leaves such rows out"):
        read(tmp_path / "a.jsonl")
    rows = read(tmp_path / "a.jsonl", "skip")
    assert len(rows) == 19_999 and str(rows.places[12_344]) == "row 12,346 of a.jsonl"
    assert rows.notes == [
        f"a.jsonl: 1 of 20,000 rows left out: {rows.notes[0].partition('out: ')[2]}",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\ngood,pos\nbad,neg,more\n", "row 2 of a.csv has 3 fields, its header 2"),
        ("a.csv", b'text,label\n"good,pos\nbad,neg\nfine,pos\n', "quotation mark in row 1 is never closed"),
        ("a.csv", b"text,text\na,b\n", "two columns are named 'text'"),
        ("a.jsonl", b'{"text": "\xd7\xe7"}\n' * 9, "a.jsonl is not UTF-8; say what it is with encoding"),
        ("a.jsonl", b'{"text": "x"}\n' * 80_000 + b'{"text": "\xff"}', "row 80,001 of a.jsonl is not utf-8"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "row 2 of a.jsonl is not an object with named fields"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz cannot be read"),
        ("a.parquet", b"PAR1 nothing", "a.parquet cannot be read"),
        ("a.zip", b"PK\x03\x04", "cannot read '.zip'; expected .jsonl"),
        ("a.json", b'{"text": [', "a.json is not JSON"),
        ("a.json", b'{"train": [{"text": "x"}], "Test": [{"text": "y"}]}', "several sets of rows, 'train', 'Test'"),
        ("a.jsonl", b"\n\n", "no rows"),
    ],
)
def test_what_cannot_be_read_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_only_the_first_rows_are_read_where_no_more_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 10 + "broken")
    assert len(read(tmp_path / "a.jsonl", limit=10)) == 10


def test_a_file_of_a_pattern_whose_kind_nobody_can_tell_is_put_aside_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "plan.docx").write_bytes(b"PK and so on")
    with pytest.raises(DataError, match="cannot read '.docx'"):
        files.find(tmp_path / "*")
    aside: dict[Path, str] = {}
    assert [file.name for file in files.find(tmp_path / "*", aside=aside)] == ["a.jsonl"]
    assert list(aside) == [tmp_path / "plan.docx"] and "cannot read '.docx'" in aside[tmp_path / "plan.docx"]
    with pytest.raises(FileNotFoundError):
        files.find(tmp_path / "a folder that is away", aside=aside)
