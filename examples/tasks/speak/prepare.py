"""Chooses the sentences that are spoken, of chatterbot-corpus (BSD), a package. `python prepare.py`"""

from __future__ import annotations

import json
import random
import re
from importlib.util import find_spec
from pathlib import Path

import yaml

SENTENCES, WORDS = 20, range(6, 11)
_SEED = 7


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    package = find_spec("chatterbot_corpus")
    assert package and package.origin, "expect.yaml asks for it"
    found = set()
    for file in sorted((Path(package.origin).parent / "data" / "english").glob("*.yml")):
        for talk in yaml.safe_load(file.read_text())["conversations"]:
            found |= {text for text in map(str, talk) if re.fullmatch(r"[A-Z][a-z' ,]+[.?]", text)}
    chosen = sorted(text for text in found if len(text.split()) in WORDS)
    random.Random(_SEED).shuffle(chosen)
    (folder / "sentences.json").write_text(json.dumps(chosen[:SENTENCES]))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
