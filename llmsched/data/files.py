"""From what a spec names (a file, a folder, a pattern) to the data files that are meant, and their bytes.

A kind is known by its suffix in any case, beside one of compression, and else by the first bytes. Of a folder every
file with a known suffix counts, in the order of names; where names say of which split they are, those of the split
asked for.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llmsched.data.rows import DataError, NothingThere

KINDS: dict[str, tuple[str, ...]] = {
    "json": (".jsonl", ".json", ".ndjson", ".jsonlines", ".jl"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather"),
    "txt": (".txt", ".text"),
}
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_BY_SUFFIX = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
_NO_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # beside the files of `datasets`
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
SPLITS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT = re.compile(rf"(?:^|[-_./ 0-9])({'|'.join(SPLITS)})(?:[-_./ 0-9]|$)", re.IGNORECASE)
_LOOK = 4096
_IS_PATTERN = re.compile(r"[*?\[]")


class DataFile(NamedTuple):
    path: Path
    kind: str  # of KINDS
    compression: str | None

    @property
    def name(self) -> str:
        return self.path.name


def is_pattern(path: str) -> bool:
    """`data/*.jsonl` and the like, unless a file has that very name."""
    return bool(_IS_PATTERN.search(path)) and not Path(path).exists()


def before_wildcard(pattern: str) -> str:
    """What all that match begin with."""
    return _IS_PATTERN.split(pattern, maxsplit=1)[0]


def find(path: Path, split: str | None = None, aside: dict[Path, str] | None = None) -> list[DataFile]:
    """The data files of a file, a folder or a pattern, in the order of their names. Raises DataError; with `aside` not
    for a file of which nobody can tell the kind: that is put there, with what is wrong with it."""
    if is_pattern(str(path)):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207  the pattern may be absolute
        matched = sorted(map(Path, names))
        files = [each for each in matched if each.is_file()]
        if not files:
            raise NothingThere(f"no file matches {path}")
        return _kinds_of(files, aside)
    if not path.is_dir():
        return _kinds_of([path], aside)
    known = [each for each in sorted(path.rglob("*")) if each.is_file() and _is_data(each.relative_to(path))]
    if not known:
        expected = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
        raise NothingThere(
            f"no data file in the folder {path}; expected names that end in {expected}, or these with .gz or .zst"
        )
    return [_kind_of(each) for each in _of_split(path, known, split)]


@contextmanager
def opened(file: DataFile) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as they are read."""
    import pyarrow

    raw = pyarrow.input_stream(str(file.path), compression=file.compression)
    with io.BufferedReader(raw, 1 << 20) as stream:
        yield stream


def _is_data(name: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.parts)
    return not hidden and name.name not in _NO_DATA and _by_name(name) is not None


def _by_name(name: Path) -> tuple[str, str | None] | None:
    suffixes = [suffix.lower() for suffix in name.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    inner = suffixes[:-1] if compression else suffixes
    kind = _BY_SUFFIX.get(inner[-1]) if inner else None
    return (kind, compression) if kind else None


def _kinds_of(paths: list[Path], aside: dict[Path, str] | None) -> list[DataFile]:
    found = []
    for path in paths:
        try:
            found.append(_kind_of(path))
        except (DataError, OSError) as error:
            if aside is None or not path.is_file():  # a folder that is away just now is no file that is wrong
                raise
            aside[path] = str(error) if isinstance(error, DataError) else f"cannot be read: {error.strerror or error}"
    return found


def _kind_of(path: Path) -> DataFile:
    if known := _by_name(path):
        return DataFile(path, *known)
    compression = COMPRESSIONS.get(path.suffix.lower())
    with opened(DataFile(path, "", compression)) as stream:
        first = stream.read(_LOOK).removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, kind in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"{", "json"), (b"[", "json")):
        if first.startswith(beginning):
            return DataFile(path, kind, compression)
    expected = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
    raise DataError(
        f"cannot read {path.suffix or path.name!r}; expected {expected}, or these with .gz, .zst, .bz2 or .lz4"
    )


def splits_of(place: Path) -> set[str]:
    """Those of which the names in a folder say that files are."""
    found = sorted(place.rglob("*")) if place.is_dir() else []
    names = [each.relative_to(place) for each in found if each.is_file()]
    return {split for each in names if _is_data(each) and (split := _split_of(each))}


def same_rows(place: Path, path: str, split: str, other: str) -> str:
    """What to say of two splits of `place`, which the spec calls `path`, that read the same file; "". Raises
    DataError."""
    if not {file.path for file in find(place, split)} & {file.path for file in find(place, other)}:
        return ""
    return (
        f'"{split}" and "{other}" are the same rows: {path} has no splits, which are files whose names say so, such as '
        f'train.jsonl and {split}.jsonl. Name a file of its own, or hold a part out by "evaluation: {{fraction: 0.1}}"'
    )


def split_named(split: str) -> str:
    """As `splits_of` has it: "val" is "validation"."""
    return SPLITS.get(split.lower(), split)


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """A folder that holds several splits by their names: the files of the one that is asked for. A folder that says
    nothing of splits is of the one that is asked for, whatever that is."""
    named = {each: _split_of(each.relative_to(folder)) for each in files}
    there = {one for one in named.values() if one}
    wanted = split and split_named(split)
    if wanted is None or not there or (len(there) == 1 and wanted == "train"):  # where nothing is said it is "train"
        return files
    if there == {wanted}:
        return files
    chosen = [each for each in files if named[each] == wanted]
    if not chosen:
        raise NothingThere(
            f"the folder {folder} has files of the splits {', '.join(sorted(there))}, and none of {split!r}"
        )
    return chosen


def _split_of(name: Path) -> str | None:
    found = _SPLIT.search(str(name.parent / name.name.partition(".")[0]))
    return SPLITS[found[1].lower()] if found else None
