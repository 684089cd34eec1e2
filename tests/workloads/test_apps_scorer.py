"""Rows of a table come to what the loop has learnt, with what each column adds, and a row that is none is named."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from starlette.exceptions import HTTPException

from llmsched.runtime import Context, artifact, enter
from workloads.apps.scorer import Scorer
from workloads.loops import tabular


def table(many, seed=3):
    """The chance of "bad" goes with debt, and is higher for who rents; the shoe size says nothing."""
    chance, rows = random.Random(seed), []
    for _ in range(many):
        debt, home, shoe = chance.gauss(0, 1), chance.choice(["own", "rent"]), chance.randint(36, 46)
        odds = 2 * debt + (1.5 if home == "rent" else -1.5)
        bad = chance.random() < 1 / (1 + math.exp(-odds))
        rows.append({"debt": debt, "home": home, "shoe": shoe, "is": "bad" if bad else "good"})
    return rows


def learnt(folder, rows, **more):
    """(its result, its metrics)"""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"data": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl"), "target": "is", "steps": 300,
              "learning_rate": 0.02, "hidden": [8], **more}  # fmt: skip
    with enter(Context.alone(folder / "out")):
        tabular.loop(config)
    left = artifact.read_result(str(folder / "out"), "by-hand/0", 1, 1)
    return Path(left["artifact"].removeprefix("file://")), left["metrics"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place, rows = tmp_path_factory.mktemp("scorer"), table(600)
    numbers = [{"debt": row["debt"], "home": row["home"], "is": 5 + 2 * row["debt"]} for row in rows]
    yield (
        learnt(place / "labels", rows),
        rows,
        learnt(place / "numbers", numbers, predicts="number"),
        learnt(place / "kinds", [{**row, "is": f"{row['is']} {row['home']}"} for row in rows]),
    )
    torch.set_num_threads(threads)


def without(row, *names):
    return {name: value for name, value in row.items() if name not in ("is", *names)}


def test_an_endpoint_says_of_each_row_what_the_loop_measured(made):
    (folder, metrics), rows, (numbers, measured), _ = made
    said = Scorer(model=str(folder))({"rows": [without(row) for row in rows]})["said"]
    right = sum(one["label"] == row["is"] for one, row in zip(said, rows, strict=True)) / len(rows)
    assert right == pytest.approx(metrics["eval.accuracy"], abs=1e-5) and right > 0.8
    assert said[0].keys() == {"label", "score", "scores"} and sum(said[0]["scores"].values()) == pytest.approx(1)
    (four,) = Scorer(model=str(numbers))({"rows": [{"debt": -0.5, "home": "own"}]})["said"]
    assert measured["eval.r2"] > 0.95 and four["value"] == pytest.approx(4, abs=0.5)


def test_what_all_columns_add_is_the_difference_from_a_usual_row_and_what_says_nothing_adds_nothing(made):
    (folder, _), _, (numbers, _), (kinds, _) = made
    row, odds = {"debt": 1.5, "home": "rent", "shoe": 45}, {}
    for place in (folder, kinds):
        scorer = Scorer(model=str(place))
        given, usual = scorer._learnt.columns.tensor([row]), scorer._learnt.columns.usual[None]
        (one,) = scorer({"rows": [row], "explain": True})["said"]
        at = scorer._learnt.labels.index(one["label"])
        for name, inputs in (("row", given), ("usual", usual)):
            chance = scorer._learnt.says(inputs).softmax(1)[0, at]
            odds[name] = float(torch.log(chance / (1 - chance)))
        assert sum(each["weight"] for each in one["why"]) == pytest.approx(odds["row"] - odds["usual"], abs=0.1)
        weights = {each["column"]: abs(each["weight"]) for each in one["why"]}
        assert weights["shoe"] < min(weights["debt"], weights["home"]) / 2
    (one,) = Scorer(model=str(numbers))({"rows": [{"debt": 1.0}], "explain": True})["said"]
    assert one["why"][0]["column"] == "debt" and one["why"][0]["weight"] == pytest.approx(2, abs=0.4)
    assert one["reason"].startswith("more is, as debt is 1.0; less, as ") or "home is not known" in one["reason"]


def test_a_reason_says_what_speaks_for_a_label_and_what_against_it(made):
    scorer = Scorer(model=str(made[0][0]))
    row = {"debt": 2.0, "home": "own", "shoe": 41}
    (one,) = scorer({"rows": [row], "explain": True})["said"]
    assert one["label"] == "bad" and one["why"][0]["column"] == "debt"
    assert one["reason"].startswith("bad, as debt is 2.0") and "against it: home is own" in one["reason"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"rows": []}, "expected"),
        ({"row": [{}]}, "expected"),
        ([], "expected"),
        ({"rows": [{}] * 2001}, "at most 2,000"),
        ({"rows": [{}], "explain": 1}, "expected"),
        ({"rows": [{}, 3]}, "row 2 is not an object"),
        ({"rows": [{"dept": 3}]}, "row 1 has a column 'dept'; did you mean 'debt'"),
        ({"rows": [{"debt": "much"}]}, "row 1: the column 'debt'"),
        ({"rows": [{"debt": 1e400}]}, "row 1 has a number that is not finite"),
        ({"rows": [{"debt": 10**400}]}, "row 1: the column 'debt'"),
        ({"rows": [{"": 3}]}, "row 1 has a column ''"),
    ],
)
def test_a_question_that_is_none_is_told_what_is_wrong(made, body, words):
    with pytest.raises(HTTPException) as error:
        Scorer(model=str(made[0][0]))(body)
    assert error.value.status_code == 422 and words in error.value.detail


def test_a_number_that_a_row_lacks_counts_as_the_mean(made):
    scorer = Scorer(model=str(made[0][0]))
    (one,) = scorer({"rows": [{}], "explain": True})["said"]
    assert {each["weight"] for each in one["why"] if each["column"] != "home"} == {0.0}


def test_a_model_that_is_no_table_s_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no result of workloads\.loops\.tabular"):
        Scorer(model=str(tmp_path))
