"""Writes the film reviews of examples/01. `python prepare.py`"""

from __future__ import annotations

import runpy
from pathlib import Path


def prepare(folder: Path) -> None:
    file = Path(__file__).parents[2] / "01_fine_tune_and_serve" / "prepare.py"
    runpy.run_path(str(file))["prepare"](folder)


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
