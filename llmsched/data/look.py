"""A look at the data of a training before anything is taken for it: is the file there, has it the columns, is it read.
At that of a batch: `look_batch.py`.

The first rows of each file are read, or all where they are few. A controller does that in a process of its own, with
this module as its program, so that no file of a user harms it. Of what lies elsewhere (s3://, hf://, another node)
nothing is said.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from llmsched.data import files, formats, look_contents, media, reading
from llmsched.data.labels import Read
from llmsched.data.rows import BadRows, Counted, DataError, Rows
from llmsched.data.tasks import DISTILL, KINDS

_OF_A_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def look(
    train: Mapping[str, Any], folder: Path | None, *, is_complete: bool, of: Collection[int] | None = None
) -> dict[str, list[str]]:
    """{"errors", "notes"} of the data sets of a `train` section. Relative paths begin at `folder`; None: they are left
    out, as is a path that is not here unless `is_complete`: everything that a worker sees is here. `of`: by their
    places, those of the data sets that may be looked at; None: all."""
    errors: list[str] = []
    notes: list[str] = []
    task = train.get("task", "causal-lm")
    errors += [f"train.base_model: {each}" for each in lacking(train.get("base_model"), task, folder)]
    if wrong := _taught_otherwise(train.get("teacher"), task, folder):
        errors.append(f"train.teacher: {wrong}")
    read: dict[int, Read] = {}
    for index, dataset in enumerate(train.get("datasets") or ()):
        place = place_of(dataset["path"], folder)
        if place is None or (of is not None and index not in of):
            continue
        if wrong := _learnt_too(train, index, place, folder):
            errors.append(f"train.datasets.{index}.split: {wrong}")
            continue
        there = files.is_pattern(str(place)) or place.exists()
        if not there:
            if is_complete or is_of_a_hub(dataset["path"]):
                errors.append(f"train.datasets.{index}.path: {missing(dataset['path'], place)}")
            continue
        try:
            rows, noted = _first_rows(train, dataset, place, folder)
            is_whole = look_contents.limit_of(place, dataset.get("split")) is None
            notes += (
                noted
                if is_whole
                else [f"in the first rows of {each}" if isinstance(each, Counted) else each for each in noted]
            )
            if is_whole:
                read[index] = (dataset, rows, BadRows(dataset["path"]))
        except DataError as error:
            if not files.is_pattern(str(place)) or is_complete:
                errors.append(f"train.datasets.{index}: {error}")
    try:
        notes += _labels(train, read, folder)
    except DataError as error:
        errors.append(f"train.datasets: {error}")
    return {"errors": errors, "notes": notes}


def _learnt_too(train: Mapping[str, Any], index: int, place: Path, folder: Path | None) -> str:
    """What to say of rows of one split that are those of another one, too; ""."""
    sets = train["datasets"]
    path, split = sets[index]["path"], sets[index].get("split", "train")
    others = [each.get("split", "train") for each in sets[:index] if place_of(each["path"], folder) == place]
    other = next((each for each in others if each != split), None)
    with suppress(DataError, OSError):  # who reads it says so
        return files.same_rows(place, path, split, other) if other is not None else ""
    return ""


def _labels(train: Mapping[str, Any], read: Mapping[int, Read], folder: Path | None) -> list[str]:
    """Notes of the labels of all data sets, where all rows that are learnt were read. Raises DataError."""
    task = train.get("task", "causal-lm")
    sets = {index: each for index, each in enumerate(train.get("datasets") or ()) if each.get("task") in (None, task)}
    learnt = [index for index, each in sets.items() if each.get("split", "train") == "train"]
    module = _module_of(task, train.get("objective"))
    if train.get("objective") == DISTILL or not learnt or not read.keys() >= {*learnt}:
        return []
    others = [read[index] for index in sets if index in read and index not in learnt]
    base = look_contents.Base(place_of(train["base_model"], folder), task)
    return look_contents.check_labels(module, [read[index] for index in learnt], others, base)


def _module_of(task: str, objective: str | None) -> str:
    learns = KINDS[task].learns
    return learns.get(objective or "") or next(iter(learns.values()), "")


def place_of(source: str, folder: Path | None) -> Path | None:
    """Where a source would lie on this machine; None: not on a disk, or nobody here knows from where to count. Of a
    package, which others may have where this machine has not: where it lies, if it is here."""
    if source.startswith("package:"):
        return _in_a_package(source)
    if source.startswith("file://"):
        source = unquote(urlsplit(source).path)
    if re.match(r"[a-z][a-z0-9+.-]*:", source):
        return None
    path = Path(source).expanduser()
    return path if path.is_absolute() else None if folder is None else folder / path


def _in_a_package(source: str) -> Path | None:
    name, _, inner = source.removeprefix("package:").strip("/").partition("/")
    found = find_spec(name) if name.isidentifier() else None  # finds, does not import
    roots = (found.submodule_search_locations if found else None) or ()
    places = [Path(root, inner) for root in roots] if ".." not in PurePosixPath(inner).parts else []
    return next((place for place in places if place.exists()), None)


def is_of_a_hub(source: str) -> bool:
    """`org/name`, as the hub writes it, where a path is meant."""
    return bool(_OF_A_HUB.fullmatch(source)) and not source.endswith(tuple(sum(files.KINDS.values(), ())))


def missing(source: str, place: Path) -> str:
    """What to say of a path that leads nowhere."""
    hub = f"; of the hub it is hf://{source}" if is_of_a_hub(source) else ""
    return f"no such file or folder: {source} (looked for {place}){hub}"


def _first_rows(
    train: Mapping[str, Any], dataset: Mapping[str, Any], place: Path, folder: Path | None
) -> tuple[Rows, Sequence[str]]:
    """Those that can be learnt, and notes. Raises DataError for what the run would be refused for, as far as the rows
    that are read show it."""
    path, columns = dataset["path"], dataset.get("columns") or {}
    bad = BadRows(path, dataset.get("on_bad_row") or "refuse")
    limit = look_contents.limit_of(place, dataset.get("split"))
    rows = reading.read(place, path, bad, encoding=dataset.get("encoding"), split=dataset.get("split"), limit=limit)
    task = dataset.get("task") or train.get("task", "causal-lm")
    objective = train.get("objective") if task == train.get("task", "causal-lm") else None
    if objective == "dpo":
        rows = formats.preferences(rows, columns, path, bad)
    elif task == "causal-lm":
        rows = formats.converted(rows, dataset.get("format") or "auto", columns, path, bad)
    else:
        kind = KINDS[task]
        if objective == DISTILL and dataset.get("split", "train") == "train":
            kind = kind.unlabelled
        rows = formats.roles(rows, kind.required, kind.optional, columns, path, bad, kind.names)
        notes, base = rows.notes, look_contents.Base(place_of(train["base_model"], folder), task)
        rows = look_contents.check(rows, _module_of(task, objective), base, media.folder_of(place), bad)
        rows.notes = notes
    return rows, [*rows.notes, *bad.settle(len(rows))]


_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # transformers' names
_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def lacking(source: str | None, task: str, folder: Path | None) -> list[str]:
    """What a model on this machine lacks to read what the task reads, in sentences."""
    kind, place = KINDS.get(task), place_of(source, folder) if source else None
    if kind is None or place is None or not (place / "config.json").is_file():
        return []
    found = []
    media_of_it = [role for role in kind.roles if role in media.ROLES]
    if media_of_it and not any((place / name).is_file() for name in _PROCESSORS):
        found.append(
            f"{source} has no {_PROCESSORS[0]}, which says how its {media_of_it[0]} becomes numbers: save it beside "
            "the model, with save_pretrained of its processor"
        )
    reads_text = any(role not in media.ROLES for role in kind.roles)
    if reads_text and not any((place / name).is_file() for name in _TOKENIZERS):
        found.append(
            f"{source} has no {_TOKENIZERS[0]}, which says how text becomes numbers: save it beside the model, with "
            f"save_pretrained of its tokenizer, or take a model that reads text, as {task} does"
        )
    return found


# Heads that say which task a model has learnt, and the tasks that are answered with them.
_HEADS = {
    "ForSequenceClassification": ("sequence-classification", "audio-classification"),
    "ForTokenClassification": ("token-classification",),
    "ForQuestionAnswering": ("question-answering", "visual-question-answering"),
    "ForImageClassification": ("image-classification",),
    "ForCTC": ("automatic-speech-recognition",),
    "ForMaskedLM": ("masked-lm",),
}


def headless(source: str | None, task: str, folder: Path | None) -> list[str]:
    """What to say of a model on this machine that is to answer, and by what its config says is the body alone, or has
    learnt something else. Vectors come of any body."""
    place = place_of(source, folder) if source else None
    learnt = _architectures(place)
    if not learnt or task == "feature-extraction":
        return []
    heads = [next((head for head in _HEADS if name.endswith(head)), None) for name in learnt]
    if all(head is not None and task not in _HEADS[head] for head in heads):
        theirs = " or ".join(_HEADS[str(heads[0])])
        return [f"{source} is a {learnt[0]}, which has learnt {theirs}, and not {task}: name another model or task"]
    bodies = [name for name in learnt if name.endswith("Model") and not name.endswith(("HeadModel", "HeadsModel"))]
    if "classify" not in KINDS[task].answers or len(bodies) < len(learnt):
        return []
    return [f"{source} is a {learnt[0]}: a base, which has not learnt {task}; name what was fine-tuned from it"]


def _architectures(place: Path | None) -> list[str]:
    """Transformers' names of what a model was saved as; [] where nobody can say."""
    try:
        said = json.loads((place / "config.json").read_text()).get("architectures") if place else None
    except (OSError, ValueError, AttributeError):
        return []
    return [str(name) for name in said] if isinstance(said, list) else []


