"""What 104 labels teach with texts that have none, beside the labels alone, and what a simple program makes of them."""

from __future__ import annotations

import json
from pathlib import Path

from llmsched import Client

DATA = Path(__file__).parent / "data"


def main() -> None:
    client = Client()
    found = {name: client.status(f"few-{name}").metrics["eval.accuracy"] for name in ("alone", "after", "together")}
    for part, name in (("masked-lm", "after"), ("multi-task", "together")):
        print(json.dumps({"part": part, "number": found[name], "baseline": found["alone"]}))
    print(json.dumps({"part": "best", "number": max(found.values()), "baseline": by_letters()}))


def by_letters() -> float:
    """Accuracy of logistic regression on pieces of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    few, test = (read(name) for name in ("few", "test"))
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))
    model = LogisticRegression(max_iter=1000, C=10).fit(
        pieces.fit_transform([row["text"] for row in few]), [row["label"] for row in few]
    )
    return float(model.score(pieces.transform([row["text"] for row in test]), [row["label"] for row in test]))


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
