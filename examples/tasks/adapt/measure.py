"""What the trainings measured on what was held out, and which of two answers a simple rule would have taken."""

import json
from pathlib import Path

from llmsched import Client

client, data = Client(), Path(__file__).parent / "data"
lora, qlora, dpo = (client.status(f"adapt-{name}").metrics for name in ("lora", "qlora", "dpo"))


def pairs(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data / f"preferred-{name}.jsonl").read_text().splitlines()]


def shares(row: dict[str, str], answer: str) -> int:
    """Words of an answer that the question has too."""
    return len({*row["prompt"].lower().split()} & {*row[answer].lower().split()})


test = pairs("test")
said = [(shares(row, "chosen"), shares(row, "rejected")) for row in test]
by_words = sum(0.5 if one == other else one > other for one, other in said) / len(said)
for part, number, baseline in (
    ("qlora", qlora["eval.perplexity"], lora["eval.perplexity"]),
    ("dpo", dpo["eval.accuracy"], by_words),
):
    print(json.dumps({"part": part, "number": number, "baseline": baseline}))