def _taught_otherwise(teacher: str | None, task: str, folder: Path | None) -> str:
    """What to say of a teacher on this machine that learnt another task, by what its config says; ""."""
    learnt = _architectures(place_of(teacher, folder) if teacher else None)
    ends = (KINDS[task].auto.removeprefix("AutoModel"), *(("LMHeadModel",) if task == "causal-lm" else ()))
    if not learnt or any(name.endswith(ends) for name in learnt):
        return ""
    return f"{teacher} is a {learnt[0]}, which says nothing of {task}; it needs a model that learnt that"


def main() -> None:
    """{"train", "batch" or "serve", "folder", "is_complete", "of", "begins"} on standard input, the answer on standard
    output."""
    from llmsched.data.look_batch import look_at_batch

    asked = json.load(sys.stdin)
    folder = None if asked["folder"] is None else Path(asked["folder"])
    if "batch" in asked:
        answer = look_at_batch(asked["batch"], folder, is_complete=asked["is_complete"], begins=asked["begins"])
        model, task = asked["batch"].get("model"), asked["batch"]["task"]
        flaws = [*lacking(model, task, folder), *headless(model, task, folder)]
        answer["errors"] += [f"batch.model: {each}" for each in flaws]
    elif "serve" in asked:
        model, task = (asked["serve"].get("model") or {}).get("source"), asked["serve"]["task"]
        flaws = [*lacking(model, task, folder), *headless(model, task, folder)]
        answer = {"errors": [f"serve.model.source: {each}" for each in flaws], "notes": []}
    else:
        answer = look(asked["train"], folder, is_complete=asked["is_complete"], of=asked.get("of"))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
