"""Writes questions with their answers, of the topics of chatterbot-corpus (BSD). `python prepare.py`

Each line of {"question", "answer"}: English, of tech support, money, health, science, trivia ... A question that has
several answers in the corpus has the first. A fifth of the questions is held out.
"""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = sorted(pairs().items())
    random.Random(_SEED).shuffle(known)
    held_out = len(known) // 5
    for name, part in (("test", known[:held_out]), ("train", known[held_out:])):
        rows = [{"question": question, "answer": answer} for question, answer in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs() -> dict[str, str]:
    import yaml

    found = find_spec("chatterbot_corpus")
    assert found and found.origin, "chatterbot-corpus is missing: `bash .ci/setup` installs it"
    known: dict[str, str] = {}
    for file in sorted((Path(found.origin).parent / "data" / "english").glob("*.yml")):
        for said in yaml.safe_load(file.read_text())["conversations"]:
            question, *answers = [str(each).strip() for each in said]
            if answers and answers[0] and answers[0] not in known.values():
                known.setdefault(question, answers[0])
    return known


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
