"""Asks both endpoints who pays back, and why; takes away what the reason names; counts what an answer costs; and lets
one team take back the GPU that the other has borrowed. `python measure.py cards owner`: those parts alone."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from prepare import TARGETS  # isort: skip  # it knows the way to measuring.py

import pandas
from measuring import by_columns, rows_in, say, until
from sklearn.metrics import roc_auc_score

from llmsched import Client

DATA, AT_ONCE, ASKED_WHY = Path(__file__).parent / "data", 100, 200


def main(parts: list[str]) -> None:
    client, answers, found = Client(), 0, dict[str, float]()
    for team, target in TARGETS.items():
        if team not in parts:
            continue
        learnt, tested = (pandas.read_csv(DATA / f"{team}-{name}.csv") for name in ("train", "test"))
        said = ask(client, team, rows_in(tested, target))
        answers += len(said)
        is_bad = tested[target] == "bad"
        plain = by_columns(learnt, tested, target, "boosting")
        found[team] = roc_auc_score(is_bad, [one["scores"]["bad"] for one in said])
        say(team, found[team], roc_auc_score(is_bad, plain["bad"]))
    if "challenger" in parts:
        say("challenger", client.status("cards-challenger").metrics["eval.auc"], found.get("cards"))
    if "reason" in parts:
        rows = rows_in(pandas.read_csv(DATA / "cards-test.csv"), "Status")[:ASKED_WHY]
        say("reason", *reasons(client, rows))
        answers += 3 * len(rows)
    if "cost" in parts:
        spent = client.usage(by=["workload"], since="2d").lines
        cost = sum(line.cost or 0.0 for line in spent if line.workload in TARGETS)
        say("cost", 1_000_000 * cost / answers)
    if "owner" in parts:
        say("owner", taken_back(client))


def ask(client: Client, team: str, rows: list[dict[str, Any]], explain: bool = False) -> list[dict[str, Any]]:
    chat = client.chat(team)
    some = (rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE))
    return [one for each in some for one in chat.post({"rows": each, "explain": explain})["said"]]


def reasons(client: Client, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """What the score of the answer loses without the two columns that speak most for it, and without two by chance."""
    said, chance = ask(client, "cards", rows, explain=True), random.Random(7)
    print(said[0]["reason"])
    lost = []
    for by_weight in (True, False):
        fewer = []
        for row, one in zip(rows, said, strict=True):
            named = [each["column"] for each in sorted(one["why"], key=lambda each: -each["weight"])]
            gone = named[:2] if by_weight else chance.sample(named, 2)
            fewer.append({name: value for name, value in row.items() if name not in gone})
        again = ask(client, "cards", fewer)
        lost.append(mean(one["score"] - other["scores"][one["label"]] for one, other in zip(said, again, strict=True)))
    return lost[0], lost[1]


def taken_back(client: Client) -> float:
    """Seconds from the call until the loans' team has its GPU, which the cards' stress test has borrowed."""
    client.apply("stress.yaml")
    until(lambda: client.status("cards-stress").progress.get("step", 0) > 100, "the stress test computes")
    asked = time.time()
    client.apply("refit.yaml").wait(timeout_s=300)
    began = client.status("loans-refit").gangs[0].started_at or 1e9
    until(lambda: any(one.kind == "Resized" for one in client.events(follow=False)), "the stress test goes on, smaller")
    client.cancel("cards-stress")
    return began - asked


if __name__ == "__main__":
    main(sys.argv[1:] or [*TARGETS, "challenger", "reason", "cost", "owner"])
