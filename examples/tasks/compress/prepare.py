"""Writes the film reviews of examples/01. `python prepare.py`"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def prepare(folder: Path) -> None:
    file = Path(__file__).parents[2] / "01_fine_tune_and_serve" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_demo", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare(folder)


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
