"""Whether what a spec names in its workdir is there and can be used, before the folder travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched.client import entries
from llmsched.errors import Problem, SpecError
from llmsched.spec.batch import BatchSpec
from llmsched.spec.serve import ServeSpec
from llmsched.spec.train import TrainSpec


def check(spec: Any, folder: Path) -> list[str]:
    """What the spec reads of its workdir `folder`, in sentences, where that is worth telling. Raises SpecError for
    relative paths of a training or a batch that lead nowhere in it, for data there that it would be refused for, as far
    as the first rows show it, and for an app or a function that the folder shows not to be there."""
    wrong, notes = _apps(spec, folder), []
    if wrong:
        raise SpecError.of([Problem(spec.name, each, code="unusable_app") for each in wrong])
    if isinstance(spec, TrainSpec) and spec.train.base_model is not None:
        found = _model("train.base_model", spec.train.base_model, folder) + _datasets(spec, folder)
    elif isinstance(spec, BatchSpec):
        found = _model("batch.model", spec.batch.model, folder) if spec.batch.model else []
        if not Path(spec.batch.input.path).expanduser().is_absolute():
            from llmsched.data.look_batch import look_at_batch

            said = look_at_batch(spec.batch.dump(), folder, is_complete=True)
            found, notes = found + said["errors"], said["notes"]
    else:
        return []
    if found:
        raise SpecError.of([Problem(spec.name, each, code="unusable_data") for each in found])
    return notes


def _apps(spec: Any, folder: Path) -> list[str]:
    if isinstance(spec, ServeSpec) and spec.serve.app is not None:
        return entries.mistakes(spec.serve.app, "serve.app", folder)
    if isinstance(spec, BatchSpec) and spec.batch.map is not None:
        return entries.mistakes(spec.batch.map, "batch.map", folder)
    return []


def _model(field: str, source: str, folder: Path) -> list[str]:
    from llmsched.data import look

    place = look.place_of(source, folder)
    is_there = place is None or Path(source).expanduser().is_absolute() or place.exists()
    return [] if is_there or place is None else [f"{field}: {look.missing(source, place)}"]


def _datasets(spec: TrainSpec, folder: Path) -> list[str]:
    from llmsched.data import look

    train = spec.train.dump()
    train["datasets"] = [each for each in train["datasets"] if not Path(each["path"]).expanduser().is_absolute()]
    return look.look(train, folder, is_complete=True)["errors"]
