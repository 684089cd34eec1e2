"""The small models learn the same on two workers as on one and after a stop, measure right, and name what is wrong."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import numpy as np
import pytest
from test_finetune import assert_close, result_of

from workloads.apps.painter import png

WORDS = {"good": ["nice", "bright", "fine"], "bad": ["dull", "grim", "poor"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("loops"), random.Random(1)
    table, texts = [], []
    for number in range(120):
        label = ("good", "bad")[number % 2]
        age = chance.gauss(3.0 if label == "good" else -3.0, 1.0)
        table.append(
            {
                "age": age if number % 7 else None if number % 2 else "",
                "kind": WORDS[label][number % 3],
                "label": label,
                "size": 2 * age,
            }
        )
        text = " ".join(["the", *chance.choices(WORDS[label], k=4), "film"])
        texts.append({"text": text, "label": label})
    series = [{"x": 10 * math.sin(day * math.pi / 12) + 0.3 * (day // 24 % 7) * day / 100} for day in range(500)]
    shades = {"black": 0, "white": 255}
    pictures = [
        {"image": png(np.full((4, 4), shade, "uint8"), 4), "label": name}
        for _ in range(30)
        for name, shade in shades.items()
    ]
    for name, rows in (("table", table), ("texts", texts), ("series", series), ("pictures", pictures)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configs(made: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    table, texts, series, pictures = (str(made / f"{name}.jsonl") for name in ("table", "texts", "series", "pictures"))
    usual = {"steps": 30, "learning_rate": 0.02, "global_batch_size": 25}
    return {
        "linear": ("tabular", {**usual, "data": table, "test": table, "target": "label"}),
        "mlp": (
            "tabular",
            {**usual, "data": table, "test": table, "target": "size", "predicts": "number", "hidden": [8]},
        ),
        "forecast": ("forecast", {**usual, "data": series, "column": "x", "season": 24, "horizon": 3}),
        "lstm": ("text_lstm", {**usual, "data": texts, "test": texts, "size": 8, "hidden": 8}),
        "skip-gram": ("word_vectors", {**usual, "data": texts, "size": 8, "rare_below": 1.0}),
        "drawing": ("drawing", {**usual, "data": pictures, "hidden": 32, "size": 4}),
        "cbow": ("word_vectors", {**usual, "data": texts, "size": 8, "rare_below": 1.0, "kind": "cbow"}),
    }


@pytest.mark.parametrize("name", ["linear", "mlp", "forecast", "lstm", "skip-gram", "cbow", "drawing"])
def test_two_workers_and_a_stop_learn_as_one_worker_does(name: str, made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert tiny.in_worker(run, str(one), configs(made)[name]) == "done"
    assert tiny.gang(2, run, str(two), configs(made)[name], 1, 2) == ["stopped at 20"] * 2
    assert tiny.in_worker(run, str(two), configs(made)[name], 2) == "done"
    left = result_of(one)
    assert_close(left, result_of(two, attempt=2))
    if name in ("linear", "lstm"):
        assert left["metrics"]["eval.accuracy"] > 0.95 and left["metrics"]["eval.auc"] > 0.99
    if name == "mlp":
        assert left["metrics"]["eval.r2"] > 0.8
    if name == "forecast":
        assert left["metrics"]["eval.mae"] < left["metrics"]["eval.mae_season"]


def run(rank: int, size: int, folder: str, what: tuple[str, dict[str, Any]], attempt: int = 1, stop: int = 0) -> str:
    """`stop`: it is asked to leave that time that it looks whether it is."""
    import importlib

    from llmsched.runtime import Context, elastic, enter

    watcher = tiny._watch(stop) if stop else None
    with enter(Context.alone(folder, rank=rank, world_size=size, attempt=attempt, supervisor=watcher)):
        try:
            importlib.import_module(f"workloads.loops.{what[0]}").loop(what[1])
        except elastic.Stopped as stopped:
            return f"stopped at {stopped.step}"
    return "done"


def refused(rank: int, size: int, folder: str, cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [str(said(folder, each)) for each in cases]


def said(folder: str, what: tuple[str, dict[str, Any]]) -> str:
    from workloads.sources import BadInput

    try:
        return run(0, 1, folder, what)
    except BadInput as error:
        return str(error)


def test_what_is_wrong_in_a_config_or_its_data_is_named(made: Path, tmp_path: Path) -> None:
    table, forecast, cbow = (configs(made)[name] for name in ("linear", "forecast", "cbow"))

    def changed(of: tuple[str, dict[str, Any]], **changes: Any) -> tuple[str, dict[str, Any]]:
        return of[0], {name: value for name, value in {**of[1], **changes}.items() if value is not None}

    cases = {
        'there is no "stps" here; did you mean "steps"?': changed(table, stps=3),
        "config.steps: expected a whole number, got 'many'": changed(table, steps="many"),
        'config: "target" is missing': changed(table, target=None),
        "row 1 of table.jsonl has no 'price'; it has age, kind, label, size": changed(table, target="price"),
        'config.predicts: expected "label" or "number"': changed(table, predicts="colour"),
        "the column 'label' is not of numbers alone": changed(table, predicts="number"),
        "500 numbers are few for a season of 499": changed(forecast, season=499),
        "a season of 24 is no whole number of cycles of 3 times or more": changed(forecast, cycle=7),
        'config.kind: expected "skip-gram" or "cbow"': changed(cbow, kind="glove"),
        "fewer than two words come 999 times": changed(cbow, least=999),
    }
    answers = tiny.in_worker(refused, str(tmp_path), list(cases.values()))
    for words, answer in zip(cases, answers, strict=True):
        assert words in answer


def test_the_area_under_the_curve_is_scikit_learns() -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    import torch

    from workloads.loops.tabular import auc

    true = torch.randint(2, (300,), generator=torch.Generator().manual_seed(1))
    scores = torch.round(torch.randn(300, generator=torch.Generator().manual_seed(2)) + true, decimals=1)
    assert auc(scores, true) == pytest.approx(theirs.roc_auc_score(true, scores), abs=1e-9)
