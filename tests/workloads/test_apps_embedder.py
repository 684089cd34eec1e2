"""A task that makes the vectors of a folder's texts: what a retriever takes as they are, whole files at a time."""

import asyncio
import json
from functools import partial

import pytest
from vectors import asked_for, vector

from llmsched.data.rows import DataError
from llmsched.errors import ClusterError
from workloads.apps import embedder, retriever
from workloads.apps.passages import LONGEST
from workloads.apps.retriever import Retriever

WORDS = ["king", "queen", "car", "road"]


@pytest.fixture
def asked(monkeypatch):
    return asked_for(monkeypatch, embedder, WORDS)


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_retriever_takes_the_vectors_and_asks_for_none_but_that_of_the_question(tmp_path, asked, monkeypatch):
    write(tmp_path / "answers" / "royal.jsonl", {"text": "the king", "answer": "Charles"}, {"text": "a queen"})
    write(tmp_path / "answers" / "cars.jsonl", {"text": "a car on the road", "answer": "slow"})
    told = []
    embedder.embed(tmp_path / "answers", tmp_path / "vectors", "minilm", report=lambda **now: told.append(now))
    assert told[-1] == {"files": 2, "passages": 3, "left_out": 0}
    again = asked_for(monkeypatch, retriever, WORDS)
    app = Retriever(str(tmp_path / "vectors"), "minilm", follow=3600.0)
    (first,) = asyncio.run(app({"query": "king", "k": 1}))["passages"]
    assert (first["text"], first["answer"]) == ("the king", "Charles") and again == [1]


def test_a_file_that_changed_takes_the_place_of_the_one_before_and_a_model_that_is_away_leaves_that(
    tmp_path, asked, monkeypatch
):
    night = partial(embedder.embed, tmp_path / "answers", tmp_path / "vectors", "minilm", report=lambda **_: None)
    write(tmp_path / "answers" / "royal.jsonl", {"text": "the king"})
    night()
    before = (tmp_path / "vectors" / "royal.jsonl").read_text()
    write(tmp_path / "answers" / "royal.jsonl", {"text": "the king"}, {"text": "a queen"})
    with monkeypatch.context() as away:
        away.setattr(embedder.calls, "embeddings", lambda *_: (_ for _ in ()).throw(ClusterError("minilm is away")))
        with pytest.raises(ClusterError):
            night()
    assert (tmp_path / "vectors" / "royal.jsonl").read_text() == before
    night()
    assert [json.loads(line)["text"] for line in (tmp_path / "vectors" / "royal.jsonl").open()] == [
        "the king",
        "a queen",
    ]


def test_what_cannot_be_read_is_set_aside_and_named_and_a_long_text_is_several_passages(tmp_path, asked, capsys):
    told = []
    write(tmp_path / "answers" / "mixed.jsonl", {"text": "king " * LONGEST}, "{broken", {"text": "a car"})
    embedder.embed(tmp_path / "answers", tmp_path / "vectors", "minilm", report=lambda **now: told.append(now))
    rows = [json.loads(line) for line in (tmp_path / "vectors" / "mixed.jsonl").open()]
    assert len(rows) == told[-1]["passages"] > 2
    assert all(len(row["text"]) <= LONGEST and len(row["vector"]) == len(vector(WORDS, "x")) for row in rows)
    assert "1 of 3 rows left out: row 2 of" in capsys.readouterr().out


def test_files_without_the_column_or_of_one_name_are_told(tmp_path, asked):
    write(tmp_path / "answers" / "a.jsonl", {"title": "king"})
    with pytest.raises(DataError, match="there is no column 'text'; it has title"):
        embedder.embed(tmp_path / "answers", tmp_path / "vectors", "minilm")
    (tmp_path / "answers" / "a.csv").write_text("text\nking\n")
    with pytest.raises(DataError, match="2 files would come to 1 names, such as a.jsonl"):
        embedder.embed(tmp_path / "answers", tmp_path / "vectors", "minilm")


def test_a_file_that_cannot_be_read_keeps_no_other_one_from_its_vectors_and_is_told_at_the_end(tmp_path, asked):
    write(tmp_path / "answers" / "a.jsonl", {"title": "king"})
    write(tmp_path / "answers" / "b.jsonl", {"text": "king"})
    (tmp_path / "answers" / "c.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"c.docx: cannot read '.docx'.*a.jsonl: there is no column 'text'"):
        embedder.embed(tmp_path / "answers" / "*", tmp_path / "vectors", "minilm", report=lambda **_: None)
    assert [file.name for file in (tmp_path / "vectors").iterdir()] == ["b.jsonl"]
