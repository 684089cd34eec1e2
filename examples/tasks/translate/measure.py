"""Has the endpoint translate definitions that were held out: BLEU against what Apertium makes of them."""

import json
from pathlib import Path

import sacrebleu

from llmsched import Client

file = Path(__file__).parent / "data" / "test.jsonl"
rows = [json.loads(line) for line in file.read_text().splitlines()]
chat = Client().chat("translate-api")
said = [chat.complete(row["source"], temperature=0, max_tokens=40) for row in rows]
true = [[row["target"] for row in rows]]
number, baseline = (sacrebleu.corpus_bleu(made, true).score / 100 for made in (said, [row["source"] for row in rows]))
print(json.dumps({"number": number, "baseline": baseline}))
