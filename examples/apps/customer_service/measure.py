"""What the desk of a shop for software is worth: intents, follow-ups, and what happens when things go wrong.

Prints a line a part. Beside each number what a simpler desk comes to. `python measure.py intents` measures that alone.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mishaps  # it knows the way to measuring.py
import night
from measuring import by_words, rows_of, same, say

from llmsched import Client

DATA, CLIENT = Path(__file__).parent / "data", Client()


def intents() -> None:
    learnt, asked = (rows_of(DATA / f"intents-{name}.jsonl") for name in ("train", "test"))
    texts, true = [row["text"] for row in asked], [row["label"] for row in asked]
    number = same([one["label"] for one in CLIENT.chat("intents").classify(texts)], true)
    words = same(by_words([(row["text"], row["label"]) for row in learnt], texts), true)
    say("intents", number, words)
    say("intents_majority", number, Counter(true).most_common(1)[0][1] / len(true))


def answered(row: dict[str, Any], with_history: bool) -> str:
    """The question of the passage that came first; "" for none."""
    desk = CLIENT.chat("desk")
    session = desk.post({"message": row["first"]})["session"] if with_history else ""
    sources = desk.post({"message": row["then"], "session": session}, session=session)["sources"]
    return str(sources[0]["text"]) if sources else ""


def follow_ups() -> None:
    """Without a language model the question before stands in front; without history nothing does."""
    asked = rows_of(DATA / "follow-ups-test.jsonl")
    true = [row["whole"] for row in asked]
    in_front = [
        (CLIENT.chat("knowledge").post({"query": f"{row['first']} {row['then']}", "k": 1})["passages"][0]["text"])
        for row in asked
    ]
    with ThreadPoolExecutor(8) as several:
        whole, alone = ([*several.map(partial(answered, with_history=way), asked)] for way in (True, False))
        said = same(whole, true)
        say("follow_ups", said, same(alone, true))
    say("follow_ups_in_front", said, same(in_front, true))


def nightly(before: float) -> None:
    say("nightly", night.is_over(), before)


def poisoned() -> None:
    seconds, failed = mishaps.poisoned()
    say("rolled_back_s", seconds)
    say("failed_meanwhile", failed)


def bad_day() -> None:
    asked = mishaps.bad_day([row["text"] for row in rows_of(DATA / "intents-test.jsonl")])
    say("cut", asked["failed"], asked["again"])


PARTS: dict[str, Callable[..., None]] = {
    part.__name__: part for part in (intents, follow_ups, poisoned, nightly, bad_day)
}

if __name__ == "__main__":
    asked = sys.argv[1:] or [*PARTS]
    if "nightly" in asked:  # these two take a minute to come, in which others are measured
        PARTS["nightly"] = partial(nightly, night.begins())
        night.opens()
    if "poisoned" in asked:
        mishaps.watch()
    for name in asked:
        PARTS[name]()
    shutil.rmtree(night.DESK)
