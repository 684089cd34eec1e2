"""Rows of a data set: jsonl, json, csv, tsv, parquet or txt, with the user's columns mapped to roles.

Roles are what a task asks for: text, text_pair, label, target, messages. `columns` says which field plays which; a role
that is not named is looked up under its own name and a few usual ones. Nothing here knows a model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.sources import BadInput, resolve_path

Row = dict[str, Any]

_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "prompt", "sentence"),
    "text_pair": ("text_pair",),
    "label": ("label",),
    "target": ("target", "completion", "response"),
    "messages": ("messages", "conversations"),
}


def load(
    path: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows as {role: value}, in file order; a folder gives its files in name order.

    Raises BadInput: no such file, unreadable (with the line), empty, or a column missing (with those that are there).
    """
    place = resolve_path(path, inputs)
    files = sorted(file for file in place.iterdir() if file.suffix in _READERS) if place.is_dir() else [place]
    raw = [row for file in files for row in _read(file, path)]
    if not raw:
        raise BadInput(f"data set {path}: no rows")
    fields = _fields_of(raw, required, optional, columns or {}, path)
    rows = [{role: row.get(field) for role, field in fields.items()} for row in raw]
    for number, row in enumerate(rows, 1):
        for role in required:
            if row[role] is None or row[role] == "":
                raise BadInput(f"data set {path}: row {number} has no {fields[role]!r} (the {role})")
    return rows


def _fields_of(
    raw: Sequence[Row], required: Sequence[str], optional: Sequence[str], columns: Mapping[str, str], path: str
) -> dict[str, str]:
    """Which field plays which role, judged by the first row."""
    found = list(raw[0])
    fields: dict[str, str] = {}
    for role in (*required, *optional):
        named = columns.get(role)
        field = named or next((name for name in _USUAL_NAMES.get(role, (role,)) if name in found), None)
        if field in found:
            fields[role] = str(field)
        elif role in required or named:
            raise BadInput(
                f"data set {path}: no column {field or role!r} for the role {role!r}; found: {', '.join(found)}. "
                f"Say which it is with columns: {{{role}: ...}}"
            )
    return fields


def _read(file: Path, path: str) -> Iterable[Row]:
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise BadInput(f"data set {path}: cannot read {file.suffix or file.name!r}; expected {', '.join(_READERS)}")
    try:
        rows = reader(file)
    except BadInput as error:
        raise BadInput(f"data set {path}: {error}") from error
    except (ValueError, OSError, csv.Error) as error:
        raise BadInput(f"data set {path}: {file.name} cannot be read: {error}") from error
    if bad := next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise BadInput(f"data set {path}: row {bad} of {file.name} is not an object with named fields")
    return rows


def _jsonl(file: Path) -> list[Any]:
    rows = []
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise BadInput(f"line {number} of {file.name} is not JSON ({error})") from error
    return rows


def _json(file: Path) -> list[Any]:
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise BadInput(f"{file.name} is not a list of objects")
    return rows


def _table(delimiter: str) -> Callable[[Path], list[Any]]:
    def read(file: Path) -> list[Any]:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream, delimiter=delimiter, strict=True))

    return read


def _parquet(file: Path) -> list[Any]:
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(file).to_pylist())


def _txt(file: Path) -> list[Any]:
    """One row a line that is not blank."""
    return [{"text": line} for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


_READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".txt": _txt,
}
