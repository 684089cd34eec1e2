"""Writes questions with their answers, and for half of them an answer that is worse. `python prepare.py`

Of chatterbot-corpus (BSD), a package. The worse answer is that of another question, of the same length and nearly so.
"""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import yaml

TEST, LONGEST = 60, 120  # rows, characters
_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    talks = pairs()
    random.Random(_SEED).shuffle(talks)
    half = len(talks) // 2
    told = [{"prompt": asked, "completion": answer} for asked, answer in talks[:half]]
    chosen = talks[half:]
    answers = sorted({answer for _, answer in chosen}, key=lambda each: (len(each), each))
    preferred = []
    for asked, answer in chosen:
        at, step = answers.index(answer), random.Random(f"{_SEED}{asked}").choice((-1, 1))
        other = answers[at + step if 0 <= at + step < len(answers) else at - step]
        preferred.append({"prompt": asked, "chosen": answer, "rejected": other})
    for name, rows in (("told", told), ("preferred", preferred)):
        write(folder / f"{name}-test.jsonl", rows[:TEST])
        write(folder / f"{name}-train.jsonl", rows[TEST:])


def pairs() -> list[tuple[str, str]]:
    package = find_spec("chatterbot_corpus")
    assert package and package.origin, "expect.yaml asks for it"
    found: dict[str, str] = {}
    for file in sorted((Path(package.origin).parent / "data" / "english").glob("*.yml")):
        for talk in yaml.safe_load(file.read_text())["conversations"]:
            asked, answer = str(talk[0]).strip(), str(talk[1]).strip()
            if asked and answer and len(asked) + len(answer) <= LONGEST:
                found.setdefault(asked, answer)
    return sorted(found.items())


def write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
