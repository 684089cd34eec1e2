"""Whether what a spec names in its workdir is there and can be used, before the folder travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched.client import entries
from llmsched.errors import Problem, SpecError
from llmsched.spec.serve import ServeSpec
from llmsched.spec.train import TrainSpec


def check(spec: Any, folder: Path) -> None:
    """Raises SpecError for relative paths of a training that lead nowhere in its workdir `folder`, for data there that
    it would be refused for, as far as the first rows show it, and for an app that the folder shows not to be there."""
    if isinstance(spec, ServeSpec) and spec.serve.app is not None:
        wrong = entries.mistakes(spec.serve.app, "serve.app", folder)
        if wrong:
            raise SpecError.of([Problem(spec.name, each, code="unusable_app") for each in wrong])
    if not isinstance(spec, TrainSpec) or spec.train.base_model is None:
        return
    from llmsched.data import look

    train, found = spec.train.dump(), []
    place = look.place_of(train["base_model"], folder)
    if place is not None and not Path(train["base_model"]).expanduser().is_absolute() and not place.exists():
        found.append(f"train.base_model: {look.missing(train['base_model'], place)}")
    train["datasets"] = [each for each in train["datasets"] if not Path(each["path"]).expanduser().is_absolute()]
    found += look.look(train, folder, is_complete=True)["errors"]
    if found:
        raise SpecError.of([Problem(spec.name, each, code="unusable_data") for each in found])
