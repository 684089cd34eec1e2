"""Asks the endpoint what three voices say that nobody has heard: of the words, the part that is right (1 - WER)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from llmsched import Client

DATA = Path(__file__).parent / "data"


def main() -> None:
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text().splitlines()]
    chat = Client().chat("transcribe-api")
    said = [chat.transcribe((DATA / row["audio"]).read_bytes()) for row in rows]
    learnt = [json.loads(line)["text"] for line in (DATA / "train.jsonl").read_text().splitlines()]
    [(usual, _)] = Counter(word for text in learnt for word in text.split()).most_common(1)
    always = " ".join([usual] * 3)
    number, baseline = (right(found, [row["text"] for row in rows]) for found in (said, [always] * len(rows)))
    print(json.dumps({"number": number, "baseline": baseline}))


def right(said: list[str], true: list[str]) -> float:
    wrong = sum(edits(one.split(), other.split()) for one, other in zip(said, true, strict=True))
    return 1 - wrong / sum(len(text.split()) for text in true)


def edits(one: list[str], other: list[str]) -> int:
    """Words to put in, take out or replace (Levenshtein)."""
    row = [*range(len(other) + 1)]
    for place, word in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, there in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != there))
    return row[-1]


if __name__ == "__main__":
    main()
