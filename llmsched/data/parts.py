"""A data set in parts: so many rows of one file each, which are read, and answered, one by one.

`count` reads every file once to know how many rows it has; of a table it asks the file. A part is named by its file and
by the rows before it, so it means the same rows for as long as its file stays as it is. Of a data set that grows
(`growth.py`) a file may be a stretch of lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from llmsched.data import tables
from llmsched.data.files import DataFile, find, splits_of
from llmsched.data.media import folder_of
from llmsched.data.rows import Changed, DataError
from llmsched.data.tables import Numbered

_MARKED = 4096  # bytes at either end of a file, by which another one under its name is told
FILES_ASKED = 100  # for the names of their columns


class File(NamedTuple):
    """`name` is below the data set's folder. `rows` counts those that cannot be read too. A stretch of lines begins at
    byte `offset`, after `lines` lines, has `new_lines`, and ends at byte `size`; a whole file has None for `lines`.
    `since` is when its rows may have come at the earliest (Unix time), where somebody looks for new ones; `why` it
    cannot be read, if so. By `marks` another file under its name is told from one that has only grown."""

    name: str
    rows: int
    size: int
    lines: int | None = None
    offset: int = 0
    since: float = 0.0
    why: str = ""
    new_lines: int = 0
    marks: str = ""


class Part(NamedTuple):
    """`rows` rows of the file at `file` in the list of files, after the first `start`."""

    number: int
    file: int
    start: int
    rows: int


def check_split(place: Path, path: str, split: str | None) -> None:
    """Raises DataError for a split of what has none: of a folder names say which file is of which."""
    if split is not None and not place.is_dir():
        raise DataError(f"data set {path}: split {split!r} is of a folder of several, and this is none; leave it out")
    if split is not None and not splits_of(place):
        raise DataError(
            f"data set {path}: split {split!r} is of files whose names say of which split they are, such as "
            "test.jsonl, and none here does; leave it out"
        )


def count(place: Path, path: str, *, encoding: str | None = None, split: str | None = None) -> list[File]:
    """The files of `place`, which messages call `path`, in the order of their names. Raises DataError."""
    folder, counted = folder_of(place), []
    try:
        for file in find(place, split):
            name = str(file.path.relative_to(folder))
            size = file.path.stat().st_size
            marks = marks_of(file.path, size)
            counted.append(File(name, rows_of(file, encoding), size, marks=marks))
    except DataError as error:
        raise DataError(f"data set {path}: {error}") from error
    if not any(file.rows for file in counted):
        raise DataError(f"data set {path}: no rows")
    return counted


def marks_of(path: Path, size: int) -> str:
    """Of the first `size` bytes, however much comes after them. Raises OSError."""
    with path.open("rb") as stream:
        first = stream.read(min(size, _MARKED))
        stream.seek(max(0, size - _MARKED))
        return hashlib.sha256(first + stream.read(min(size, _MARKED))).hexdigest()[:16]


def cut(files: Sequence[File], rows: int, first: int = 0, number: int = 0) -> list[Part]:
    """Parts of at most `rows` rows, in the order of the rows. None reaches into a second file. Those of the files from
    `first` on get the numbers from `number` on."""
    places = [(index, start) for index in range(first, len(files)) for start in range(0, files[index].rows, rows)]
    return [
        Part(each, index, start, min(rows, files[index].rows - start))
        for each, (index, start) in enumerate(places, number)
    ]


class Reader:
    """Reads parts in any order. Cheapest in their own: a file is gone on with where its last part ended."""

    def __init__(self, place: Path, files: Sequence[File], encoding: str | None = None) -> None:
        self._folder, self.files, self._encoding = folder_of(place), files, encoding
        self._file, self._at = -1, 0
        self._rows: Iterator[Numbered] = iter(())

    def read(self, part: Part) -> Iterator[Numbered]:
        """(number in the file, row or Bad) of each row of the part. Raises DataError; also when there are fewer."""
        if part.file != self._file or part.start < self._at:
            self._rows = self._begun(self.files[part.file])
            self._file, self._at = part.file, 0
        for _ in islice(self._rows, part.start - self._at):
            pass
        self._at = part.start
        for numbered in islice(self._rows, part.rows):
            self._at += 1
            yield numbered
        if self._at < part.start + part.rows:
            raise Changed(f"{self.files[part.file].name} has {self._at:,} rows, and had more before")

    def _begun(self, file: File) -> Iterator[Numbered]:
        found = find(self._folder / file.name)[0]
        encoding = self._encoding or tables.encoding_of(found)
        if file.lines is None:
            return tables.read(found, encoding)
        return tables.between(found, file.offset, file.size, file.lines, encoding)


def named_in(place: Path, files: Sequence[File], encoding: str | None = None) -> dict[str, None]:
    """The names of the columns in the first row of each of the first FILES_ASKED files. Raises DataError."""
    reader = Reader(place, files, encoding)
    firsts = [Part(0, index, 0, 1) for index, file in enumerate(files[:FILES_ASKED]) if file.rows]
    rows = [row for part in firsts for _, row in reader.read(part)]
    return dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)


def rows_of(file: DataFile, encoding: str | None) -> int:
    """Raises DataError."""
    if tables.tells_its_rows(file):
        return tables.rows_of_parquet(file)
    return sum(1 for _ in tables.read(file, encoding or tables.encoding_of(file)))
