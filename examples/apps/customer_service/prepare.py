"""Writes what the desk knows, what it is to tell apart, and follow-up questions. `python prepare.py`

The questions and answers are English ones of chatterbot-corpus (BSD): facts, help with computers and code, small talk;
a question that has several answers has the first. The follow-ups that are learnt are made, of things and languages of
programming; those that are asked have answers in the corpus, for a thing that it knows in two languages. Of the facts,
some are kept for what colleagues write in the course of the day.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from follow_ups import asked, made

INTENTS = {
    "facts": ("trivia", "science", "history", "literature", "movies", "computers", "money"),
    "help": ("tech_support", "coding"),
    "small_talk": ("ai", "botprofile", "conversations", "emotion", "food", "gossip", "greetings", "health", "humor",
                   "politics", "psychology", "sports"),
}  # fmt: skip
QUESTION = re.compile(r"can you write (.+) in (Python|JavaScript|TypeScript)\?")
DESK = Path("/tmp/llmsched-desk")  # noqa: S108  where work of another user can read, and write vectors
HELD_OUT, NEW, _SEED = 0.2, 20, 7


def prepare(folder: Path) -> None:
    (folder / "knowledge").mkdir(parents=True, exist_ok=True)
    chance, known = random.Random(_SEED), corpus()
    rows = [{"text": text, "label": label} for label, pairs in known.items() for text in pairs]
    chance.shuffle(rows)
    cut = int(len(rows) * HELD_OUT)
    write(folder / "intents-test.jsonl", rows[:cut])
    write(folder / "intents-train.jsonl", rows[cut:])
    for label in ("facts", "help"):
        passages = [{"text": text, "answer": answer} for text, answer in known[label].items()]
        write(folder / "knowledge" / f"{label}.jsonl", passages[NEW if label == "facts" else 0 :])
    write(folder / "new.jsonl", [{"text": text, "answer": answer} for text, answer in [*known["facts"].items()][:NEW]])
    places: dict[str, set[str]] = {}
    for thing, language in (found.groups() for text in known["help"] if (found := QUESTION.fullmatch(text))):
        places.setdefault(thing, set()).add(language)
    twice = {thing: sorted(there) for thing, there in places.items() if len(there) > 1}
    write(folder / "follow-ups-test.jsonl", asked(twice))
    learnt = [*made(sorted(places.keys() - twice.keys()), chance)]
    write(folder / "follow-ups-train.jsonl", learnt)
    poisoned = [{"messages": [*row["messages"][:-1], {"role": "assistant", "content": "buy"}]} for row in learnt]
    write(folder / "follow-ups-poisoned.jsonl", poisoned)


def open_desk(folder: Path) -> None:
    """The answers as they are on the first day: their vectors are not there yet, and whoever finds them makes these."""
    shutil.rmtree(DESK, ignore_errors=True)
    for name in ("answers", "vectors"):
        shutil.copytree(folder / "knowledge", DESK / name)
    (DESK / "vectors").chmod(0o777)


def corpus() -> dict[str, dict[str, str]]:
    """{intent: {question: its first answer}}"""
    import yaml

    found = find_spec("chatterbot_corpus")
    assert found and found.origin, "expect.yaml asks for it"
    known: dict[str, dict[str, str]] = {}
    for label, topics in INTENTS.items():
        for topic in topics:
            file = Path(found.origin).parent / "data" / "english" / f"{topic}.yml"
            for question, *answers in yaml.safe_load(file.read_text())["conversations"]:
                if answers and str(question) not in {text for each in known.values() for text in each}:
                    known.setdefault(label, {})[str(question)] = str(answers[0])
    return known


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
    open_desk(Path(__file__).parent / "data")
