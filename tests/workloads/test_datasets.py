"""Reading data sets: every format gives the same rows, and every mistake is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workloads import datasets
from workloads.sources import BadInput

ROWS = [{"text": "good, very", "label": "pos"}, {"text": "bad", "label": "neg"}]


def write(folder: Path, suffix: str) -> Path:
    file = folder / f"data{suffix}"
    match suffix:
        case ".jsonl":
            file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
        case ".json":
            file.write_text(json.dumps(ROWS))
        case ".csv":
            file.write_text('\ufefftext,label\n"good, very",pos\nbad,neg\n', encoding="utf-8")
        case ".tsv":
            file.write_text("text\tlabel\ngood, very\tpos\nbad\tneg\n")
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    assert datasets.load(str(write(tmp_path, suffix)), ["text", "label"], ["text_pair"]) == ROWS


def test_a_text_file_gives_a_row_a_line_and_a_folder_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("three\n")
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "README.md").write_text("not data")
    assert [row["text"] for row in datasets.load(str(tmp_path), ["text"])] == ["one", "two", "three"]


def test_columns_say_which_field_plays_which_role(tmp_path: Path) -> None:
    file = tmp_path / "nli.jsonl"
    file.write_text('{"premise": "p", "hypothesis": "h", "gold": 2}')
    roles = {"text": "premise", "text_pair": "hypothesis", "label": "gold"}
    rows = datasets.load(str(file), ["text", "label"], ["text_pair"], roles)
    assert rows == [{"text": "p", "text_pair": "h", "label": 2}]


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"review": "x", "stars": 3}')
    with pytest.raises(BadInput, match=r"no column 'text' for the role 'text'; found: review, stars.*columns: \{text"):
        datasets.load(str(file), ["text", "label"])
    with pytest.raises(BadInput, match=r"no column 'reviews' for the role 'text'"):
        datasets.load(str(file), ["text"], columns={"text": "reviews"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "row 2 of a.jsonl is not JSON"),
        ("a.jsonl", '"x"\n{}\n', "row 1 of a.jsonl is not an object"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "row 2 of a.jsonl has no 'text'"),
        ("a.json", '"x"', "not a list of objects"),
        ("a.parquet", "not parquet", "a.parquet cannot be read"),
        ("a.txt", "", "no rows"),
        ("a.pkl", "x", "cannot read '.pkl'; expected .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        datasets.load(str(tmp_path / name), ["text"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder .*nowhere.jsonl"):
        datasets.load(str(tmp_path / "nowhere.jsonl"), ["text"])
