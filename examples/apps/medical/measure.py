"""Asks whether tumours are malignant and why, and for the code of what is written; then the ward's hours begin, and
somebody comes who matters more. `python measure.py tumours hours`: those parts alone."""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from prepare import CATEGORY  # isort: skip  # it knows the way to measuring.py

import pandas
from measuring import by_columns, rows_in, rows_of, same, say, until
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from llmsched import Client

DATA, CLIENT = Path(__file__).parent / "data", Client()


def hours() -> None:
    CLIENT.apply("research.yaml")
    until(lambda: CLIENT.status("research").progress.get("step", 0) > 100, "research computes")
    window = {"name": "ward", "start": time.time() + 5, "duration": 60, "accelerators": "A100:1", "queue": "ward"}
    CLIENT.reserve(window)
    until(lambda: any(one.state == "open" for one in CLIENT.reservations()), "the ward's hours begin")
    CLIENT.apply("round.yaml")
    CLIENT.wait("ward-round", timeout_s=120)
    say("round", (CLIENT.status("ward-round").gangs[0].started_at or 1e9) - CLIENT.status("ward-round").submitted_at)
    print(CLIENT.why("congress"))
    gone = sum(one.kind == "Preempt" and one.workload in ("tumour", "meaning") for one in CLIENT.events(follow=False))
    say("kept", gone + (CLIENT.status("congress").phase != "waiting"))
    for name in ("congress", "research"):
        CLIENT.cancel(name)


def tumours() -> None:
    learnt, tested = (pandas.read_csv(DATA / f"tumour-{name}.csv") for name in ("train", "test"))
    rows = rows_in(tested, "is")
    said = CLIENT.chat("tumour").post({"rows": rows, "explain": True})["said"]
    is_malignant = tested["is"] == "malignant"
    number = roc_auc_score(is_malignant, [one["scores"]["malignant"] for one in said])
    for part, how in (("tumour", "boosting"), ("tumour_linear", "linear")):
        say(part, number, roc_auc_score(is_malignant, by_columns(learnt, tested, "is", how)["malignant"]))
    print(said[0]["reason"])
    chance, lost = random.Random(7), []
    for by_weight in (True, False):
        fewer = []
        for row, one in zip(rows, said, strict=True):
            named = [each["column"] for each in sorted(one["why"], key=lambda each: -each["weight"])]
            gone = named[:10] if by_weight else chance.sample(named, 10)
            fewer.append({name: value for name, value in row.items() if name not in gone})
        again = CLIENT.chat("tumour").post({"rows": fewer})["said"]
        lost.append(mean(one["score"] - other["scores"][one["label"]] for one, other in zip(said, again, strict=True)))
    say("reason", *lost)


def livers() -> None:
    metrics = CLIENT.status("liver-model").metrics
    learnt, tested = (pandas.read_csv(DATA / f"liver-{name}.csv") for name in ("train", "test"))
    for part, how in (("liver", "boosting"), ("liver_linear", "linear")):
        plain = by_columns(learnt, tested, "injury", how)["some"]
        say(part, metrics["eval.auc"], roc_auc_score(tested["injury"] == "some", plain))


def codes() -> None:
    asked, known = rows_of(DATA / "asked.jsonl"), rows_of(DATA / "codes" / "known.jsonl")

    def found(row: dict[str, str]) -> str:
        return str(CLIENT.chat("codes").post({"query": row["text"], "k": 1})["passages"][0]["code"][:CATEGORY])

    true = [row["code"][:CATEGORY] for row in asked]
    with ThreadPoolExecutor(8) as several:
        number = same([*several.map(found, asked)], true)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    alike = words.fit_transform(row["text"] for row in known) @ words.transform(row["text"] for row in asked).T
    say("codes", number, same([known[at]["code"][:CATEGORY] for at in alike.toarray().argmax(0)], true))


PARTS = {part.__name__: part for part in (tumours, livers, codes, hours)}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
