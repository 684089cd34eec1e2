"""Asks the endpoint who and what is named in the sentences that were held out; whole names with their kind count.
Beside it a dictionary: every name of the sentences to learn from, looked up."""

import json
from pathlib import Path

from prepare import spans

from llmsched import Client


def f1(found: list[set[tuple[int, int, str]]], true: list[set[tuple[int, int, str]]]) -> float:
    right = sum(len(one & other) for one, other in zip(found, true, strict=True))
    return 2 * right / max(sum(map(len, found)) + sum(map(len, true)), 1)


def marked(row: dict) -> set[tuple[int, int, str]]:
    return {(each["start"], each["end"], each["label"]) for each in row["entities"]}


def looked_up(text: str, names: dict[str, str]) -> set[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for at, end in spans(text):
        if (kind := names.get(text[at:end])) and all(end <= each[0] or each[1] <= at for each in found):
            found.append((at, end, kind))
    return {*found}


data = Path(__file__).parent / "data"
learnt, rows = (
    [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
)
said: list[set[tuple[int, int, str]]] = [set() for _ in rows]
for each in Client().chat("entities-api").classify([row["text"] for row in rows]):
    said[each["index"]].add((each["at"]["start"], each["at"]["end"], each["label"]))
names = {row["text"][each["start"] : each["end"]]: each["label"] for row in learnt for each in row["entities"]}
true = [marked(row) for row in rows]
print(json.dumps({"number": f1(said, true), "baseline": f1([looked_up(row["text"], names) for row in rows], true)}))
