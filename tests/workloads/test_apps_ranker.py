"""What a user will like, first: learnt from answers one by one, bounded, and with a reason for each place."""

import random

import pytest
from starlette.exceptions import HTTPException
from vectors import asked_for

from llmsched.errors import ClusterError
from workloads.apps import ranker, tastes
from workloads.apps.online_weights import OnlineWeights
from workloads.apps.ranker import Ranker
from workloads.apps.tastes import Recent, Tastes

WORDS = ["war", "love", "space"]


@pytest.fixture
def asked(monkeypatch):
    return asked_for(monkeypatch, ranker, WORDS)


def answers(many, seed=3):
    """Everybody likes films of one kind, and films with a low number more."""
    chance = random.Random(seed)
    rows = []
    for _ in range(many):
        user, item = chance.randrange(12), chance.randrange(90)
        fits = user % 3 == item % 3
        liked = chance.random() < (0.85 if fits else 0.2) * (1.1 if item < 45 else 0.7)
        rows.append({"user": user, "item": item, "text": f"{WORDS[item % 3]} {item}", "liked": liked})
    return rows


def test_what_a_user_likes_comes_first_also_what_nobody_has_seen_with_what_speaks_for_it(asked):
    app = Ranker(model="minilm")
    assert app({"seen": answers(1500)}) == {"seen": 1500, "set_aside": 0}
    new = [{"item": f"new {word}", "text": f"{word} again"} for word in WORDS]
    for user in range(3):
        order = app({"user": user, "rank": new})["order"]
        assert order[0]["item"] == f"new {WORDS[user]}" and order[0]["score"] > order[1]["score"]
        assert max(order[0]["because"], key=order[0]["because"].get) == "match"
    told = app({})
    assert told["seen"] == 1500 and told["weights"]["match"] > told["weights"]["user"]


def test_without_a_model_texts_do_not_count_and_columns_of_numbers_may():
    app = Ranker(features=["age"])
    chance = random.Random(1)
    rows = [{"user": "u", "item": str(number), "age": chance.uniform(0, 50)} for number in range(400)]
    app({"seen": [{**row, "liked": row["age"] < 25} for row in rows]})
    order = app(
        {"user": "u", "rank": [{"item": "old", "age": 45}, {"item": "young", "age": 3}, {"item": "any"}], "k": 3}
    )
    assert [one["item"] for one in order["order"]] == ["young", "any", "old"]
    assert app({"user": "u", "rank": [{"item": "old", "age": 45}, {"item": "young", "age": 3}], "k": 1})["order"][0][
        "item"
    ] == "young"  # fmt: skip


def test_a_text_is_asked_for_once_and_in_portions(asked):
    app = Ranker(model="minilm")
    rows = [{"user": "u", "item": str(n), "text": f"war {n}", "liked": True} for n in range(100)]
    app({"seen": rows})
    app({"seen": rows})
    assert asked == [64, 36]


def test_answers_that_are_none_are_set_aside_counted_and_named(asked):
    app = Ranker(features=["age"])
    good = {"user": "u", "item": "i", "liked": True}
    broken = [
        {**good, "liked": "yes"}, {**good, "user": ""}, {"user": "u", "liked": True}, {**good, "age": float("nan")},
        "x", {**good, "text": 5}, {**good, "age": 10**400}, {**good, "age": 1e300},
    ]  # fmt: skip
    assert app({"seen": [good, *broken]}) == {"seen": 1, "set_aside": 8}
    told = app({})
    assert told["set_aside"] == 8 and len(told["named"]) == ranker.NAMED
    assert told["named"][0].startswith("row 5 has a 'age' that is no number: nan")


@pytest.mark.parametrize(
    "body", [{"rank": []}, {"user": "u", "rank": {}}, {"user": "u", "rank": [], "k": 0}, {"seen": 1}, {"ask": 1}, []]
)
def test_a_question_that_is_none_is_refused_with_what_one_is(body):
    with pytest.raises(HTTPException) as refused:
        Ranker()(body)
    assert refused.value.status_code == 422 and '"rank"' in refused.value.detail


def test_a_candidate_that_is_none_is_refused_by_its_number_and_features_of_a_taken_name_too():
    with pytest.raises(HTTPException, match="row 2 has no 'item'"):
        Ranker()({"user": "u", "rank": [{"item": 1}, {"text": "x"}]})
    with pytest.raises(ValueError, match="user stands for something already"):
        Ranker(features=["user"])


def test_a_model_that_is_away_is_named_and_nothing_is_half_learnt(monkeypatch):
    def embeddings(model, texts, **_):
        raise ClusterError(f"{model} answered HTTP 503: no replica")

    monkeypatch.setattr(ranker.calls, "embeddings", embeddings)
    app = Ranker(model="minilm")
    with pytest.raises(HTTPException, match="minilm answered HTTP 503"):
        app({"seen": [{"user": "u", "item": "i", "text": "war", "liked": True}]})
    assert app({})["seen"] == 0


def test_who_was_not_heard_of_for_longest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(tastes, "USERS_AT_MOST", 3)
    known = Tastes()
    for user in ("a", "b", "c", "a", "d"):
        known.learn(user, "i", None, True)
    assert [*known._users] == ["c", "a", "d"]
    kept = Recent(2)
    for key in ("x", "y", "x", "z"):
        kept.use(key, key)
    assert [*kept] == ["x", "z"]


def test_weights_stay_numbers_whatever_comes():
    weights = OnlineWeights(["a"])
    chance = random.Random(5)
    for number in range(500):
        weights.learn({"a": chance.choice([1e300, -1e300, 0.0])}, number % 2 == 0)
        weights.learn({}, True)
    assert 0 <= weights.chance({"a": 1e308}) <= 1 and abs(weights.weights["a"]) < 100
