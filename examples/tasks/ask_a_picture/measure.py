"""Asks about pictures that no model has seen, four questions each; beside it what its kind alone lets one guess."""

import base64
import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmsched import Client

data = Path(__file__).parent / "data"
rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
questions = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
chat = Client().chat("ask-answers")


def right(row: dict) -> int:
    image = base64.b64encode((data / row["image"]).read_bytes()).decode()
    said = [chat.post({"image": image, "question": words})["answer"] for words, _, _ in row["asked"]]
    return sum(each == answer for each, (_, _, answer) in zip(said, row["asked"], strict=True))


usual: dict[str, Counter] = defaultdict(Counter)
for each in questions:
    usual[each["target"].split()[0]][each["usual"]] += 1
asked = [each for row in rows for each in row["asked"]]
guessed = sum(usual[program.split()[0]].most_common(1)[0][0] == answer for _, program, answer in asked)
with ThreadPoolExecutor(4) as several:
    number = sum(several.map(right, rows)) / len(asked)
print(json.dumps({"number": number, "baseline": guessed / len(asked)}))
