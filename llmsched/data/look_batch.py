"""A look at the input of a batch before anything is taken for it: is it there, has it the columns, how much is it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsched.data import files, look, look_contents, media, parts, questions, reading, schemas, tables
from llmsched.data.messages import Unusable
from llmsched.data.rows import BadRows, Counted, DataError, NothingThere

COUNTED_BYTES = 64 << 20  # of texts, whose rows are counted by reading them; a table says how many it has


def look_at_batch(
    batch: Mapping[str, Any], folder: Path | None, *, is_complete: bool, begins: bool = False
) -> dict[str, list[str]]:
    """{"errors", "notes"} of a `batch` section, as `look.look` has it. The first note says how much is read. `begins`:
    it is a new run, whose output is to be empty; one that goes on has written there itself."""
    said = _input(batch, folder, is_complete=is_complete)
    schema = schemas.flaw(batch.get("args") or {}) if batch.get("model") else ""
    wrong = [*said["errors"], *([f"batch.args.response_format: {schema}"] if schema else [])]
    return {"errors": [*wrong, *(_output(batch) if begins else ())], "notes": said["notes"]}


def _input(batch: Mapping[str, Any], folder: Path | None, *, is_complete: bool) -> dict[str, list[str]]:
    path = batch["input"]["path"]
    place = look.place_of(path, folder)
    if place is None:
        return {"errors": [], "notes": []}
    if not files.is_pattern(str(place)) and not place.exists():
        wrong = [f"batch.input.path: {look.missing(path, place)}"] if is_complete or look.is_of_a_hub(path) else []
        return {"errors": wrong, "notes": []}
    try:
        return {"errors": [], "notes": _looked(batch, place, folder)}
    except NothingThere as error:
        if batch.get("follow"):
            return {"errors": [], "notes": [f"{error}; it begins with what comes, and goes on for ever"]}
        return {"errors": [f"batch.input: {error}"], "notes": []}
    except DataError as error:
        return {"errors": [f"batch.input: {error}"], "notes": []}


def _looked(batch: Mapping[str, Any], place: Path, folder: Path | None) -> list[str]:
    """Raises DataError for what the run would be refused for, as far as the first rows show it."""
    given = batch["input"]
    path, encoding, split = given["path"], given.get("encoding"), given.get("split")
    parts.check_split(place, path, split)
    bad = BadRows(path, given.get("on_bad_row") or "skip")
    first = reading.read(place, path, bad, encoding=encoding, split=split, limit=look_contents.FIRST_ROWS)
    kept = len(first)
    there = dict.fromkeys(name for row in first for name in row)
    if missing := [name for name in batch.get("keep") or [] if name not in there]:
        counted = parts.count(place, path, encoding=encoding, split=split)
        questions.check_keep(missing, there | parts.named_in(place, counted, encoding), path)
    if not batch.get("map"):
        task = batch.get("task") or "causal-lm"
        columns = questions.columns_of(task, there, given.get("columns") or {}, path)
        beginning, base = media.folder_of(place), look_contents.Base(look.place_of(batch["model"], folder), task)
        for row, where in zip(first, first.places, strict=True):
            try:
                asked = questions.question(row, columns, task)
                look_contents.check_media(asked, media.beside(beginning, where.file), base)
            except Unusable as error:
                bad.add(where, str(error))
                kept -= 1
    noted = (*first.notes, *bad.settle(kept))
    noticed = [f"in the first rows of {note}" for note in noted if isinstance(note, Counted)]
    follows = ["it goes on for ever with what is added: llmsched cancel ends it"] if batch.get("follow") else []
    return [_how_much(place, path, encoding, split), *follows, *noticed]


def _output(batch: Mapping[str, Any]) -> list[str]:
    """Nothing where nobody here may look."""
    place = look.place_of(batch.get("output") or "s3://", None)
    if place is None:
        return []
    there: list[str] = []
    with suppress(OSError):
        if file := next((each for each in (place, *place.parents) if each.is_file()), None):
            what = "a file" if file == place else f"in {file}, which is a file"
            return [f"batch.output {batch['output']} is {what}: name a folder"]
        there = sorted(each.name for each in place.iterdir())
    return [wrong] if (wrong := in_the_way(str(batch.get("output")), there)) else []


def in_the_way(output: str, there: Sequence[str]) -> str:
    """What to say of an output folder with these names in it, which would be mixed with what a new run writes; ""."""
    names = [name for name in there if not name.startswith(".")]
    if not names:
        return ""
    more = f" and {len(names) - 1:,} more files" if len(names) > 1 else ""
    return (
        f"batch.output {output} is not empty: it has {names[0]}{more}. Name a folder of its own for each run, or leave "
        "output out: then the answers are the result of the run"
    )


def _how_much(place: Path, path: str, encoding: str | None, split: str | None) -> str:
    found = files.find(place, split)
    size = sum(file.path.stat().st_size for file in found)
    words = f"reads {len(found):,} file{'s' if len(found) > 1 else ''}"
    texts = sum(file.path.stat().st_size for file in found if not tables.tells_its_rows(file))
    if texts <= COUNTED_BYTES:
        counted = parts.count(place, path, encoding=encoding, split=split)
        words += f", {sum(file.rows for file in counted):,} rows"
    return f"{words}, {_size(size)}"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
