"""Asks who will fail, has answers marked, lets both classes fit their exercises at once, and lets the tutor choose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prepare import CLASSES, FITTED  # isort: skip  # it knows the way to measuring.py

import pandas
from measuring import by_columns, by_words, rows_in, rows_of, same, say
from sklearn.metrics import roc_auc_score

from llmsched import Client

DATA, DONE = Path(__file__).parent / "data", 2


def main() -> None:
    client = Client()
    arrays = client.apply("arrays.yaml")
    arrays.wait(timeout_s=300)
    say("fair", fair(client))
    risk(client)
    marks(client)
    chosen(client)
    shutil.rmtree(FITTED)


def risk(client: Client) -> None:
    learnt, tested = (pandas.read_csv(DATA / f"courses-{name}.csv") for name in ("train", "test"))
    said = client.chat("risk").post({"rows": rows_in(tested, "CourseSuccess"), "explain": True})["said"]
    fails = tested["CourseSuccess"] == "fails"
    number = roc_auc_score(fails, [one["scores"]["fails"] for one in said])
    for part, how in (("risk", "linear"), ("risk_boosting", "boosting")):
        say(part, number, roc_auc_score(fails, by_columns(learnt, tested, "CourseSuccess", how)["fails"]))
    print(said[0]["reason"])


def marks(client: Client) -> None:
    learnt, asked = (rows_of(DATA / f"pairs-{name}.jsonl") for name in ("train", "test"))
    answers = [{"key": row["premise"], "answer": row["hypothesis"]} for row in asked]
    said, true = client.chat("marks").post({"answers": answers})["marks"], [row["label"] for row in asked]
    words = [[f"{row['premise']} {row['hypothesis']}" for row in some] for some in (learnt, asked)]
    plain = by_words([*zip(words[0], [row["label"] for row in learnt], strict=True)], words[1])
    number = same([one["label"] for one in said], true)
    say("marks", number, max(true.count(label) for label in true) / len(true))
    say("marks_words", number, same(plain, true))
    print(said[0]["reason"])


def fair(client: Client) -> float:
    """Of the tasks that began while each class had one that waited."""
    came: dict[str, list[float]] = {name: [] for name in CLASSES}
    began: dict[str, list[float]] = {name: [] for name in CLASSES}
    for one in client.events(follow=False):
        parent, _, trial = (one.workload or "").partition(".")
        of = parent.removeprefix("exercises-")
        if trial and of in CLASSES and one.kind in ("Submitted", "Launch"):
            (came if one.kind == "Submitted" else began)[of].append(one.at)
    both = max(min(times) for times in came.values()), min(max(times) for times in began.values())
    counts = [sum(both[0] <= at <= both[1] for at in times) for times in began.values()]
    print(f"of each class {counts} began")
    return min(counts) / sum(counts)


def chosen(client: Client) -> None:
    """Each student who was held out does DONE exercises of those that the tutor chooses; what of the others?"""
    said, usual, true = [], [], []
    for name in CLASSES:
        learnt, tested = (pandas.read_csv(DATA / f"{name}-{part}.csv") for part in ("train", "test"))
        students = tested.astype(bool).to_dict("records")
        did: list[dict[str, Any]] = [{} for _ in students]
        for done in range(DONE + 1):
            told = client.chat("tutor").post({"class": name, "answers": did})["students"]
            for student, one, answers in zip(students, told, did, strict=True):
                if done < DONE:
                    answers[one["next"]] = student[one["next"]]
                    continue
                said += one["chances"].values()
                usual += [learnt[exercise].mean() for exercise in one["chances"]]
                true += [student[exercise] for exercise in one["chances"]]
    say("next", roc_auc_score(true, said), roc_auc_score(true, usual))


if __name__ == "__main__":
    main()
