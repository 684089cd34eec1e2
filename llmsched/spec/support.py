"""What a spec may say but llmsched does not do yet. ONE table; whoever makes a field work deletes its line.

A path leads to a key (`*`: every item of a list or section); its values are those that may be written all the same,
because they say what happens anyway. A path that is not here works.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmsched.data.tasks import KINDS as KINDS_OF_TASK
from llmsched.errors import Problem
from llmsched.spec.document import Document, Path, dotted

_EVERY_KIND: dict[str, tuple[Any, ...]] = {
    "resources.use_spot": (False,),
    "placement.cluster": ("any",),
    "placement.region": ("any",),
    "placement.near": (None,),
    "environment.image": (None,),
}
_WHAT_ENDS: dict[str, tuple[Any, ...]] = {
    "groups": ([],),
    "checkpoint.uri": (None,),
}
_SAVES_BY_ITSELF: dict[str, tuple[Any, ...]] = {
    "checkpoint.every": (600, 600.0, "10m"),  # a command saves when it likes, a batch after every part
    "checkpoint.keep": (3,),
    "checkpoint.resume": ("auto",),
}
_OF_TRAINING: dict[str, tuple[Any, ...]] = {
    "train.strategy": ("auto", "ddp"),
}
NOT_YET: dict[str, dict[str, tuple[Any, ...]]] = {
    "train": {
        **_EVERY_KIND,
        **_WHAT_ENDS,
        **_OF_TRAINING,
    },
    "serve": {
        **_EVERY_KIND,
        "preemption.grace": (120, 120.0, "120s", "2m"),  # drain_timeout it is
        "serve.task": tuple(task for task, kind in KINDS_OF_TASK.items() if kind.answers),
    },
    "batch": {
        **_EVERY_KIND,
        **_WHAT_ENDS,
        **_SAVES_BY_ITSELF,
        "batch.task": tuple(task for task, kind in KINDS_OF_TASK.items() if kind.answers),
    },
    "tune": {
        **_EVERY_KIND,
        **_WHAT_ENDS,
        **{f"tune.{path}": allowed for path, allowed in _OF_TRAINING.items()},
    },
    "task": {**_EVERY_KIND, **_WHAT_ENDS, **_SAVES_BY_ITSELF},
    "ray": {**_EVERY_KIND, **_WHAT_ENDS, **_SAVES_BY_ITSELF},
}

# Kinds of source that work, by the keys that hold one.
_MODELS = ("path", "package", "file", "hf", "s3", "run", "best", "model")
SOURCES: dict[str, tuple[str, ...]] = {
    "train.base_model": _MODELS,
    "train.teacher": _MODELS,
    "train.datasets.*.path": ("path", "package", "file", "hf", "s3"),
    "tune.train.base_model": _MODELS,
    "tune.train.teacher": _MODELS,
    "tune.train.datasets.*.path": ("path", "package", "file", "hf", "s3"),
    "serve.model.source": _MODELS,
    "serve.adapters.*.source": _MODELS,
    "batch.model": _MODELS,
    "batch.input.path": ("path", "package", "file", "s3", "run"),
}


def not_yet(kind: str, document: Document, table: dict[str, tuple[Any, ...]] | None = None) -> list[Problem]:
    """A problem with code `not_supported_yet` for everything in the document that does not do yet what it says.

    `table` is CLUSTER for a cluster file, else the kind's own counts."""
    problems: list[Problem] = []
    for pattern, allowed in (_of(kind, document.data) if table is None else table).items():
        for path, value in _find(document.data, tuple(pattern.split("."))):
            if not any(value == each and isinstance(value, bool) is isinstance(each, bool) for each in allowed):
                problems.append(_problem(document, path, value, allowed))
    for pattern, schemes in SOURCES.items() if table is None else ():
        for path, value in _find(document.data, tuple(pattern.split("."))):
            if isinstance(value, str) and (source := _kind_of_source(value)) not in schemes and source in _SOURCE_WORDS:
                message = f'"{dotted(path)}": {_SOURCE_WORDS[source]} is not supported yet'
                hint = _INSTEAD.get((pattern, source), f"Supported: {' '.join(schemes)}.")
                problems.append(Problem(document.where(path), message, hint, CODE))
    return problems


def _of(kind: str, data: Any) -> dict[str, tuple[Any, ...]]:
    """What counts for a search counts for its trials."""
    tune = data.get(kind) if kind == "tune" else None
    return {**NOT_YET[kind], **_SAVES_BY_ITSELF} if isinstance(tune, dict) and "task" in tune else NOT_YET[kind]


CODE = "not_supported_yet"
_SOURCE_WORDS = {
    "hf": "a data set of a hub (hf://)",
    "model": "a registered model (model://) as data",
    "best": "the best checkpoint of a run (/best)",
    "run": "the result of a run (run://)",
}


_INSTEAD = {
    ("batch.input.path", "hf"): (
        "Fetch its files first, `hf download ORG/NAME --repo-type dataset --local-dir data`, and write the path of "
        'those that are rows, such as "data/*.parquet".'
    ),
}


def _kind_of_source(source: str) -> str:
    if source.startswith("run://"):
        return "best" if source.endswith("/best") else "run"
    scheme, colon, _ = source.partition(":")
    return scheme if colon else "path"


def _problem(document: Document, path: Path, value: Any, allowed: tuple[Any, ...]) -> Problem:
    # A choice among words names the words that work; anything else, a duration for example, is a key to leave out.
    words = [each for each in allowed if isinstance(each, str)]
    if words and len(words) == len(allowed) and isinstance(value, str):
        message = f'"{dotted(path)}": "{value[:60]}" is not supported yet'
        return Problem(document.where(path), message, f"Supported: {', '.join(words)}.", CODE)
    message = f'"{dotted(path)}" is not supported yet'
    return Problem(document.where(path, of_key=True), message, "Leave it out.", CODE)


def _find(data: Any, pattern: tuple[str, ...], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every (path, value) of `data` that a pattern leads to."""
    if not pattern:
        yield at, data
    elif isinstance(data, dict):
        for key in data if pattern[0] == "*" else [pattern[0]] if pattern[0] in data else []:
            yield from _find(data[key], pattern[1:], (*at, key))
    elif isinstance(data, list) and pattern[0] == "*":
        for index, item in enumerate(data):
            yield from _find(item, pattern[1:], (*at, index))


CLUSTER: dict[str, tuple[Any, ...]] = {
    "reservations.*.nodes": ([],),  # Ray names a node anew at each start: a flavor and a number it is
}
