"""Teaches the ranker everybody's earlier ratings in order of time, asks it for everybody's later films, and lets a
search go on until the night is over."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import prepare  # isort: skip  # it knows the way to measuring.py

import friday
import pandas
import yaml
from measuring import rows_of, say, until
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from llmsched import Client

DATA, NIGHT_S, AT_ONCE = Path(__file__).parent / "data", 90.0, 500


def main() -> None:
    client = Client()
    (night,) = yaml.safe_load_all(Path("nightly.yaml").read_text())
    client.apply({**night, "deadline": time.time() + NIGHT_S})
    earlier, later = rows_of(DATA / "earlier.jsonl"), rows_of(DATA / "later.jsonl")
    rank = client.chat("films-rank")
    for begin in range(0, len(earlier), AT_ONCE):
        rank.post({"seen": earlier[begin : begin + AT_ONCE]})
    friday.comes(client)
    told = {(user, one["item"]): one for user, rows in by_user(later).items() for one in asked(rank, user, rows)}
    said = [told[row["user"], row["item"]] for row in later]
    scores, liked = [one["score"] for one in said], [row["liked"] for row in later]
    known = {row["item"] for row in earlier}
    cold = [at for at, row in enumerate(later) if row["item"] not in known]
    say("liked", roc_auc_score(liked, scores), roc_auc_score(liked, usual(earlier, later)))
    say("text", roc_auc_score(liked, scores), roc_auc_score(liked, [one["because"]["match"] for one in said]))
    say("cold", roc_auc_score([liked[at] for at in cold], [scores[at] for at in cold]), 0.5)
    say("wished", *friday.wished(client))
    say("letters", *friday.liked(client, later))
    until(lambda: client.status("films-nightly").ended, "the night is over")
    found = [trial.value for trial in client.trials("films-nightly").trials if trial.value is not None]
    say("nightly", max(found, default=0.0), by_hand())


def by_user(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["user"]].append({name: value for name, value in row.items() if name not in ("user", "liked")})
    return found


def asked(rank: Any, user: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(rank.post({"user": user, "rank": rows, "k": len(rows)})["order"])


def usual(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[float]:
    """The share that is liked of a film and of a person, drawn towards that of all."""
    mean = sum(row["liked"] for row in earlier) / len(earlier)
    rates: dict[tuple[str, int], float] = {}
    for name in ("user", "item"):
        some = defaultdict(list)
        for row in earlier:
            some[row[name]].append(row["liked"])
        prior = prepare.PRIOR
        rates |= {(name, key): (sum(each) + prior * mean) / (len(each) + prior) for key, each in some.items()}
    return [sum(rates.get((name, row[name]), mean) for name in ("user", "item")) for row in later]


def by_hand() -> float:
    learnt, tested = (pandas.read_csv(DATA / f"table-{name}.csv").fillna(0) for name in ("train", "test"))
    scale = learnt.drop(columns="liked").std()
    model = LogisticRegression(max_iter=1000).fit(learnt.drop(columns="liked") / scale, learnt["liked"] == "yes")
    said = model.predict_proba(tested.drop(columns="liked") / scale)[:, 1]
    return float(roc_auc_score(tested["liked"] == "yes", said))


if __name__ == "__main__":
    main()
