"""Asks the endpoint about the digits that were held out; logistic regression sees the same ones."""

import base64
import json
from pathlib import Path

from prepare import HELD_OUT
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from llmsched import Client

data = Path(__file__).parent / "data"
rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
images = [{"image": base64.b64encode((data / row["image"]).read_bytes()).decode()} for row in rows]
said = Client().chat("see-api").classify(images)
right = sum(each["label"] == row["label"] for each, row in zip(said, rows, strict=True))

digits = load_digits()
simple = LogisticRegression(max_iter=2000).fit(digits.data[:-HELD_OUT] / 16, digits.target[:-HELD_OUT])
baseline = simple.score(digits.data[-HELD_OUT:] / 16, digits.target[-HELD_OUT:])
print(json.dumps({"number": right / len(rows), "baseline": baseline}))
