"""What writes the data of several applications: a table in two files, of which the second is held out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

_SEED = 7


def split(rows: Any, held_out: int, folder: Path, name: str) -> None:
    """`rows` (pandas.DataFrame), in an order by chance, as NAME-train.csv and NAME-test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    order = [*range(len(rows))]
    random.Random(_SEED).shuffle(order)
    rows = rows.iloc[order]
    rows[held_out:].to_csv(folder / f"{name}-train.csv", index=False)
    rows[:held_out].to_csv(folder / f"{name}-test.csv", index=False)
    print(f"{name}: {len(rows):,} rows, {held_out:,} held out")
