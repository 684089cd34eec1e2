"""What each of the smaller models came to on 600 reviews that were held out, beside what it was made of."""

from __future__ import annotations

import json
from pathlib import Path

from llmsched import Client

AT_ONCE = 50


def main() -> None:
    client = Client()
    metrics = {name: client.status(f"compress-{name}").metrics for name in ("quantize", "prune")}
    before = metrics["quantize"]["eval.accuracy_before"]  # all are made of the same model
    for part in ("quantize", "prune"):
        say(part, metrics[part]["eval.accuracy"], before)
    file = Path(__file__).parent / "data" / "sentiment-test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    chat, texts = client.chat("compress-int8"), [row["text"] for row in rows]
    found = [each for at in range(0, len(rows), AT_ONCE) for each in chat.classify(texts[at : at + AT_ONCE])]
    right = sum(each["label"] == row["label"] for each, row in zip(found, rows, strict=True))
    say("int8", right / len(rows), before)


def say(part: str, number: float, baseline: float) -> None:
    print(json.dumps({"part": part, "number": number, "baseline": baseline}))


if __name__ == "__main__":
    main()
