"""Metrics from summed counts are those of the libraries that people compare with, however the rows are parted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from workloads.tasks import metrics, translation
from workloads.tasks.learns import span

CHANCE = random.Random(1)


def summed(parts: list[list[float]]) -> list[float]:
    return [sum(numbers) for numbers in zip(*parts, strict=True)]


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_accuracy_precision_recall_and_f1_are_scikit_learns(classes: int) -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    true = [CHANCE.randrange(classes) for _ in range(200)]
    said = [each if CHANCE.random() < 0.6 else CHANCE.randrange(max(2, classes - 1)) for each in true]
    parts = [metrics.tally(said[at : at + 7], true[at : at + 7], classes + 1) for at in range(0, 200, 7)]
    mine = metrics.of_labels(summed(parts))
    how: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert mine["accuracy"] == pytest.approx(theirs.accuracy_score(true, said), abs=1e-9)
    for name in ("precision", "recall", "f1"):
        assert mine[name] == pytest.approx(getattr(theirs, f"{name}_score")(true, said, **how), abs=1e-9), name
    assert mine["mean_iou"] == pytest.approx(theirs.jaccard_score(true, said, **how), abs=1e-9)


def test_errors_of_numbers_are_scikit_learns() -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    true = [CHANCE.gauss(3, 2) for _ in range(100)]
    said = [each + CHANCE.gauss(0, 1) for each in true]

    def counted(true: list[float], said: list[float]) -> list[float]:
        wrong = [a - b for a, b in zip(true, said, strict=True)]
        squares = (sum(each * each for each in true), sum(each * each for each in wrong))
        return [len(true), sum(true), *squares, sum(map(abs, wrong))]

    mine = metrics.of_numbers(summed([counted(true[at : at + 9], said[at : at + 9]) for at in range(0, 100, 9)]))
    assert mine["mse"] == pytest.approx(theirs.mean_squared_error(true, said), abs=1e-9)
    assert mine["mae"] == pytest.approx(theirs.mean_absolute_error(true, said), abs=1e-9)
    assert mine["r2"] == pytest.approx(theirs.r2_score(true, said), abs=1e-9)


@pytest.mark.filterwarnings("ignore")  # of tags that are none, in other words
@pytest.mark.parametrize("tags", ["O B-A I-A B-B I-B", "O B-A I-A E-A S-A B-B S-B", "O I-A I-B", "O"])
def test_entities_are_those_of_seqeval(tags: str) -> None:
    theirs = pytest.importorskip("seqeval.metrics")
    true = [[CHANCE.choice(tags.split()) for _ in range(CHANCE.randrange(1, 12))] for _ in range(60)]
    said = [[tag if CHANCE.random() < 0.7 else CHANCE.choice(tags.split()) for tag in row] for row in true]
    found = there = both = 0
    for mine, right in zip(said, true, strict=True):
        found, there = found + len(metrics.chunks(mine)), there + len(metrics.chunks(right))
        both += len(metrics.chunks(mine) & metrics.chunks(right))
    for name, number in metrics.of_found(both, found, there).items():
        assert number == pytest.approx(getattr(theirs, f"{name}_score")(true, said), abs=1e-9), name


@pytest.mark.parametrize(
    ("said", "true", "exact", "overlap"),
    [
        ("The film.", "a film", True, 1.0),
        ("very dull film", "dull film", False, 0.8),
        ("plot", "film", False, 0.0),
        ("", "", True, 1.0),
        ("", "film", False, 0.0),
        ("film film plot", "film plot plot", False, 2 / 3),
    ],
)
def test_answers_are_compared_without_capitals_articles_and_punctuation_as_in_squad(
    said: str, true: str, exact: bool, overlap: float
) -> None:
    assert span.is_exact(said, true) is exact
    assert span.overlap_of(said, true) == pytest.approx(overlap, abs=1e-9)


def test_error_rates_of_words_and_letters_are_jiwers() -> None:
    theirs = pytest.importorskip("jiwer")
    words = ["a", "film", "films", "the", "plot", "is"]
    true = [" ".join(CHANCE.choices(words, k=CHANCE.randrange(1, 8))) for _ in range(50)]
    said = [" ".join(word if CHANCE.random() < 0.7 else CHANCE.choice(words) for word in text.split()) for text in true]
    said[3], said[7] = "", said[7] + " the film"
    pairs = list(zip(said, true, strict=True))
    wrong = sum(metrics.edits(mine.split(), right.split()) for mine, right in pairs)
    assert wrong / sum(len(text.split()) for text in true) == pytest.approx(theirs.wer(true, said), abs=1e-9)
    letters = sum(metrics.edits(mine, right) for mine, right in pairs)
    assert letters / sum(map(len, true)) == pytest.approx(theirs.cer(true, said), abs=1e-9)


def test_bleu_and_chrf_are_sacrebleus() -> None:
    theirs = pytest.importorskip("sacrebleu")
    words = [
        "Ein",
        "Film",
        "film.",
        "3.5",
        "1,000",
        "(gut)",
        "it's",
        "x-y",
        "2-3",
        "...",
        "a&amp;b",
        "und",
        "sehr",
        "\u00e9t\u00e9",
    ]
    true = [" ".join(CHANCE.choices(words, k=CHANCE.randrange(1, 14))) for _ in range(60)]
    for share in (0.9, 0.5, 0.1, 0.0):
        said = [" ".join(w if CHANCE.random() < share else CHANCE.choice(words) for w in text.split()) for text in true]
        said[3], said[9] = "", f"{said[9]} und noch mehr"
        for part in (slice(None), slice(0, 4), slice(5, 6)):
            pairs = list(zip(said[part], true[part], strict=True))
            mine = translation.measure(summed([translation.counts_of(*pair) for pair in pairs]))
            wanted = theirs.corpus_bleu(said[part], [true[part]]).score
            assert mine["bleu"] == pytest.approx(wanted, abs=1e-9)
            assert mine["chrf"] == pytest.approx(theirs.corpus_chrf(said[part], [true[part]]).score, abs=1e-9)
