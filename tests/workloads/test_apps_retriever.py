"""Passages by meaning: exact, by the files as they are now, and by vectors that a batch has made."""

import asyncio
import gc
import json
import threading
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from starlette.exceptions import HTTPException
from vectors import asked_for, vector
from waiting import PATIENCE_S, wait_until

from llmsched.data import tables
from llmsched.data.rows import DataError
from llmsched.errors import ClusterError, RequestError
from workloads.apps import documents, retriever
from workloads.apps import index as indices
from workloads.apps.index import Index
from workloads.apps.passages import LONGEST, OF_ONE_AT_MOST, passages
from workloads.apps.retriever import Retriever
from workloads.inference.values import encoded

WORDS = ["king", "queen", "car", "road", "rain"]
TEXTS = ["the king and the queen", "a car on the road", "rain on the road", "king king king"]


def vector_of(text):
    return vector(WORDS, text)


@pytest.fixture
def asked(monkeypatch):
    return asked_for(monkeypatch, retriever, WORDS)


def write(path, texts, **more):
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))


def ask(app, query, k=2, **more):
    return asyncio.run(app({"query": query, "k": k, **more}))


def made(place, **more):
    return Retriever(str(place), "minilm", follow=3600.0, **more)


def test_the_likest_come_first_with_where_they_stand(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS, year=1900)
    answer = ask(made(tmp_path), "queen")
    assert answer["of"] == 4
    first, second = answer["passages"]
    assert first["text"] == TEXTS[0] and first["year"] == 1900 and first["source"] == "row 1 of a.jsonl"
    assert first["score"] > second["score"]
    vectors, asked_for = np.array([vector_of(text) for text in TEXTS]), np.array(vector_of("queen"))
    cosine = vectors @ asked_for / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked_for)
    assert [first["score"], second["score"]] == pytest.approx(sorted(cosine)[-2:][::-1], abs=1e-5)


