"""Asks for the answer to each question that was held out, among all answers that there are: recall at 1.

The endpoint makes vectors, and the nearest one counts. Beside it TF-IDF, which knows words; and, as a second part, how
far the same model comes that was not trained on the others' questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from llmsched import Client

DATA = Path(__file__).parent / "data"
AT_ONCE = 64


def main() -> None:
    learnt, asked = (
        [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    )
    questions, answers = [row["question"] for row in asked], [row["answer"] for row in (*asked, *learnt)]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(
        [text for row in learnt for text in row.values()] + answers
    )
    by_words = recall((words.transform(questions) @ words.transform(answers).T).toarray())
    found = {name: recall(vectors(name, questions) @ vectors(name, answers).T) for name in ("ask-api", "ask-untrained")}
    print(json.dumps({"part": "trained", "number": found["ask-api"], "baseline": by_words}))
    print(json.dumps({"part": "untrained", "number": found["ask-untrained"], "baseline": by_words}))


def recall(near: Any) -> float:
    """Of the k-th question the k-th answer is the right one."""
    return float((np.asarray(near).argmax(1) == np.arange(len(near))).mean())


def vectors(name: str, texts: list[str]) -> Any:
    chat = Client().chat(name)
    return np.array([each for at in range(0, len(texts), AT_ONCE) for each in chat.embed(texts[at : at + AT_ONCE])])


if __name__ == "__main__":
    main()
