"""Passages by meaning: exact, by the files as they are now, and by vectors that a batch has made."""

import asyncio
import gc
import json
import threading
from functools import partial

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from vectors import asked_for, vector
from waiting import PATIENCE_S, wait_until

from llmsched.errors import ClusterError, RequestError
from workloads.apps import index as indices
from workloads.apps import retriever
from workloads.apps.index import Index
from workloads.apps.passages import LONGEST, OF_ONE_AT_MOST, passages
from workloads.apps.retriever import Retriever

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
