"""Writes the film reviews of examples/01, and a part of them of which few have a label. `python prepare.py`"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

LABELLED, UNLABELLED = 64, 896


def prepare(folder: Path) -> None:
    file = Path(__file__).parents[2] / "01_fine_tune_and_serve" / "prepare.py"
    runpy.run_path(str(file))["prepare"](folder)
    rows = [json.loads(line) for line in (folder / "sentiment-train.jsonl").read_text().splitlines()]
    few, others = rows[:LABELLED], rows[LABELLED : LABELLED + UNLABELLED]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    (folder / "unlabelled.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in others))


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
