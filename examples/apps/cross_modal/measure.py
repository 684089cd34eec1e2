"""Asks the gallery for each caption, and for pictures like each picture, by what is said to be in it."""

from __future__ import annotations

import base64
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
from measuring import rows_of, say  # beside, not installed
from PIL import Image
from sklearn.linear_model import LogisticRegression

from llmsched import Client

DATA, CLIENT, K, LIKED = Path(__file__).parent / "data", Client(), 10, 60
CHAIN = (("looks", "captions"), ("looks", "looks-api"), ("captions", "gallery"))


def main() -> None:
    rows = rows_of(DATA / "asked.jsonl")
    of: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        of[row["label"]].add(row["picture"])
    with ThreadPoolExecutor(8) as several:
        shown = dict(zip(of, several.map(found, of), strict=True))
    number = mean(recall(shown[caption], there) for caption, there in of.items())
    say("recall", number, K / len(rows))
    written, seen = plain(rows)
    places: dict[str, list[int]] = defaultdict(list)
    for row, caption in zip(rows, written, strict=True):
        places[caption].append(row["picture"])
    say("recall_plain", number, mean(recall(places[caption][:K], there) for caption, there in of.items()))
    like_it(rows, seen)
    say("waited", max(waits()))


def found(query: str) -> list[int]:
    return [one["picture"] for one in CLIENT.chat("gallery").post({"query": query, "k": K})["passages"]]


def recall(shown: list[int], there: set[int]) -> float:
    return len(set(shown) & there) / min(K, len(there))


def plain(rows: list[Any]) -> tuple[list[str], Any]:
    """What logistic regression says of each picture, and the pixels."""
    learnt = rows_of(DATA / "train.jsonl")
    before, after = (
        numpy.array([numpy.asarray(Image.open(DATA / row["image"])).ravel() / 255 for row in some])
        for some in (learnt, rows)
    )
    model = LogisticRegression(max_iter=2000).fit(before, [row["label"] for row in learnt])
    return [str(label) for label in model.predict(after)], after


def like_it(rows: list[Any], pixels: Any) -> None:
    """Ten for each of the first LIKED pictures, without itself: those of its caption, and the nearest by pixels."""
    digit = {row["picture"]: row["label"].split()[-1] for row in rows}
    ours, plain = [], []
    for at, row in enumerate(rows[:LIKED]):
        image = base64.b64encode((DATA / row["image"]).read_bytes()).decode()
        [said] = CLIENT.chat("looks-api").classify([{"image": image}])
        there = [one for one in found(said["label"]) if one != row["picture"]]
        ours += [digit[one] == digit[row["picture"]] for one in there]
        near = numpy.abs(pixels - pixels[at]).sum(1).argsort()[1 : K + 1]
        plain += [digit[rows[one]["picture"]] == digit[row["picture"]] for one in near]
    say("like_it", mean(ours), mean(plain))


def waits() -> list[float]:
    """Of each link that waits for another's result: from the end of that to its start."""
    ends: dict[str, float] = {}
    starts: dict[str, float] = {}
    for one in CLIENT.events(follow=False):
        if one.kind in ("Finished", "Launch"):
            (ends if one.kind == "Finished" else starts).setdefault(one.workload, one.at)
    return [starts[link] - ends[of] for of, link in CHAIN]


if __name__ == "__main__":
    main()
