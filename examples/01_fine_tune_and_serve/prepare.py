"""Writes the demo's data: film-review sentences with a sentiment, and dialogues of a support desk. `python prepare.py`

The texts come from packages that the set-up installed or downloaded (and checked); they are read here and never copied
into the repository. The same every time: split and order come from a fixed seed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

_SEED = 7
_HELD_OUT = 600
_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"  # id TAB mean human rating (-4..4) TAB sentence
_CLEAR = 1.0  # ratings nearer to zero than this are neither good nor bad
_TOPICS = ("tech_support",)


def prepare(folder: Path) -> list[Path]:
    """Write the three files into `folder`; returns their paths. SystemExit says what to run when data is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    reviews = _reviews(Path(sys.prefix, "share", "llmsched", _ARCHIVE))
    files = {
        "sentiment-train.jsonl": reviews[_HELD_OUT:],
        "sentiment-test.jsonl": reviews[:_HELD_OUT],
        "support-dialogues.jsonl": _dialogues(),
    }
    for name, rows in files.items():
        _write(folder / name, rows)
        labels = Counter(row["label"] for row in rows if "label" in row)
        balance = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        print(f"{name}: {len(rows)} rows{' (' + balance + ')' if balance else ''}")
    return [folder / name for name in files]


def _reviews(archive: Path) -> list[dict[str, str]]:
    """Sentences with a clear rating, each once, in a fixed random order."""
    if not archive.is_file():
        raise SystemExit(f"{archive} is missing: it holds the film reviews. `llmsched demo` fetches it.")
    packed = archive.read_bytes()
    if hashlib.sha256(packed).hexdigest() != _ARCHIVE_SHA256:
        raise SystemExit(
            f"{archive} is not the file expected (its SHA-256 differs). Delete it and run `llmsched demo`."
        )
    inner = _member(io.BytesIO(packed), _INNER)
    lines = _member(io.BytesIO(inner), _REVIEWS).decode("latin-1").splitlines()
    rated = {text: float(rating) for _, rating, text in (line.split("\t", 2) for line in lines)}
    rows = [
        {"text": text.strip(), "label": "positive" if rating > 0 else "negative"}
        for text, rating in rated.items()
        if abs(rating) >= _CLEAR
    ]
    random.Random(_SEED).shuffle(rows)
    return rows


def _member(packed: io.BytesIO, name: str) -> bytes:
    with tarfile.open(fileobj=packed) as archive:
        stream = archive.extractfile(name)
        assert stream is not None  # a file, by the archive's hash
        return stream.read()


def _dialogues() -> list[dict[str, Any]]:
    """Question and answer pairs as chats, each once."""
    found = importlib.util.find_spec("chatterbot_corpus")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "the package chatterbot-corpus is missing: it holds the dialogues. `llmsched demo` fetches it."
        )
    root = Path(found.submodule_search_locations[0], "data", "english")
    pairs: dict[tuple[str, str], None] = {}
    for topic in _TOPICS:
        document = yaml.safe_load((root / f"{topic}.yml").read_bytes())
        pairs |= {(str(question), str(answer)): None for question, answer, *_ in document["conversations"]}
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    random.Random(_SEED).shuffle(rows)
    return rows


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