def test_a_file_that_comes_or_changes_is_found_and_no_other_is_read_again(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    app = made(tmp_path)
    write(tmp_path / "b.jsonl", ["the queen of rain"])
    app._take_in()
    assert ask(app, "queen rain", 1)["passages"][0]["text"] == "the queen of rain" and asked[:2] == [4, 1]
    write(tmp_path / "b.jsonl", ["a car, a car", "nothing"])
    app._take_in()
    assert ask(app, "queen", 100)["of"] == 6 and ask(app, "car", 1)["passages"][0]["text"] == "a car, a car"


def test_vectors_of_a_batch_are_taken_as_they_are(tmp_path, asked):
    rows = [{"text": text, "vector": vector_of(text)} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = made(tmp_path)
    assert asked == []
    (found,) = ask(app, "rain", 1)["passages"]
    assert found["text"] == "rain on the road" and "vector" not in found


def test_many_texts_are_asked_for_in_portions(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS * 40)
    made(tmp_path)
    assert asked == [64, 64, 32]


@pytest.mark.parametrize("body", [{}, {"query": ""}, {"query": 3}, {"query": "a", "k": 0}, {"query": "a", "top": 3}])
def test_a_question_that_is_none_is_refused_with_what_one_is(tmp_path, asked, body):
    write(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(made(tmp_path)(body))
    assert refused.value.status_code == 422


def test_documents_without_the_column_and_vectors_of_two_lengths_are_told(tmp_path, asked):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match=r"no column 'text'; it has body"):
        made(tmp_path)
    index = Index()
    index.replace("a", [{"text": "x"}], np.ones((1, 3), np.float32))
    with pytest.raises(RequestError, match="b: vectors of 4 numbers, those of a 3"):
        index.replace("b", [{"text": "y"}], np.ones((1, 4), np.float32))


def test_an_embedder_that_is_away_is_asked_again_and_what_is_known_serves(tmp_path, asked, monkeypatch, capsys):
    write(tmp_path / "a.jsonl", TEXTS)
    app, embeddings = made(tmp_path), retriever.calls.embeddings

    def away(*_):
        raise ClusterError("minilm could not be asked")

    write(tmp_path / "b.jsonl", ["queen"])
    monkeypatch.setattr(retriever.calls, "embeddings", away)
    app.look()
    assert "minilm could not be asked" in capsys.readouterr().out and len(app._index) == 4
    monkeypatch.setattr(retriever.calls, "embeddings", embeddings)
    app.look()
    answer = ask(app, "queen", 1)
    assert (answer["of"], answer["set_aside"]) == (5, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"body": "x"}\n', "no column 'text'; it has body"),
        ('{"text": "x"}\n{"body": "x"}\n', "row 2 of b.jsonl: there is no column 'text'"),
        ('{"text": "x", "vector": [1, 2]}\n', "vectors of 2 numbers"),
        ('{"text": "x", "vector": [1, 2]}\n{"text": "y", "vector": [1]}\n', "not lists of numbers of one length"),
        ('{"text": ', "b.jsonl"),
        ("", "no rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside_and_named_and_the_others_serve(tmp_path, asked, text, why):
    write(tmp_path / "a.jsonl", TEXTS)
    write(tmp_path / "b.jsonl", ["queen"])
    app = made(tmp_path)
    (tmp_path / "b.jsonl").write_text(text)
    app.look()
    told = ask(app, "queen", 1)
    assert told["of"] == 5, "what was known of it is still found"
    assert len(told["set_aside"]) == 1 and why in told["set_aside"][0]
    many = len(asked)
    app.look()
    assert len(asked) == many, "it is not read again until it changes"
    anew = ask(made(tmp_path), "queen", 1)
    assert anew["of"] == 4 and why in anew["set_aside"][0]
    write(tmp_path / "b.jsonl", ["queen", "king", "rain"])
    app.look()
    mended = ask(app, "queen", 1)
    assert (mended["of"], mended["set_aside"]) == (7, [])


def test_what_has_gone_is_found_no_more(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    write(tmp_path / "b.jsonl", ["queen"])
    app = made(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    app.look()
    told = ask(app, "queen", 9)
    assert told["of"] == 4 and "queen" not in [one["text"] for one in told["passages"]]
    (tmp_path / "a.jsonl").unlink()
    app.look()
    assert ask(app, "queen", 9)["passages"] == []
    write(tmp_path / "c.jsonl", ["queen"])
    app.look()
    assert ask(app, "queen", 9)["of"] == 1


def knows(app, many):
    return len(app._index) == many


def test_whoever_follows_the_files_ends_with_the_app(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    before = {*threading.enumerate()}
    app = Retriever(str(tmp_path), "minilm", follow=0.01)
    (follower,) = {*threading.enumerate()} - before
    write(tmp_path / "b.jsonl", ["queen"])
    wait_until(partial(knows, app, 5))
    del app
    gc.collect()
    follower.join(PATIENCE_S)
    assert not follower.is_alive()


def test_beyond_what_numpy_does_well_faiss_finds_the_same(tmp_path, asked, monkeypatch):
    pytest.importorskip("faiss")
    write(tmp_path / "a.jsonl", TEXTS)
    plain = ask(made(tmp_path), "queen", 4)
    monkeypatch.setattr(indices, "NUMPY_AT_MOST", 1)
    assert [one["text"] for one in ask(made(tmp_path), "queen", 4)["passages"]] == [
        one["text"] for one in plain["passages"]
    ]


def test_a_long_text_is_passages_cut_where_sentences_and_words_end_and_nothing_of_it_is_lost():
    text = "The king sleeps. " * 300 + "\n\n" + "rain " * 900
    found = [*passages(text)]
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(one) <= LONGEST for one in found) and all(one.endswith((".", "rain")) for one in found)
    assert [*passages("short")] == ["short"] and [*passages("")] == [""]
    assert [*passages("x" * (LONGEST + 1))] == ["x" * LONGEST, "x"]


def test_of_a_document_of_10_megabytes_a_bounded_part_is_read_and_the_rest_is_told(tmp_path, asked, capsys):
    write(tmp_path / "a.jsonl", ["the queen " * 1_000_000], year=1900)
    app = made(tmp_path)
    answer = ask(app, "queen", 1)
    assert answer["of"] == OF_ONE_AT_MOST and max(asked) == 64
    assert answer["left_out"] == 10_000_000 - OF_ONE_AT_MOST * LONGEST
    assert len(answer["passages"][0]["text"]) <= LONGEST and answer["passages"][0]["year"] == 1900
    assert "its last 9000000 characters or more are left out" in capsys.readouterr().out


def test_a_file_of_a_kind_that_nobody_reads_is_set_aside_and_new_ones_still_come_in(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    app = made(tmp_path / "*")
    (tmp_path / "plan.docx").write_bytes(b"PK and so on")
    write(tmp_path / "b.jsonl", ["queen"])
    app.look()
    told = ask(app, "queen", 1)
    assert told["of"] == 5 and len(told["set_aside"]) == 1
    assert told["set_aside"][0].startswith("plan.docx: cannot read '.docx'; expected .jsonl")
    (tmp_path / "plan.docx").unlink()
    app.look()
    assert ask(app, "queen", 1)["set_aside"] == []
    with pytest.raises(ValueError, match=r"^only.docx: cannot read '.docx'"):
        (tmp_path / "only.docx").write_bytes(b"PK")
        made(tmp_path / "only.docx")


def test_a_file_that_is_set_aside_is_called_by_its_name_from_the_folder_on(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "short.jsonl").write_text('{"text": "x", "vector": [1, 2]}\n')
    (tmp_path / "more" / "none.parquet").write_bytes(b"nothing")
    (tmp_path / "more" / "body.jsonl").write_text('{"body": "x"}\n')
    write(tmp_path / "more" / "good.jsonl", ["queen"])
    told = ask(made(tmp_path), "queen", 1)
    assert told["passages"][0]["source"] == "row 1 of more/good.jsonl"
    words = " ".join(told["set_aside"])
    assert len(told["set_aside"]) == 3 and str(tmp_path) not in words
    assert "more/short.jsonl: vectors of 2 numbers, those of a.jsonl 5" in words
    assert "row 1 of more/body.jsonl" in words and "more/none.parquet" in words


def test_a_disk_that_gives_no_file_is_asked_again_and_the_other_files_come_in(tmp_path, asked, monkeypatch):
    write(tmp_path / "a.jsonl", TEXTS)
    app, opened, away = made(tmp_path), tables.opened, True

    def gives(file):
        if away and file.name == "b.jsonl":
            raise PermissionError(13, "Permission denied", str(file.path))
        return opened(file)

    monkeypatch.setattr(tables, "opened", gives)
    write(tmp_path / "b.jsonl", ["queen"])
    write(tmp_path / "c.jsonl", ["queen", "king"])
    app.look()
    told = ask(app, "queen", 1)
    assert told["of"] == 6 and "Permission denied: 'b.jsonl'" in told["set_aside"][0]
    away = False
    app.look()
    assert ask(app, "queen", 1) | {"passages": []} == {"passages": [], "of": 7, "left_out": 0, "set_aside": []}


def test_what_json_has_no_word_for_is_no_answer_that_fails(tmp_path, asked):
    rows = {"text": ["the king", "a \ud800 queen"[:2] + "queen"], "year": [float("nan"), 1900.0]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "half a \\ud800 road", "title": "\\udfff"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["car"], "picture": [b"1"]}), tmp_path / "c.parquet")
    answer = ask(made(tmp_path), "king", 9)
    assert b"NaN" not in encoded(answer) and answer["of"] == 3
    assert [one["year"] for one in answer["passages"] if "year" in one] == [None, 1900.0]
    assert (
        len(answer["set_aside"]) == 1 and "row 1 of c.parquet: The app's answer holds bytes" in answer["set_aside"][0]
    )


@pytest.mark.parametrize("vectors", ["[1, NaN]", "[]", '"far"', "[1e999, 1]", "[[1]]"])
def test_vectors_that_are_none_are_set_aside(tmp_path, asked, vectors):
    write(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.jsonl").write_text(f'{{"text": "x", "vector": {vectors}}}\n')
    (why,) = ask(made(tmp_path), "queen", 1)["set_aside"]
    assert why.startswith("b.jsonl: its vectors")


def test_vectors_of_another_model_than_the_one_that_is_asked_are_told(tmp_path, asked):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "vector": [1, 2]}\n')
    with pytest.raises(HTTPException, match="vectors of 2 numbers, and minilm makes some of 5") as refused:
        ask(made(tmp_path), "queen")
    assert refused.value.status_code == 409


@pytest.mark.parametrize(
    ("error", "status"),
    [(ClusterError("minilm answered HTTP 503"), 503), (RequestError("minilm answered HTTP 400", http_status=400), 422)],
)
def test_an_embedder_that_is_away_or_refuses_a_question_is_named(tmp_path, asked, monkeypatch, error, status):
    write(tmp_path / "a.jsonl", TEXTS)
    app = made(tmp_path)
    monkeypatch.setattr(retriever.calls, "embeddings", Raising(error))
    with pytest.raises(HTTPException, match="minilm answered") as refused:
        ask(app, "queen")
    assert refused.value.status_code == status


def test_a_file_with_a_text_that_the_embedder_refuses_keeps_no_other_one_out(tmp_path, asked, monkeypatch):
    write(tmp_path / "a.jsonl", TEXTS)
    app, embeddings = made(tmp_path), retriever.calls.embeddings

    def refuses(model, texts):
        if "rain" in texts[0]:
            raise RequestError("minilm answered HTTP 400: no text", http_status=400)
        return embeddings(model, texts)

    monkeypatch.setattr(retriever.calls, "embeddings", refuses)
    write(tmp_path / "b.jsonl", ["rain"])
    write(tmp_path / "c.jsonl", ["queen"])
    app.look()
    told = ask(app, "queen", 1)
    assert told["of"] == 5 and told["set_aside"] == ["b.jsonl: minilm answered HTTP 400: no text"]


def test_a_text_of_many_lines_is_one_document_of_which_a_bounded_part_is_read(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(documents, "AT_MOST", 100)
    (tmp_path / "a.txt").write_text("the king\n" * 20)
    write(tmp_path / "b.jsonl", ["the queen"] * 20)
    answer = ask(made(tmp_path), "king", 1)
    assert (answer["of"], answer["left_out"]) == (12 + 20, 8 * 8), "rows of a table are no document"


def test_one_whose_model_is_not_there_yet_says_which_and_begins_when_it_comes(tmp_path, asked, monkeypatch, capsys):
    write(tmp_path / "a.jsonl", TEXTS)
    embeddings = retriever.calls.embeddings
    errors = [ClusterError("minilm answered HTTP 503: no replica"), RequestError("no minilm", http_status=404)]
    monkeypatch.setattr(
        retriever.calls, "embeddings", lambda *given: Raising(errors.pop())() if errors else embeddings(*given)
    )
    assert ask(Retriever(str(tmp_path), "minilm", follow=0.01), "queen", 1)["of"] == 4
    first, then, *more = capsys.readouterr().out.splitlines()
    assert "begins when it can ask: no minilm" in first and "minilm answered HTTP 503" in then and more == []


class Raising:
    def __init__(self, error):
        self.error = error

    def __call__(self, *_):
        raise self.error


def test_a_question_that_is_longer_than_any_model_reads_is_refused_and_nobody_is_asked(tmp_path, asked):
    write(tmp_path / "a.jsonl", TEXTS)
    app = made(tmp_path)
    asked.clear()
    with pytest.raises(HTTPException, match="10000000 characters; at most 20000 are read") as refused:
        ask(app, "rose " * 2_000_000)
    assert refused.value.status_code == 422 and not asked


@pytest.mark.parametrize("name", ["nosuch", "nosuch.jsonl"])
def test_a_place_that_is_not_there_is_named(name, tmp_path, asked):
    with pytest.raises(DataError, match=f"documents: there is no file or folder .*{name}$"):
        made(tmp_path / name)
