"""Rows of a data set, wherever it lies, as a fine-tuning wants them. Reading and formats are `llmsched.data`'s.

Roles are what a task asks for: text, text_pair, label ...; `columns` says which field plays which, and a role that is
not named is looked up under its own name and a few usual ones. `hf://ORG/NAME` is read by the library `datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched.data import files, formats, media, reading
from llmsched.data.messages import Unusable
from llmsched.data.rows import BadRows, DataError, Place, Row, Rows
from llmsched.data.tables import without_fillers
from llmsched.data.tasks import Kind
from workloads.sources import BadInput, from_s3, resolve_path

__all__ = ["BadRows", "Place", "Row", "Rows", "conversations", "load", "raw", "roles"]


def load(
    path: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Rows:
    """Rows as {role: value}, in file order; a folder gives its files in name order, a pattern those that match.

    Raises BadInput: no such file, unreadable (with the row), empty, or a column missing (with those that are there)."""
    kind = Kind("", (*required, *(f"{role}?" for role in optional)), None, {}, ())
    return roles({"path": path, "columns": columns}, kind, inputs)[0]


def roles(
    dataset: Mapping[str, Any],
    kind: Kind,
    inputs: Mapping[str, str] | None,
    check: Callable[[Row, Rows], Row] = lambda row, rows: row,
) -> tuple[Rows, BadRows]:
    """Rows of a task as {role: value}, as `check` (which may raise Unusable) gives them, in file order; and the bad
    ones, to which a task may add. Raises BadInput: no such file, unreadable (with the row), empty, a column missing."""
    bad = BadRows(dataset["path"], dataset.get("on_bad_row") or "refuse")
    good = Rows()
    try:
        rows = raw(dataset, inputs, bad)
        columns, folder = dataset.get("columns") or {}, media.folder_of(_root(dataset["path"], inputs))
        chosen = formats.roles(rows, kind.required, kind.optional, columns, dataset["path"], bad, kind.names)
        for row, place in zip(chosen, chosen.places, strict=True):
            try:
                for role in media.ROLES & row.keys():
                    row[role] = media.of_row(row[role], media.beside(folder, place.file), role)
                good.add(check(row, chosen), place)
            except Unusable as error:
                bad.add(place, str(error))
        good.class_names = chosen.class_names
        good.notes = [*chosen.notes[:-1], f"{dataset['path']}: {chosen.notes[-1]}", *bad.settle(len(good))]
        return good, bad
    except DataError as error:
        raise BadInput(str(error)) from error


def conversations(
    dataset: Mapping[str, Any], inputs: Mapping[str, str] | None, pairs: bool = False
) -> tuple[Rows, BadRows]:
    """What a language model learns from each row: {"messages", "tools"?}, {"text", "target"} or {"text"}, or `pairs` of
    such: {"chosen", "rejected"}; and the bad rows of this data set, to which a tokenizer may add. Raises BadInput."""
    given = dataset.get("format") or "auto"
    bad = BadRows(dataset["path"], dataset.get("on_bad_row") or "refuse")
    if given != "auto" and given not in formats.FORMATS:
        raise BadInput(f"data set {dataset['path']}: format {given!r}; expected auto, {', '.join(formats.FORMATS)}")
    try:
        rows = raw(dataset, inputs, bad)
        columns, path = dataset.get("columns") or {}, dataset["path"]
        made = (
            formats.preferences(rows, columns, path, bad)
            if pairs
            else formats.converted(rows, given, columns, path, bad)
        )
        made.notes += bad.settle(len(made))
        return made, bad
    except DataError as error:
        raise BadInput(str(error)) from error


def raw(dataset: Mapping[str, Any], inputs: Mapping[str, str] | None, bad: BadRows) -> Rows:
    """Rows as they stand in the files. Raises DataError, BadInput."""
    path = dataset["path"]
    if path.startswith("hf://"):
        return _from_hub(dataset)
    return reading.read(place_of(path, inputs), path, bad, encoding=dataset.get("encoding"), split=dataset.get("split"))


def place_of(path: str, inputs: Mapping[str, str] | None) -> Path:
    """A local file, folder or pattern. Of a pattern, what begins like it is fetched, up to its first wildcard."""
    plain = path.removeprefix("file://")
    if not files.is_pattern(plain):
        return resolve_path(path, inputs)
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if files.is_pattern(part))
    above, pattern = "/".join(parts[:first]), "/".join(parts[first:])
    if path.startswith("s3://"):
        return from_s3(above, files.before_wildcard(pattern)) / pattern
    return resolve_path(above or ("/" if path.startswith("/") else "."), inputs) / pattern


def check_apart(datasets: Sequence[Mapping[str, Any]], split: str, inputs: Mapping[str, str] | None) -> None:
    """Raises BadInput where rows of `split` are those of another one, too. Of what `plan` sees, it says so before."""
    for each in datasets:
        path = each["path"]
        others = [one.get("split", "train") for one in datasets if one["path"].rstrip("/") == path.rstrip("/")]
        other = next((one for one in others if one != split), None)
        if each.get("split", "train") != split or other is None or path.startswith("hf://"):
            continue
        try:
            wrong = files.same_rows(place_of(path, inputs), path, split, other)
        except DataError as error:
            raise BadInput(f"data set {path}: {error}") from error
        if wrong:
            raise BadInput(f"datasets: {wrong}")


def _root(path: str, inputs: Mapping[str, str] | None) -> Path:
    return Path() if path.startswith("hf://") else place_of(path, inputs)


def _from_hub(dataset: Mapping[str, Any]) -> Rows:
    """`hf://ORG/NAME[@REVISION]`, or a file or pattern in it: `hf://ORG/NAME/data/*.parquet`."""
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            f"data set {dataset['path']}: hf:// needs `pip install 'llmsched[data]'` on every node"
        ) from error
    rest, _, revision = dataset["path"].removeprefix("hf://").removeprefix("datasets/").partition("@")
    name, files_in_it = "/".join(rest.split("/")[:2]), "/".join(rest.split("/")[2:])
    split = dataset.get("split") or "train"
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            name,
            dataset.get("subset"),
            split="train" if files_in_it else split,
            revision=revision or None,
            data_files=files_in_it or None,
        )
    except Exception as error:  # the library's and the hub's errors have many bases: all mean "not to be had"
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        why = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        )
        raise BadInput(f"data set {dataset['path']}: {why}{' (HF_HUB_OFFLINE is set)' if offline else ''}") from error
    rows = Rows()
    for number, row in enumerate(found, 1):
        rows.add({key: without_fillers(value) for key, value in row.items()}, Place(f"{name} ({split})", number))
    for column, feature in found.features.items():
        if names := getattr(feature, "names", None):
            rows.class_names[column] = list(names)
    if not rows:
        raise DataError(f"data set {dataset['path']}: no rows")
    return rows
