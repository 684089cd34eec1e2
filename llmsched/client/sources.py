"""Whether what a spec names in its workdir is there and can be used, before the folder travels."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from llmsched.client import entries, ignore, workdir
from llmsched.errors import Problem, SpecError
from llmsched.spec.batch import BatchSpec
from llmsched.spec.serve import ServeSpec
from llmsched.spec.task import TaskSection, TaskSpec
from llmsched.spec.train import TrainSpec
from llmsched.spec.tune import TuneSpec, readings

_SCRIPTS = {"python": ".py", "bash": ".sh", "sh": ".sh", "torchrun": ".py"}  # what a program reads as its first word


def check(spec: Any, folder: Path) -> list[str]:
    """What the spec reads of its workdir `folder`, in sentences, where that is worth telling. Raises SpecError for
    relative paths of a training or a batch that lead nowhere in it, for data there that it would be refused for, as far
    as the first rows show it, and for an app or a function that the folder shows not to be there."""
    check_apps(spec, folder)
    notes: list[str] = []
    doubts = [each for what, entry, _ in _entries(spec) for each in entries.doubts(entry, what, folder)]
    if isinstance(spec, TrainSpec):
        found, notes = _training(spec.train.dump(), folder)
    elif isinstance(spec, TuneSpec):
        found, notes = _search(spec, folder)
        if spec.tune.task is not None and "task.run" not in spec.tune.space:
            found += _command("tune.task.run", spec.tune.task, folder)
    elif isinstance(spec, ServeSpec) and spec.serve.model is not None:
        found = _served("serve.model.source", spec.serve.model.source, spec.serve.task, folder)
    elif isinstance(spec, BatchSpec):
        found = _served("batch.model", spec.batch.model, spec.batch.task, folder) if spec.batch.model else []
        if not Path(spec.batch.input.path).expanduser().is_absolute():
            from llmsched.data.look_batch import look_at_batch

            said = look_at_batch(spec.batch.dump(), folder, is_complete=True)
            found, notes = found + said["errors"], said["notes"]
    else:
        found = _command("task.run", spec.task, folder) if isinstance(spec, TaskSpec) else []
    if found:
        raise SpecError.of([Problem(spec.name, each, code="unusable_data") for each in found])
    return [*notes, *doubts]


def _command(field: str, task: TaskSection, folder: Path) -> list[str]:
    """A script that is to be read from the workdir and is not in it; what `setup` makes there nobody knows before."""
    program, *words = task.run
    script = next((each for each in words if not each.startswith("-")), "")
    of_its_kind = _SCRIPTS.get(re.sub(r"[\d.]+$", "", PurePosixPath(program).name))
    if task.setup or not of_its_kind or not script.endswith(of_its_kind) or words[0] != script:
        return []
    if Path(script).is_absolute() or (folder / script).exists():
        return []
    there = [str(each.relative_to(folder)) for depth in ("*", "*/*") for each in folder.glob(depth + of_its_kind)]
    near = difflib.get_close_matches(script, there, 1)
    return [f"{field}: there is no {script} in the workdir" + (f'. Did you mean "{near[0]}"?' if near else "")]


def check_shipped(spec: Any, leaves_out: Callable[[str], str]) -> None:
    """Raises SpecError for what the spec names in its workdir and a pattern leaves out of it."""
    named = [*spec.sources(), *(each for each in spec.environment.pip if each.endswith(".whl"))]
    wrong = []
    for each in named:
        path = PurePosixPath(each).as_posix()
        if _is_elsewhere(each) or ":" in each or not (pattern := leaves_out(path)):
            continue
        mend = "Name it otherwise" if pattern in workdir.EXCLUDED else f"Take that out of {ignore.FILES[0]}"
        wrong.append(f'{each} is left out of the workdir by "{pattern}". {mend}')
    if wrong:
        raise SpecError.of([Problem(spec.name, each, code="unusable_data") for each in wrong])


def check_apps(spec: Any, folder: Path | None) -> None:
    """Raises SpecError for an app or a function that the workdir (None: there is none) or our own package shows not to
    be there, or not to take its arguments."""
    wrong = [each for what, entry, args in _entries(spec) for each in entries.mistakes(entry, what, folder, args)]
    if wrong:
        raise SpecError.of([Problem(spec.name, each, code="unusable_app") for each in wrong])


def _entries(spec: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Code of its own that a spec names: (field, "module:name", its keyword arguments, where these are known)."""
    if isinstance(spec, ServeSpec) and spec.serve.app is not None:
        return [("serve.app", spec.serve.app, spec.serve.args)]
    if isinstance(spec, BatchSpec) and spec.batch.map is not None:
        return [("batch.map", spec.batch.map, spec.batch.args)]
    train = spec.train if isinstance(spec, TrainSpec) else spec.tune.train if isinstance(spec, TuneSpec) else None
    if train is not None and train.loop is not None:
        return [("train.loop" if isinstance(spec, TrainSpec) else "tune.train.loop", train.loop, None)]
    return []


def _served(field: str, source: str, task: str, folder: Path) -> list[str]:
    from llmsched.data import look

    if _is_elsewhere(source):
        return []
    flaws = [*look.lacking(source, task, folder), *look.headless(source, task, folder)]
    return _model(field, source, folder) or [f"{field}: {each}" for each in flaws]


def _is_elsewhere(source: str) -> bool:
    """Where the controller looks, or nobody can: not in the workdir."""
    return Path(source).expanduser().is_absolute()


def _model(field: str, source: str, folder: Path) -> list[str]:
    from llmsched.data import look

    place = look.place_of(source, folder)
    is_there = place is None or _is_elsewhere(source) or place.exists()
    return [] if is_there or place is None else [f"{field}: {look.missing(source, place)}"]


def _training(train: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """What is wrong with a `train` section as data, and what its run will note."""
    from llmsched.data import look

    if train["base_model"] is None:
        return [], []
    models = [name for name in ("base_model", "teacher") if train[name]]
    found = [each for name in models for each in _model(f"train.{name}", train[name], folder)]
    here = [index for index, each in enumerate(train["datasets"]) if not _is_elsewhere(each["path"])]
    said = look.look(train, folder, is_complete=True, of=here)
    return found + said["errors"], said["notes"]


def _search(spec: TuneSpec, folder: Path) -> tuple[list[str], list[str]]:
    """Of every trial that reads something else; each is told once."""
    found: dict[str, str] = {}
    noted: list[str] = []
    for reading in readings(spec.dump(), spec.tune.space):
        wrong, notes = _training(reading.train, folder)
        noted += notes
        for each in wrong:
            found.setdefault(f"tune.{each}", reading.why)
    told = [f"{each} (a trial with {why})" if why else each for each, why in found.items()]
    return told, list(dict.fromkeys(noted))
