"""The names of other libraries that we ship are those of the installed libraries, and our defaults are theirs."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from llmsched.spec import library_names
from llmsched.spec.train import Lora, TrainingArgs

# Ours on purpose: progress is looked at; every linear layer is adapted unless told otherwise.
OTHER_DEFAULTS = {"logging_steps", "target_modules"}
# An earlier name of TrainingArguments that everybody still writes; now a fraction in warmup_steps.
EARLIER_NAMES = {"warmup_ratio"}


def fields_of(package: str, module: str, cls: str) -> dict[str, ast.expr | None]:
    """Field -> default of a dataclass, read from its source: importing these libraries takes seconds."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(found.origin).parent / module).read_text())
    (body,) = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls)
    return {
        node.target.id: _default(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_")
    }


def _default(value: ast.expr | None) -> ast.expr | None:
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == "default"), None)


LIBRARIES = [
    pytest.param("transformers", "training_args.py", "TrainingArguments", "TRAINING_ARGUMENTS", TrainingArgs),
    pytest.param("peft", "tuners/lora/config.py", "LoraConfig", "LORA_CONFIG", Lora),
]


@pytest.mark.parametrize(("package", "module", "cls", "names", "ours"), LIBRARIES)
def test_the_shipped_names_are_those_of_the_installed_library(package, module, cls, names, ours):
    installed, shipped = set(fields_of(package, module, cls)), getattr(library_names, names)
    assert installed == shipped, (
        f"{names} in library_names.py: add {sorted(installed - shipped)}, remove {sorted(shipped - installed)}"
    )
    assert set(ours.model_fields) - EARLIER_NAMES <= shipped


@pytest.mark.parametrize(("package", "module", "cls", "names", "ours"), LIBRARIES)
def test_what_we_honour_has_the_defaults_of_the_library(package, module, cls, names, ours):
    defaults = fields_of(package, module, cls)
    compared = 0
    for name, field in ours.model_fields.items():
        if name in OTHER_DEFAULTS | EARLIER_NAMES or defaults[name] is None:
            continue
        theirs = ast.literal_eval(defaults[name])
        theirs = [] if name == "report_to" and theirs == "none" else theirs  # its word for no tool at all
        assert field.default == theirs or (field.default is False and theirs is None), name
        compared += 1
    assert compared >= 3
