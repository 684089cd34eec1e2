"""Whole data sets: the files that a path means, read one after the other."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from llmsched.data import tables
from llmsched.data.files import find
from llmsched.data.media import folder_of
from llmsched.data.rows import Bad, BadRows, DataError, NothingThere, Place, Rows


def read(
    place: Path,
    path: str,
    bad: BadRows,
    *,
    encoding: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Rows:
    """The rows of the file, folder or pattern `place`, which messages call `path`; `limit`: so many of each file.

    A row's place names its file from the data set's folder on. Rows that cannot be read go to `bad`. Raises
    DataError."""
    rows, folder = Rows(), folder_of(place)
    try:
        files = find(place, split)
        for file in files:
            name = str(file.path.relative_to(folder))
            texts = encoding or tables.encoding_of(file)
            if encoding is None and not texts.startswith("utf"):
                rows.notes.append(f"{path}: {name} is not UTF-8: it was read as {texts} (encoding: says another)")
            for number, row in islice(tables.read(file, texts, rows.class_names), limit):
                if isinstance(row, Bad):
                    bad.add(Place(name, number), row.why)
                elif not isinstance(row, dict):
                    bad.add(Place(name, number), "is not an object with named fields")
                else:
                    rows.add(row, Place(name, number))
    except DataError as error:
        raise type(error)(f"data set {path}: {error}") from error
    if len(files) > 1:
        rows.notes.append(f"{path}: {len(files)} files, {files[0].name} to {files[-1].name}")
    rows.notes += bad.settle(len(rows))
    if not rows:
        raise NothingThere(f"data set {path}: no rows")
    return rows
