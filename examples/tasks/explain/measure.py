"""How much the probability of a label falls when the fifth of the words that speak most for it is masked, and beside it
a fifth of chance: a reason is one when it changes what it is the reason of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from llmsched import Client

REVIEWS, AT_ONCE = 100, 10
_SEED = 7


def main() -> None:
    chat = Client().chat("explain-api")
    file = Path(__file__).parent / "data" / "sentiment-test.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()][:REVIEWS]
    found = [
        each for at in range(0, REVIEWS, AT_ONCE) for each in chat.classify(texts[at : at + AT_ONCE], explain=True)
    ]
    chance = random.Random(_SEED)
    drops = []
    for by_weight in (True, False):
        chosen = [fifth(each["why"], None if by_weight else chance) for each in found]
        again = chat.classify([masked(text, words) for text, words in zip(texts, chosen, strict=True)])
        lost = [one["score"] - other["scores"][one["label"]] for one, other in zip(found, again, strict=True)]
        drops.append(sum(lost) / len(lost))
    print(json.dumps({"number": drops[0], "baseline": drops[1]}))


def fifth(words: list[dict[str, Any]], chance: random.Random | None) -> list[dict[str, Any]]:
    count = max(1, len(words) // 5)
    return chance.sample(words, count) if chance else sorted(words, key=lambda word: -word["weight"])[:count]


def masked(text: str, words: list[dict[str, Any]]) -> str:
    for at in sorted((word["at"] for word in words), key=lambda at: -at["start"]):
        text = f"{text[: at['start']]}[MASK]{text[at['end'] :]}"
    return text


if __name__ == "__main__":
    main()
